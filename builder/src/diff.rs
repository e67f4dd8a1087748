//! What differs between two locks or two baked images, as far as a lock and a `manifest.json` know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::configure::seal::FileEntry;
use crate::digest::Sha256;
use crate::lock::Lock;
use crate::lock::relock::{self, Contents, Drift};
use crate::problem::Problem;

/// One of the two things compared.
#[derive(Debug)]
pub struct Side {
    /// The file it was read from.
    pub file: PathBuf,
    packages: Contents,
    suites: BTreeMap<String, String>,
    sizes: BTreeMap<String, u64>,
    /// Only a manifest knows.
    files: Option<BTreeMap<String, FileEntry>>,
}

/// What of a manifest is compared.
#[derive(Debug, Deserialize)]
struct Manifest {
    packages: Vec<Package>,
    files: Vec<FileEntry>,
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    sha256: Sha256,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    bytes: u64,
}

/// Something that has another value.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Change<T> {
    /// What it is.
    pub name: String,
    /// `None`: it is new.
    pub old: Option<T>,
    /// `None`: it is gone.
    pub new: Option<T>,
}

/// Paths of one kind.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Paths {
    /// Only in the new one.
    pub added: Vec<String>,
    /// Only in the old one.
    pub removed: Vec<String>,
    /// Other content, mode or owner.
    pub changed: Vec<String>,
}

/// Everything that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Packages.
    pub packages: Vec<Drift>,
    /// Dates of the signed suites, where both are locks.
    pub suites: Vec<Change<String>>,
    /// Bytes of packages or outputs.
    pub sizes: Vec<Change<u64>>,
    /// systemd units and what is enabled, where both are manifests.
    pub units: Option<Paths>,
    /// All files, where both are manifests.
    pub files: Option<Paths>,
}

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        let none = |paths: &Option<Paths>| paths.as_ref().is_none_or(Paths::is_empty);
        self.packages.is_empty() && self.suites.is_empty() && self.sizes.is_empty() && none(&self.files)
    }
}

impl Paths {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl Side {
    /// Reads a lock or a manifest, or the one in a directory: what was baked says more than what was locked.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let inside = ["manifest.json", "image.lock"].map(|name| path.join(name));
        let file = match path.is_dir() {
            true => inside.into_iter().find(|file| file.is_file()),
            false => Some(path.to_owned()),
        };
        let remedy = "give an image.lock, a manifest.json, or a directory with one of them (images/NAME, out/NAME)";
        let Some(file) = file.filter(|file| file.is_file()) else {
            let what = "there is neither a lock nor a baked image here";
            return Err(Problem::new(what, path.display().to_string(), remedy).into());
        };
        let text = fs_err::read_to_string(&file)?;
        if text.trim_start().starts_with('{') {
            let manifest = serde_json::from_str(&text).map_err(|error| {
                Problem::new(format!("not a manifest: {error}"), file.display().to_string(), remedy)
            })?;
            return Ok(Self::of_manifest(file, manifest));
        }
        let lock = Lock::parse(&text, &file).context("comparing locks")?;
        Ok(Self::of_lock(file, &lock))
    }

    fn of_lock(file: PathBuf, lock: &Lock) -> Self {
        let package = |one: &crate::lock::Package| (one.name.clone(), (one.version.clone(), one.sha256));
        let suite = |one: &crate::lock::Suite| (format!("{} {}", one.archive, one.suite), one.date.to_string());
        let bytes = lock.packages.iter().map(|package| package.size).sum();
        Self {
            file,
            packages: lock.packages.iter().map(package).collect(),
            suites: lock.suites.iter().map(suite).collect(),
            sizes: BTreeMap::from([("packages".to_owned(), bytes)]),
            files: None,
        }
    }

    fn of_manifest(file: PathBuf, manifest: Manifest) -> Self {
        Self {
            file,
            packages: manifest.packages.into_iter().map(|one| (one.name, (one.version, one.sha256))).collect(),
            suites: BTreeMap::new(),
            sizes: manifest.outputs.into_iter().map(|one| (one.name, one.bytes)).collect(),
            files: Some(manifest.files.into_iter().map(|one| (one.path.clone(), one)).collect()),
        }
    }
}

