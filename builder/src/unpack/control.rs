//! Control paragraphs (deb822) and the relations between packages, as far as unpacking needs them.

use anyhow::{Context, ensure};

/// One paragraph of a control file: fields in their order, continuation lines kept as they are.
#[derive(Debug, Clone, Default)]
pub struct Paragraph(Vec<(String, String)>);

impl Paragraph {
    /// Parses a paragraph; everything after the first blank line is refused.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in text.trim_end_matches('\n').lines() {
            ensure!(!line.trim().is_empty(), "more than one paragraph");
            if line.starts_with([' ', '\t']) {
                let (_, value) = fields.last_mut().context("continuation line before any field")?;
                value.push('\n');
                value.push_str(line);
            } else if !line.starts_with('#') {
                let (name, value) = line.split_once(':').with_context(|| format!("not a field: `{line}`"))?;
                // dpkg keeps what follows the text, even a stray space.
                fields.push((name.to_owned(), value.trim_start().to_owned()));
            }
        }
        Ok(Self(fields))
    }

    /// Value of a field (names are case-insensitive); `""` if it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The fields in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Package names a relation field mentions: one list of alternatives per comma, without versions and qualifiers.
    pub fn relation(&self, field: &str) -> Vec<Vec<String>> {
        let alternatives = |group: &str| {
            group
                .split('|')
                .map(|one| one.split_whitespace().next().unwrap_or_default())
                .map(|name| name.split(['(', ':', '[', '<']).next().unwrap_or_default().to_owned())
                .filter(|name| !name.is_empty())
                .collect::<Vec<_>>()
        };
        self.get(field).split(',').map(alternatives).filter(|names| !names.is_empty()).collect()
    }

    /// Whether a relation field names `package`.
    pub fn mentions(&self, field: &str, package: &str) -> bool {
        self.relation(field).iter().flatten().any(|name| name == package)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_continuation_lines_and_relations_lose_versions() {
        let paragraph = Paragraph::parse(
            "Package: a\nPre-Depends: libc6 (>= 2.38), debconf (>= 0.5) | debconf-2.0, python3:any\nDescription: x\n y\n .\n",
        )
        .unwrap();
        assert_eq!(paragraph.get("description"), "x\n y\n .");
        assert_eq!(paragraph.relation("Pre-Depends"), [vec!["libc6"], vec!["debconf", "debconf-2.0"], vec!["python3"]]);
        assert!(Paragraph::parse("A: b\n\nC: d").is_err());
        assert!(Paragraph::parse(" orphan").is_err());
    }
}
