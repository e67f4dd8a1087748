//! Package indexes: the part of each entry that locking needs.

use std::collections::BTreeMap;

use super::deb822;
use crate::digest::Sha256;
use crate::problem::Problem;

/// One package in one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Package name.
    pub name: String,
    /// Version with epoch.
    pub version: String,
    /// `amd64`, `all`, …
    pub arch: String,
    /// Path below the archive's base URL.
    pub path: String,
    /// Size of the `.deb`.
    pub size: u64,
    /// Digest of the `.deb`.
    pub sha256: Sha256,
    /// Part of every system.
    pub essential: bool,
    /// What it needs (`Depends` and `Pre-Depends`), as the index says it.
    pub depends: String,
    /// What else it is called.
    pub provides: String,
}

/// All entries of the recipe's archives by package name, in the order of the recipe.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<String, Vec<(usize, Entry)>>,
}

impl Index {
    /// Adds the text of a verified `Packages` file; `archive` is the archive's place in the recipe, `place` names the file for
    /// messages.
    pub fn add(&mut self, archive: usize, text: &str, place: &str) -> Result<(), Problem> {
        for paragraph in deb822::paragraphs(text) {
            let entry = entry(paragraph).map_err(|what| {
                Problem::new(what, place, "the index was not used; use another mirror, or tell the archive's owner")
            })?;
            self.entries.entry(entry.name.clone()).or_default().push((archive, entry));
        }
        Ok(())
    }

    /// Whether any archive has the package.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All package names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Versions of a package, in the order of the recipe.
    pub fn versions(&self, name: &str) -> Vec<&str> {
        let mut versions = Vec::new();
        for (_, entry) in self.entries.get(name).into_iter().flatten() {
            if !versions.contains(&entry.version.as_str()) {
                versions.push(&entry.version);
            }
        }
        versions
    }

    /// Names of the packages that are part of every system, sorted.
    pub fn essential(&self) -> Vec<&str> {
        let essential = |entries: &&Vec<(usize, Entry)>| entries.iter().any(|(_, entry)| entry.essential);
        self.entries.iter().filter(|(_, entries)| essential(entries)).map(|(name, _)| name.as_str()).collect()
    }

    /// The archive that has exactly this package; the first of the recipe if several have.
    pub fn find(&self, name: &str, version: &str, arch: &str) -> Option<(usize, &Entry)> {
        let same = |entry: &Entry| entry.version == version && entry.arch == arch;
        let (archive, entry) = self.entries.get(name)?.iter().find(|(_, entry)| same(entry))?;
        Some((*archive, entry))
    }

    /// Another content under the same name, version and architecture in the same archive: nobody could say which is meant.
    pub fn contradiction(&self, archive: usize, entry: &Entry) -> Option<&Entry> {
        let same = |other: &Entry| other.version == entry.version && other.arch == entry.arch;
        let others = self.entries.get(&entry.name)?.iter().filter(|(from, _)| *from == archive).map(|(_, other)| other);
        others.into_iter().find(|other| same(other) && other.sha256 != entry.sha256)
    }
}

/// One paragraph of an index; the error says what is wrong with it.
fn entry(paragraph: deb822::Paragraph<'_>) -> Result<Entry, String> {
    let (mut name, mut version, mut arch, mut path, mut essential) = ("", "", "", "", false);
    let (mut depends, mut provides) = (String::new(), "");
    let (mut size, mut digest) = (None, None);
    for (field, value) in paragraph.fields() {
        match field {
            "Package" => name = value,
            "Version" => version = value,
            "Architecture" => arch = value,
            "Filename" => path = value.strip_prefix("./").unwrap_or(value),
            "Size" => size = Some(value),
            "SHA256" => digest = Some(value),
            "Essential" => essential = value == "yes",
            "Depends" | "Pre-Depends" => {
                depends.push_str(if depends.is_empty() { "" } else { ", " });
                depends.push_str(value);
            }
            "Provides" => provides = value,
            _ => {}
        }
    }
    let plain = |text: &str, more: &str| {
        !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
            && !text.starts_with('-')
    };
    if !plain(name, "+-.") {
        return Err(format!("the index has a package called `{name}`"));
    }
    if !plain(version, ".+-~:") || !plain(arch, "-") {
        return Err(format!("package {name} has the version `{version}` and the architecture `{arch}`"));
    }
    let digest =
        digest.ok_or_else(|| format!("package {name} has no SHA256 in the index, so its content is anybody's"))?;
    check_path(name, path)?;
    Ok(Entry {
        name: name.to_owned(),
        version: version.to_owned(),
        arch: arch.to_owned(),
        path: path.to_owned(),
        size: size
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| format!("package {name} has no size in the index"))?,
        sha256: digest.parse().map_err(|_| format!("package {name} has the SHA256 `{digest}`"))?,
        essential,
        depends,
        provides: provides.to_owned(),
    })
}

/// The path must stay below the archive and need no escaping in a URL's path or in TOML.
fn check_path(name: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') {
        return Err(format!("package {name} has the absolute file name `{path}`"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("package {name} has the file name `{path}`, which leads out of the archive"));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "+-._~/:%".contains(c);
    if path.is_empty() || !path.chars().all(good) {
        return Err(format!("package {name} has the file name `{path}`, which is none"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, path: &str) -> String {
        let digest = Sha256::of(name);
        format!("Package: {name}\nVersion: 1:1.0\nArchitecture: all\nFilename: {path}\nSize: 4\nSHA256: {digest}\n\n")
    }

    #[test]
    fn entries_are_found_by_exact_version_and_the_first_archive_wins() {
        let mut index = Index::default();
        index.add(1, &entry("a", "pool/b/a.deb"), "x").unwrap();
        index.add(0, &(entry("a", "pool/a/a.deb") + "Package: e\nVersion: 2\nArchitecture: all\nEssential: yes\nFilename: e\nSize: 1\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"), "x").unwrap();
        assert_eq!(index.find("a", "1:1.0", "all").unwrap().0, 1);
        assert!(index.find("a", "1.0", "all").is_none());
        assert_eq!(index.essential(), ["e"]);
    }

    #[test]
    fn an_index_that_cannot_be_meant_is_refused() {
        let what = |text: &str| Index::default().add(0, text, "x").unwrap_err().what;
        let paths = [
            ("../../etc/passwd", "leads out"),
            ("pool/../../x", "leads out"),
            ("/etc/passwd", "absolute"),
            ("pool/a b.deb", "none"),
            ("pool/\"a.deb", "none"),
            ("", "none"),
        ];
        for (path, expected) in paths {
            assert!(what(&entry("a", path)).contains(expected), "{path}");
        }
        assert!(what(&entry("../a", "a")).contains("called `../a`"));
        assert!(what(&entry("a", "a").replace("1:1.0", "1 0")).contains("version `1 0`"));
        assert!(what(&entry("a", "a").replace("SHA256", "SHA1")).contains("no SHA256"));
        assert!(what(&entry("a", "a").replace("Size: 4", "Size: -4")).contains("no size"));
    }

    #[test]
    fn two_contents_under_one_version_contradict() {
        let mut index = Index::default();
        let other = entry("a", "other").replace(&Sha256::of("a").to_string(), &Sha256::of("other").to_string());
        index.add(0, &(entry("a", "a") + &other), "x").unwrap();
        index.add(1, &entry("a", "a"), "x").unwrap();
        let (archive, found) = index.find("a", "1:1.0", "all").unwrap();
        assert_eq!(index.contradiction(archive, found).unwrap().path, "other");
        assert!(index.contradiction(1, found).is_none());
    }
}
