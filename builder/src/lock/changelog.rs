//! What the packages themselves say about a new version: their Debian changelog (deb-changelog(5)), which Debian Policy 4.4
//! and 12.7 want in every package. Archives do not carry it anywhere else.

use std::io::Read;

use flate2::read::GzDecoder;

use super::{Locked, Recipe};
use crate::apt::version::Version;
use crate::cache::Cache;
use crate::fetch::{self, Event};
use crate::unpack::deb::Deb;
use crate::unpack::tree::absolute;

/// More than any changelog has.
const LIMIT: u64 = 16 << 20;

/// The changelog of a locked package from after the version `old` on, newest first: each entry's version on a line of its
/// own, its text below, indented. Empty if the package has none, or shares another's (its `/usr/share/doc/NAME` is a link).
///
/// # Errors
///
/// If the package cannot be fetched or read.
pub fn since(
    old: &str,
    name: &str,
    new: &Recipe<Locked>,
    cache: &Cache,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<Vec<String>> {
    let Some(package) = new.lock().package(name) else { return Ok(Vec::new()) };
    let item: Vec<_> = new.items().into_iter().filter(|item| item.sha256 == package.sha256).collect();
    fetch::fetch(&item, cache, report)?;
    let deb = Deb::open(&cache.cas_path(&package.sha256), &package.sha256)?;
    // `changelog.gz` is upstream's, or the only one where Debian is upstream.
    let [mut debian, mut native] = [None, None];
    for entry in deb.data()?.entries()? {
        let entry = entry?;
        let path = absolute(&entry.path()?)?;
        let found = match path.strip_prefix(&format!("/usr/share/doc/{name}/")) {
            Some("changelog.Debian.gz") => &mut debian,
            Some("changelog.gz") => &mut native,
            _ => continue,
        };
        let mut text = Vec::new();
        GzDecoder::new(entry).take(LIMIT).read_to_end(&mut text)?;
        *found = Some(String::from_utf8_lossy(&text).into_owned());
    }
    Ok(newer(&debian.or(native).unwrap_or_default(), old))
}

/// Entries of a changelog above that of `old`.
fn newer(changelog: &str, old: &str) -> Vec<String> {
    let Ok(old) = Version::parse(old) else { return Vec::new() };
    let mut lines = Vec::new();
    for line in changelog.lines() {
        if let Some(version) = heading(line) {
            if version <= old {
                break;
            }
            lines.push(version.to_string());
        } else if line.starts_with("  ") && !line.trim().is_empty() && !lines.is_empty() {
            lines.push(line.trim_end().to_owned());
        }
    }
    lines
}

/// `package (version) distributions; metadata`.
fn heading(line: &str) -> Option<Version> {
    let (package, rest) = line.split_once(" (")?;
    let (version, rest) = rest.split_once(')')?;
    let plain = !package.is_empty() && !package.contains(char::is_whitespace) && rest.contains(';');
    plain.then(|| Version::parse(version).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "app (1:3.0-1) unstable; urgency=medium\n\n  [ A. Person ]\n  * New upstream release:\n    \
        - closes a hole (CVE-2026-1)\n\n -- A. Person <a@example.org>  Mon, 02 Nov 2026 10:00:00 +0000\n\n\
        app (1:2.0-2) unstable; urgency=low\n\n  * Rebuilt.\n\n -- A. Person <a@example.org>  Sun, 01 Nov 2026 10:00:00 \
        +0000\n\napp (1:2.0-1) unstable; urgency=low\n\n  * First.\n\n -- A. Person <a@example.org>  Sat, 31 Oct 2026 \
        10:00:00 +0000\n";

    #[test]
    fn entries_above_the_old_version_are_told() {
        let expected = ["1:3.0-1", "  [ A. Person ]", "  * New upstream release:", "    - closes a hole (CVE-2026-1)"];
        assert_eq!(newer(CHANGELOG, "1:2.0-2"), expected);
        assert_eq!(newer(CHANGELOG, "1:2.0-1").len(), expected.len() + 2);
        assert!(newer(CHANGELOG, "1:3.0-1").is_empty());
        // Between two that are there, and older than all.
        assert_eq!(newer(CHANGELOG, "1:2.0-1.1").len(), expected.len() + 2);
        assert_eq!(newer(CHANGELOG, "1.0").len(), expected.len() + 4);
    }

    #[test]
    fn what_is_no_changelog_tells_nothing() {
        for text in
            ["", "Release notes (2.0)\n  * text\n", "  * text without a heading\n", "app (not-a-version) x; y\n  * z\n"]
        {
            assert!(newer(text, "1").is_empty(), "{text}");
        }
    }
}
