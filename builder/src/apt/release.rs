//! `Release`: what a signed suite consists of, until when it holds.

use std::collections::BTreeMap;

use anyhow::Context;
use jiff::Timestamp;

use super::deb822;
use crate::digest::Sha256;

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
    files: BTreeMap<String, (Sha256, u64)>,
}

impl Release {
    /// Reads the signed text.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let fields = deb822::paragraphs(text).next().context("the Release file is empty")?;
        let value = |name| fields.get(name).unwrap_or_default();
        let mut files = BTreeMap::new();
        for line in fields.get("SHA256").context("the Release file has no SHA256 section")?.lines() {
            let mut words = line.split_whitespace();
            let (Some(digest), Some(size), Some(path)) = (words.next(), words.next(), words.next()) else { continue };
            files.insert(
                path.to_owned(),
                (digest.parse()?, size.parse().context("reading a size in the Release file")?),
            );
        }
        let all_is_part = value("No-Support-for-Architecture-all").split_whitespace().any(|word| word == "Packages");
        Ok(Self {
            origin: value("Origin").to_owned(),
            label: value("Label").to_owned(),
            suite: value("Suite").to_owned(),
            codename: value("Codename").to_owned(),
            date: date(fields.get("Date").context("the Release file has no Date")?)?,
            valid_until: fields.get("Valid-Until").map(date).transpose()?,
            by_hash: value("Acquire-By-Hash") == "yes",
            separate_all: value("Architectures").split_whitespace().any(|word| word == "all") && !all_is_part,
            files,
        })
    }

    /// Digest and size of a file of the suite.
    pub fn file(&self, path: &str) -> Option<(Sha256, u64)> {
        self.files.get(path).copied()
    }
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
        let release = Release::parse(TEXT).unwrap();
        assert_eq!(release.date.to_string(), "2026-11-22T02:09:05Z");
        assert_eq!(release.valid_until.unwrap().to_string(), "2026-11-29T02:09:05Z");
        assert!(release.by_hash && !release.separate_all);
        assert_eq!(release.file("main/binary-amd64/Packages"), Some((Sha256::of(""), 0)));
    }

    #[test]
    fn a_release_without_digests_is_refused() {
        assert!(Release::parse("Date: Sun, 22 Nov 2026 02:09:05 UTC\n").is_err());
    }
}
