//! The control-file format (deb822): paragraphs of `Field: value`, continued by lines that begin with white space.

/// One paragraph, borrowed from its text.
#[derive(Debug, Clone, Copy)]
pub struct Paragraph<'t>(&'t str);

/// The paragraphs of a file. Comment lines are the caller's to skip: only hand-written files have them.
pub fn paragraphs(text: &str) -> impl Iterator<Item = Paragraph<'_>> {
    text.split("\n\n").map(|paragraph| paragraph.trim_matches('\n')).filter(|p| !p.is_empty()).map(Paragraph)
}

impl<'t> Paragraph<'t> {
    /// Fields in order; a value spanning lines keeps its line ends.
    pub fn fields(self) -> impl Iterator<Item = (&'t str, &'t str)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let end = end_of_field(rest);
                let (field, tail) = rest.split_at(end);
                rest = tail.strip_prefix('\n').unwrap_or(tail);
                if let Some((name, value)) = field.split_once(':') {
                    return Some((name, value.trim()));
                }
            }
        })
    }

    /// The value of a field; names compare without case.
    pub fn get(self, name: &str) -> Option<&'t str> {
        self.fields().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Where the field at the start of `text` ends: at the first line end that no white space follows.
fn end_of_field(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(at) = text[from..].find('\n').map(|at| from + at) {
        if !matches!(bytes.get(at + 1), Some(b' ' | b'\t')) {
            return at;
        }
        from = at + 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_values_and_missing_fields() {
        let text = "Package: a\nDepends: b,\n c\nSize: 7\n\n\nPackage: d\n";
        let all: Vec<Paragraph<'_>> = paragraphs(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("depends"), Some("b,\n c"));
        assert_eq!(all[0].get("Size"), Some("7"));
        assert_eq!((all[1].get("Package"), all[1].get("Size")), (Some("d"), None));
    }
}
