//! `Release`: what a signed suite consists of, until when it holds.

use std::collections::BTreeMap;

use anyhow::Context;
use jiff::Timestamp;

use super::deb822;
use crate::digest::Sha256;
use crate::problem::Problem;

/// The verified content of an `InRelease` file.
#[derive(Debug, Clone)]
pub struct Release {
    /// Who made it (`Debian`).
    pub origin: String,
    /// What it is (`Debian-Security`).
    pub label: String,
    /// Suite (`stable`).
    pub suite: String,
    /// Codename (`trixie`).
    pub codename: String,
    /// When it was made.
    pub date: Timestamp,
    /// When it must no longer be used: stops a mirror from feeding old packages forever.
    pub valid_until: Option<Timestamp>,
    /// Whether indexes may be asked for by their digest, which a mirror update cannot change under us.
    pub by_hash: bool,
    /// Whether `Architecture: all` packages are in an index of their own.
    pub separate_all: bool,
    architectures: Vec<String>,
    components: Vec<String>,
    files: BTreeMap<String, (Sha256, u64)>,
}

impl Release {
    /// Reads the signed text; `place` names the file for messages.
    pub fn parse(text: &str, place: &str) -> Result<Self, Problem> {
        let problem = |what: String| Problem::new(what, place, "use another mirror, or tell the archive's owner");
        let fields = deb822::paragraphs(text).next().ok_or_else(|| problem("there is nothing in it".into()))?;
        let value = |name| fields.get(name).unwrap_or_default();
        let Some(list) = fields.get("SHA256") else {
            let weak = ["MD5Sum", "SHA1"].into_iter().filter(|name| fields.get(name).is_some()).collect::<Vec<_>>();
            let what = match weak.is_empty() {
                true => "the suite lists no indexes".to_owned(),
                false => format!("the suite lists its indexes by {} only, which can be forged", weak.join(" and ")),
            };
            return Err(problem(what));
        };
        let mut files = BTreeMap::new();
        for line in list.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let parsed = match words[..] {
                [digest, size, path] => digest.parse().ok().zip(size.parse().ok()).map(|entry| (path, entry)),
                _ => None,
            };
            let (path, entry) =
                parsed.ok_or_else(|| problem(format!("the suite lists an index as `{}`", line.trim())))?;
            files.insert(path.to_owned(), entry);
        }
        let time = |name: &str| {
            let read = |text| date(text).map_err(|error| problem(format!("its {name} cannot be read: {error:#}")));
            fields.get(name).map(read).transpose()
        };
        let words = |name| value(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let all_is_part = value("No-Support-for-Architecture-all").split_whitespace().any(|word| word == "Packages");
        let architectures = words("Architectures");
        Ok(Self {
            origin: value("Origin").to_owned(),
            label: value("Label").to_owned(),
            suite: value("Suite").to_owned(),
            codename: value("Codename").to_owned(),
            date: time("Date")?
                .ok_or_else(|| problem("it has no Date, so an old one cannot be told from it".into()))?,
            valid_until: time("Valid-Until")?,
            by_hash: value("Acquire-By-Hash") == "yes",
            separate_all: architectures.iter().any(|word| word == "all") && !all_is_part,
            architectures,
            components: words("Components"),
            files,
        })
    }

    /// Digest and size of a file of the suite.
    pub fn file(&self, path: &str) -> Option<(Sha256, u64)> {
        self.files.get(path).copied()
    }

    /// Whether it is the suite that was asked for: every suite of an archive is signed by the same keys, so a mirror (or who
    /// pretends to be one) may answer with another.
    pub fn check_identity(&self, wanted: &Wanted<'_>, place: &str) -> Result<(), Problem> {
        if self.suite != wanted.suite && self.codename != wanted.suite {
            return Err(Problem::new(
                format!("asked for the suite `{}`, got `{}` (codename `{}`)", wanted.suite, self.suite, self.codename),
                place,
                "use another mirror; if the archive renamed the suite, correct `suites` in image.toml",
            ));
        }
        for (name, wanted, found) in [("origin", wanted.origin, &self.origin), ("label", wanted.label, &self.label)] {
            if let Some(wanted) = wanted.filter(|wanted| wanted != found) {
                return Err(Problem::new(
                    format!("this is another archive: its {name} is `{found}`, the recipe says `{wanted}`"),
                    place,
                    format!("correct `url` in image.toml, or `{name}` if the archive renamed itself"),
                ));
            }
        }
        if !self.architectures.is_empty() && !self.architectures.iter().any(|found| found == wanted.architecture) {
            let what = format!("the suite has no architecture `{}`", wanted.architecture);
            let remedy = format!("it has {}; correct `architecture` in image.toml", self.architectures.join(", "));
            return Err(Problem::new(what, place, remedy));
        }
        // Debian's security archive says `updates/main` for what is asked for as `main`.
        let same = |found: &str, component: &str| found.rsplit('/').next() == component.rsplit('/').next();
        for component in wanted.components {
            if !self.components.is_empty() && !self.components.iter().any(|found| same(found, component)) {
                let what = format!("the suite has no component `{component}`");
                let remedy = format!("it has {}; correct `components` in image.toml", self.components.join(", "));
                return Err(Problem::new(what, place, remedy));
            }
        }
        Ok(())
    }
}

/// What the recipe asks an archive for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Suite or codename.
    pub suite: &'a str,
    /// Debian architecture.
    pub architecture: &'a str,
    /// Components.
    pub components: &'a [String],
    /// `Origin` the archive must state.
    pub origin: Option<&'a str>,
    /// `Label` the archive must state.
    pub label: Option<&'a str>,
}

/// `Sun, 22 Nov 2026 02:09:05 UTC`; the zone is always UTC, whatever it is called.
fn date(text: &str) -> anyhow::Result<Timestamp> {
    let text = text.replace("UTC", "+0000").replace("GMT", "+0000");
    let zoned = jiff::fmt::rfc2822::parse(&text).with_context(|| format!("reading the date `{text}`"))?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Origin: Debian\nLabel: Debian\nSuite: stable-updates\nCodename: trixie-updates\n\
        Date: Sun, 22 Nov 2026 02:09:05 UTC\nValid-Until: Sun, 29 Nov 2026 02:09:05 UTC\nAcquire-By-Hash: yes\n\
        No-Support-for-Architecture-all: Packages\nArchitectures: all amd64\nSHA256:\n \
        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855        0 main/binary-amd64/Packages\n";

    #[test]
    fn fields_of_a_real_release() {
        let release = Release::parse(TEXT, "x").unwrap();
        assert_eq!(release.date.to_string(), "2026-11-22T02:09:05Z");
        assert_eq!(release.valid_until.unwrap().to_string(), "2026-11-29T02:09:05Z");
        assert!(release.by_hash && !release.separate_all);
        assert_eq!(release.file("main/binary-amd64/Packages"), Some((Sha256::of(""), 0)));
    }

    #[test]
    fn a_release_without_digests_is_refused() {
        let what = |text: &str| Release::parse(text, "x").unwrap_err().what;
        assert_eq!(what("Date: Sun, 22 Nov 2026 02:09:05 UTC\n"), "the suite lists no indexes");
        assert!(what("MD5Sum:\n d4 0 x\n").contains("by MD5Sum only"));
        assert!(what("SHA256:\n abc 0 x\n").contains("`abc 0 x`"));
        assert!(what("SHA256:\n").contains("no Date"));
    }
}
