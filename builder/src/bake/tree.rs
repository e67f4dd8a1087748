//! Cached root trees: packages unpacked and configured, keyed by the digest of everything that decides their content.
//!
//! The agent, the recipe's `trees` and the outputs are not part of it; a change there assembles again and makes no tree.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::extensions;
use super::work::Work;
use crate::cache::Cache;
use crate::configure::{self, seal};
use crate::digest::Sha256;
use crate::lock::{Locked, Recipe};
use crate::problem::Problem;
use crate::progress::{Step, size};
use crate::sandbox::Sandbox;
use crate::unpack::{self, filter::Filter};

/// The code that makes a tree: another pgkiln makes another tree.
const CODE: [&str; 17] = [
    include_str!("extensions.rs"),
    include_str!("../sandbox.rs"),
    include_str!("../configure.rs"),
    include_str!("../configure/clean.rs"),
    include_str!("../configure/ids.rs"),
    include_str!("../configure/seal.rs"),
    include_str!("../configure/var.rs"),
    include_str!("../unpack/mod.rs"),
    include_str!("../unpack/control.rs"),
    include_str!("../unpack/deb.rs"),
    include_str!("../unpack/dpkg_db.rs"),
    include_str!("../unpack/extract.rs"),
    include_str!("../unpack/filter.rs"),
    include_str!("../unpack/merge.rs"),
    include_str!("../unpack/tree.rs"),
    include_str!("../unpack/waves.rs"),
    include_str!("tree.rs"),
];

/// Disk space a bake needs per byte of packages: the unpacked tree, and the image made of it.
const SPACE_PER_BYTE: u64 = 5;

/// How many trees the cache keeps.
const TREES_KEPT: usize = 6;

/// A finished tree. Nobody replaces it while this value lives.
#[derive(Debug)]
pub struct RootTree {
    /// The tree.
    pub root: PathBuf,
    /// Everything in it.
    pub files: Vec<seal::FileEntry>,
    /// Whether it was in the cache.
    pub cached: bool,
    _in_use: File,
}

/// The tree of a recipe: from the cache, unless `fresh`, or made now from cached packages.
pub(super) fn root_tree(
    recipe: &Recipe<Locked>,
    cache: &Cache,
    work: &Work,
    fresh: bool,
    step: &Step<'_>,
) -> anyhow::Result<RootTree> {
    let key = key(recipe);
    let place = cache.root().join("trees").join(key.to_string());
    fs_err::create_dir_all(place.parent().context("path")?)?;
    let lock = fs_err::OpenOptions::new().create(true).append(true).open(place.with_extension("lock"))?.into_parts().0;
    if !fresh {
        lock.lock_shared()?;
        if let Some(files) = usable(&place)? {
            return Ok(RootTree { root: place.join("root"), files, cached: true, _in_use: lock });
        }
        lock.unlock()?;
    }
    lock.lock().context("waiting for another bake of the same tree")?;
    check_space(recipe, cache)?;
    let made = work.path().join(format!("tree-{key}"));
    let files = make(recipe, cache, &made, &work.path().join(format!("stage-{key}")), step)?;
    if place.exists() {
        fs_err::rename(&place, work.path().join(format!("old-{key}")))?;
    }
    fs_err::rename(&made, &place)?;
    prune(place.parent().context("path")?)?;
    lock.lock_shared()?;
    Ok(RootTree { root: place.join("root"), files, cached: false, _in_use: lock })
}

/// What to say about a tree when its step is done.
pub(super) fn remark(tree: &RootTree) -> String {
    let origin = if tree.cached { "cached" } else { "made" };
    format!("{} files, {origin}", tree.files.len())
}