/// Compares. What only one of the two knows is not a difference.
pub fn diff(old: &Side, new: &Side) -> Difference {
    let same_kind = old.files.is_some() == new.files.is_some();
    let files = old.files.as_ref().zip(new.files.as_ref());
    let (suites, sizes) = match same_kind {
        true => (changes(&old.suites, &new.suites), changes(&old.sizes, &new.sizes)),
        false => (Vec::new(), Vec::new()),
    };
    Difference {
        packages: relock::drift_of(&old.packages, &new.packages),
        suites,
        sizes,
        units: files.map(|(old, new)| paths(old, new, &is_unit)),
        files: files.map(|(old, new)| paths(old, new, &|_| true)),
    }
}

fn changes<T: Clone + PartialEq>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<Change<T>> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let change =
        |name: &String| Change { name: name.clone(), old: old.get(name).cloned(), new: new.get(name).cloned() };
    names.into_iter().map(change).filter(|change| change.old != change.new).collect()
}

fn paths(old: &BTreeMap<String, FileEntry>, new: &BTreeMap<String, FileEntry>, wanted: &dyn Fn(&str) -> bool) -> Paths {
    let only = |here: &BTreeMap<String, FileEntry>, there: &BTreeMap<String, FileEntry>| {
        here.keys().filter(|path| wanted(path) && !there.contains_key(*path)).cloned().collect()
    };
    let other = |(path, entry): &(&String, &FileEntry)| {
        // Which package ships a file is no property of the file.
        let same =
            |found: &FileEntry| FileEntry { owner_package: found.owner_package.clone(), ..(*entry).clone() } == *found;
        wanted(path) && new.get(*path).is_some_and(|found| !same(found))
    };
    Paths {
        added: only(new, old),
        removed: only(old, new),
        changed: old.iter().filter(other).map(|(path, _)| path.clone()).collect(),
    }
}

/// Unit files, and the links that enable them.
fn is_unit(path: &str) -> bool {
    let Some((_, below)) = path.split_once("/systemd/system/") else { return false };
    let kinds = [".service", ".socket", ".timer", ".target", ".mount", ".path", ".slice", ".automount"];
    kinds.iter().any(|kind| below.ends_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(files: &[(&str, &str)], packages: &[(&str, &str)], bytes: u64) -> Side {
        let file = |(path, content): &(&str, &str)| FileEntry {
            path: (*path).to_owned(),
            owner_package: None,
            mode: "0100644".to_owned(),
            uid: 0,
            gid: 0,
            sha256: Some(Sha256::of(content)),
        };
        Side::of_manifest(
            PathBuf::new(),
            Manifest {
                packages: (packages.iter())
                    .map(|(name, version)| Package {
                        name: (*name).to_owned(),
                        version: (*version).to_owned(),
                        sha256: Sha256::of(format!("{name} {version}")),
                    })
                    .collect(),
                files: files.iter().map(file).collect(),
                outputs: vec![Output { name: "root".to_owned(), bytes }],
            },
        )
    }

    #[test]
    fn packages_files_units_and_sizes() {
        let service = "/usr/lib/systemd/system/a.service";
        let old = side(&[("/a", "1"), ("/b", "1"), (service, "1")], &[("p", "1"), ("q", "1")], 7);
        let new = side(&[("/a", "2"), ("/c", "1"), (service, "2")], &[("p", "2"), ("q", "1")], 8);
        let found = diff(&old, &new);
        assert_eq!(found.packages.iter().map(ToString::to_string).collect::<Vec<_>>(), ["p 1 → 2"]);
        let files = found.files.as_ref().unwrap();
        assert_eq!((&*files.added, &*files.removed), (&["/c".to_owned()][..], &["/b".to_owned()][..]));
        assert_eq!(files.changed, ["/a", service]);
        assert_eq!(found.units.as_ref().unwrap().changed, [service]);
        assert_eq!((found.sizes[0].old, found.sizes[0].new), (Some(7), Some(8)));
        assert!(diff(&old, &old).is_empty() && !found.is_empty());
    }
}
