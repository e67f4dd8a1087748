//! Whether what a bake is to make has room, asked before anything long runs.
//!
//! An estimate from what a lock knows: the sizes of packages. The shares are those of this project's images with every format
//! (`debian-13`, both variants), rounded up. A tree that has to be made after all is asked for once more (`tree.rs`).

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cache::{Cache, free_bytes};
use crate::lock::{Locked, Recipe};
use crate::outputs::Format;
use crate::problem::Problem;
use crate::progress::size;

/// The root image, in percent of its packages (measured 115 to 120).
const ROOT: u64 = 125;
/// An unpacked tree, in percent of its packages (measured 310 to 320).
const TREE: u64 = 330;
/// A disk or another form of it, in percent of the root image (measured 107: hash tree, kernel and boot loader beside the root).
const DISK: u64 = 110;

/// Bytes that are needed, and where.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Needs {
    /// In the cache, where everything is made.
    cache: u64,
    /// In the directory of the outputs, if that is on another file system: what is made moves there otherwise.
    out: u64,
}

/// Refuses a bake that would fill a disk.
pub(super) fn check(
    recipes: &[Recipe<Locked>; 2],
    formats: &[Format],
    cache: &Cache,
    out: &Path,
) -> anyhow::Result<()> {
    let packages = |recipe: &Recipe<Locked>| recipe.lock().packages.iter().map(|package| package.size).sum::<u64>();
    let mut needs = outputs(packages(&recipes[0]), formats);
    for recipe in recipes {
        let missing = recipe.lock().packages.iter().filter(|package| !cache.has(&package.sha256, package.size));
        let missing: u64 = missing.map(|package| package.size).sum();
        // Whose packages are all there has its tree, too, or has it made next.
        needs.cache += missing + if missing > 0 { packages(recipe) * TREE / 100 } else { 0 };
    }
    let out = existing(out)?;
    let elsewhere = fs_err::metadata(&out)?.dev() != fs_err::metadata(cache.root())?.dev();
    let remedy = "free some, name fewer formats, or name a cache on another disk with --cache DIR";
    refuse(needs.cache, cache.free_bytes()?, cache.root(), remedy)?;
    if elsewhere {
        refuse(needs.out, free_bytes(&out)?, &out, "free some, name fewer formats, or another place with --out DIR")?;
    }
    Ok(())
}

/// What `formats` take of an image with so many bytes of packages.
fn outputs(packages: u64, formats: &[Format]) -> Needs {
    let root = packages * ROOT / 100;
    let disk = root * DISK / 100;
    let mut formats = formats.to_vec();
    formats.sort();
    formats.dedup();
    let mut needs = Needs { cache: root, out: root };
    if formats.iter().any(|format| format.needs_disk()) {
        needs.cache += disk;
    }
    for format in formats {
        let (made, kept) = copies(format);
        needs.cache += made * disk;
        needs.out += kept * disk;
    }
    needs
}

/// How often the disk is written for a format, beside the disk itself, and how often it is in what remains.
fn copies(format: Format) -> (u64, u64) {
    match format {
        Format::Tree => (0, 0),
        // Further names of what the disk is made of.
        Format::Raw | Format::Update => (0, 1),
        // As a medium of its own, and as a file with the image's name.
        Format::Iso => (2, 1),
        Format::Raw4k | Format::Qcow2 | Format::Vhd | Format::Vmdk | Format::Ova | Format::Gce | Format::Pxe => (1, 1),
    }
}

fn refuse(needed: u64, free: u64, place: &Path, remedy: &str) -> Result<(), Problem> {
    if free >= needed {
        return Ok(());
    }
    let what = format!("not enough disk space: {} free, about {} needed", size(free), size(needed));
    Err(Problem::new(what, place.display().to_string(), remedy))
}

/// The nearest directory that is there.
fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path).context("path of the outputs")?;
    path.ancestors().find(|path| path.is_dir()).map(Path::to_owned).context("there is always a root directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn every_format_counts_once_and_names_of_the_same_file_not_at_all() {
        let of = |formats: &[Format]| outputs(100 * MB, formats);
        assert_eq!(of(&[Format::Tree]), Needs { cache: 125 * MB, out: 125 * MB });
        let raw = of(&[Format::Raw]);
        assert!(raw.cache == of(&[Format::Raw, Format::Update, Format::Raw]).cache && raw.cache > 250 * MB, "{raw:?}");
        assert!(of(&[Format::Raw, Format::Update]).out > raw.out, "two copies on another file system");
        let all = of(&Format::ALL);
        assert!(all.cache > 10 * 125 * MB && all.out > 10 * 125 * MB && all.cache < 20 * 125 * MB, "{all:?}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        refuse(5 * MB, 5 * MB, Path::new("/"), "").unwrap();
        let problem = refuse(3_400 * MB, 900 * MB, Path::new("/var/cache"), "free some").unwrap_err();
        assert_eq!(problem.what, "not enough disk space: 900 MB free, about 3400 MB needed");
        assert_eq!((problem.place.as_str(), problem.remedy.as_str()), ("/var/cache", "free some"));
    }

    #[test]
    fn outputs_that_have_no_directory_yet_are_asked_for_where_they_will_be() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing(&dir.path().join("a/b")).unwrap(), dir.path());
        assert!(existing(Path::new("out/never")).unwrap().is_dir());
    }
}