/// Digest of everything that decides a tree.
pub(super) fn key(recipe: &Recipe<Locked>) -> Sha256 {
    let image = recipe.image();
    let filter = Filter::config(&image.path_excludes, &image.path_includes);
    let lock = recipe.lock().digest().to_string();
    let extensions = image.extensions.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    let parts: Vec<String> = CODE
        .iter()
        .copied()
        .chain([lock.as_str(), &filter, &extensions])
        .map(|part| Sha256::of(part).to_string())
        .collect();
    Sha256::of(parts.join("\n"))
}

/// The list of a complete tree. Trees are not flushed to disk (a bake would wait for it): one from before a restart of the
/// host may have been cut off and is made again.
fn usable(place: &Path) -> anyhow::Result<Option<Vec<seal::FileEntry>>> {
    if !fs_err::read_to_string(place.join("boot_id")).is_ok_and(|made| made == boot_id()) {
        return Ok(None);
    }
    let files = serde_json::from_slice(&fs_err::read(place.join("files.json"))?).context("reading files.json")?;
    fs_err::write(place.join("boot_id"), boot_id())?;
    Ok(Some(files))
}

fn boot_id() -> String {
    fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn make(
    recipe: &Recipe<Locked>,
    cache: &Cache,
    made: &Path,
    stage: &Path,
    step: &Step<'_>,
) -> anyhow::Result<Vec<seal::FileEntry>> {
    let lock = recipe.lock();
    let image = recipe.image();
    let root = made.join("root");
    fs_err::create_dir_all(&root)?;
    let packages: Vec<unpack::Package> = lock
        .packages
        .iter()
        .map(|package| unpack::Package {
            path: cache.cas_path(&package.sha256),
            sha256: package.sha256,
            identity: Some(package.identity()),
        })
        .collect();
    let sandbox = Sandbox::new(&root, lock.source_date_epoch);
    let filter = Filter::config(&image.path_excludes, &image.path_includes);
    step.detail("unpack");
    unpack::unpack(&packages, &filter, &root, stage, &sandbox, &configure::prepare)?;
    step.detail("configure");
    configure::configure(&root, &sandbox)?;
    if !image.extensions.is_empty() {
        step.detail("extensions");
    }
    extensions::check(image, &sandbox)?;
    seal::clamp_times(&root, lock.source_date_epoch)?;
    let owners = unpack::dpkg_db::Database::open(&root).owners()?;
    // Packages older than the merged /usr still say /lib for /usr/lib.
    let owner = |path: &str| owners.get(path).or_else(|| owners.get(path.strip_prefix("/usr")?)).cloned();
    let files = seal::list(&root, &owner)?;
    fs_err::write(made.join("files.json"), serde_json::to_vec(&files)?)?;
    fs_err::write(made.join("boot_id"), boot_id())?;
    Ok(files)
}

fn check_space(recipe: &Recipe<Locked>, cache: &Cache) -> anyhow::Result<()> {
    let packages: u64 = recipe.lock().packages.iter().map(|package| package.size).sum();
    let (needed, free) = (packages * SPACE_PER_BYTE, cache.free_bytes()?);
    if free < needed {
        return Err(Problem::new(
            format!("not enough disk space: {} free, {} needed", size(free), size(needed)),
            cache.root().display().to_string(),
            "free some, or name a cache on another disk with --cache DIR",
        )
        .into());
    }
    Ok(())
}

/// Removes the trees that were not used for longest, if nobody uses them now.
fn prune(trees: &Path) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(trees)? {
        let path = entry?.path();
        if let Ok(used) = path.join("boot_id").metadata().and_then(|meta| meta.modified()) {
            found.push((used.elapsed().unwrap_or(Duration::ZERO), path));
        }
    }
    found.sort();
    for (_, path) in found.into_iter().skip(TREES_KEPT) {
        // Held until the tree is gone, and the file stays: whoever waits for it must find the same file there.
        let Ok(lock) = fs_err::File::open(path.with_extension("lock")) else { continue };
        let (lock, _) = lock.into_parts();
        if lock.try_lock().is_ok() {
            fs_err::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
