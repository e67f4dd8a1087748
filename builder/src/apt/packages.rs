//! Package indexes: the part of each entry that locking needs.

use std::collections::BTreeMap;

use anyhow::Context;

use super::deb822;
use crate::digest::Sha256;

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
}

/// All entries of the recipe's archives by package name, in the order of the recipe.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<String, Vec<(usize, Entry)>>,
}

impl Index {
    /// Adds the text of a verified `Packages` file; `archive` is the archive's place in the recipe.
    pub fn add(&mut self, archive: usize, text: &str) -> anyhow::Result<()> {
        for paragraph in deb822::paragraphs(text) {
            let mut entry = Entry {
                name: String::new(),
                version: String::new(),
                arch: String::new(),
                path: String::new(),
                size: 0,
                sha256: Sha256::of(""),
                essential: false,
            };
            let mut digest = None;
            for (field, value) in paragraph.fields() {
                match field {
                    "Package" => value.clone_into(&mut entry.name),
                    "Version" => value.clone_into(&mut entry.version),
                    "Architecture" => value.clone_into(&mut entry.arch),
                    "Filename" => value.trim_start_matches("./").clone_into(&mut entry.path),
                    "Size" => entry.size = value.parse().with_context(|| format!("size of {}", entry.name))?,
                    "SHA256" => digest = Some(value.parse()?),
                    "Essential" => entry.essential = value == "yes",
                    _ => {}
                }
            }
            entry.sha256 = digest.with_context(|| format!("package {} has no SHA256 in the index", entry.name))?;
            anyhow::ensure!(is_safe_path(&entry.path), "package {} has the file name `{}`", entry.name, entry.path);
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
}

/// A path that stays below the archive and needs no escaping in a URL's path or in TOML.
fn is_safe_path(path: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "+-._~/:%".contains(c);
    !path.is_empty() && !path.starts_with('/') && path.chars().all(good) && path.split('/').all(|part| part != "..")
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
        index.add(1, &entry("a", "pool/b/a.deb")).unwrap();
        index.add(0, &(entry("a", "pool/a/a.deb") + "Package: e\nVersion: 2\nEssential: yes\nFilename: e\nSize: 1\nSHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n")).unwrap();
        assert_eq!(index.find("a", "1:1.0", "all").unwrap().0, 1);
        assert!(index.find("a", "1.0", "all").is_none());
        assert_eq!(index.essential(), ["e"]);
    }

    #[test]
    fn a_file_name_that_leaves_the_archive_is_refused() {
        for path in ["../../etc/passwd", "/etc/passwd", "pool/a b.deb", "pool/\"a.deb", ""] {
            assert!(Index::default().add(0, &entry("a", path)).is_err(), "{path}");
        }
    }
}
