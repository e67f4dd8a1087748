//! Unpack: verified packages become files in a tree, as `dpkg --unpack` would do it, on all cores.
//!
//! dpkg unpacks one package after another because it may be interrupted on a live system. Here the tree is ours alone, so
//! only dpkg's *observable* order is kept:
//!
//! 1. The **base** (essential packages and what they depend on) is extracted first. Its preinst scripts run afterwards,
//!    since no shell exists before: what debootstrap and mmdebstrap do too.
//! 2. While dpkg configures the base, all other packages are extracted in parallel into a *stage* beside the tree.
//! 3. With the base configured, as `Pre-Depends` demands, the other preinst scripts run, in order; only then their files
//!    appear: diversions are applied and the stage is moved into the tree. A package whose preinst needs further
//!    pre-dependencies configured waits for another round ([`waves`]).
//! 4. The database says *unpacked*; `dpkg --configure --pending` does the rest ([`crate::configure`]): conffiles, postinst
//!    scripts and triggers are dpkg's own work.
//!
//! dpkg refuses to overwrite another package's file unless `Replaces` allows it; so do we ([`merge`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use anyhow::Context;

use crate::digest::Sha256;
use crate::sandbox::Sandbox;

pub mod control;
pub mod deb;
pub mod dpkg_db;
mod extract;
pub mod filter;
mod merge;
pub mod tree;
mod waves;

use deb::{Control, Deb};
use dpkg_db::Database;
use extract::{Extracted, Placement, Rules, extract, finish_dirs};
use filter::Filter;
use tree::{Ids, Tree};

/// One package to unpack: a file and the digest it must have.
#[derive(Debug, Clone)]
pub struct Package {
    /// The `.deb` in the cache.
    pub path: PathBuf,
    /// SHA-256 the lock names.
    pub sha256: Sha256,
    /// What the lock says it is; `None` for a package that no lock names.
    pub identity: Option<deb::Identity>,
}

/// A package with what its control archive says.
struct Known {
    package: Package,
    control: Control,
    conffiles: HashSet<String>,
    size: u64,
}

impl Known {
    fn name(&self) -> &str {
        self.control.paragraph.get("Package")
    }
}

/// Unpacks `packages` into the empty directory `root`. `stage` is a scratch directory on the same file system. `prepare` is
/// called once, when the base is unpacked but nothing is configured yet. `filter` is a dpkg configuration file with
/// `path-exclude` lines; the tree keeps it.
pub fn unpack(
    packages: &[Package],
    filter: &str,
    root: &Path,
    stage: &Path,
    sandbox: &Sandbox,
    prepare: &dyn Fn(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let known = parallel(packages, |package| {
        let control = Deb::open(&package.path, &package.sha256)?.control()?;
        if let Some(identity) = &package.identity {
            control.check_identity(identity, &package.path.display().to_string())?;
        }
        let conffiles = control.conffiles().into_iter().collect();
        let size = fs_err::metadata(&package.path)?.len();
        Ok(Known { package: package.clone(), control, conffiles, size })
    })?;
    let paragraphs: Vec<_> = known.iter().map(|known| &known.control.paragraph).collect();
    let has_preinst: Vec<_> = known.iter().map(|known| known.control.files.contains_key("preinst")).collect();
    let waves = waves::waves(&paragraphs, &has_preinst);
    let database = Database::create(root)?;
    if let Some(base_files) = known.iter().find(|known| known.name() == BASE_FILES)
        && !ships_link(base_files, "/bin")?
    {
        merged_usr(root)?;
    }
    let tree = Tree::open(root)?;
    fs_err::create_dir_all(root.join(filter::CONFIG_PATH).parent().context("path")?)?;
    fs_err::write(root.join(filter::CONFIG_PATH), filter)?;
    let filter = Filter::parse(filter);

    let (base, rest) = waves.split_first().context("no packages")?;
    let base: Vec<&Known> = base.iter().map(|index| &known[*index]).collect();
    let numeric = Ids::default();
    let mut found = extract_all(&base, &tree, &Rules { filter: &filter, ids: &numeric })?;
    merge::settle(&base, &mut found, &tree, &database, &Rules { filter: &filter, ids: &numeric })?;
    finish_dirs(&tree, found.iter().map(|one| one.dirs.as_slice()))?;
    for (known, found) in base.iter().zip(&found) {
        database.add(&known.control, &found.list)?;
    }
    for known in &base {
        preinst(known, &database, sandbox)?;
    }
    prepare(root)?;

    let ids = Ids::read(root)?;
    let rules = Rules { filter: &filter, ids: &ids };
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let (known, tree, rules) = (&known, &tree, &rules);
        scope.spawn(move || {
            for (n, wave) in rest.iter().enumerate() {
                let wave: Vec<&Known> = wave.iter().map(|index| &known[*index]).collect();
                let result = open_stage(&stage.join(n.to_string()), tree).and_then(|stage| {
                    let found = extract_all(&wave, &stage, rules)?;
                    finish_dirs(&stage, found.iter().map(|one| one.dirs.as_slice()))?;
                    Ok((stage, wave, found))
                });
                if sender.send(result).is_err() {
                    break;
                }
            }
        });
        let mut needed: Vec<String> = base.iter().map(|known| dpkg_db::instance_name(&known.control)).collect();
        let mut configured = HashSet::new();
        for n in 0..rest.len() {
            needed.retain(|name| configured.insert(name.clone()));
            configure_some(sandbox, &needed)?;
            let (stage, wave, mut found) = receiver.recv().context("extraction thread ended early")??;
            for known in &wave {
                preinst(known, &database, sandbox)?;
            }
            merge::apply_diversions(&stage, &wave, &found, &database)?;
            merge::settle(&wave, &mut found, &stage, &database, rules)?;
            merge::merge(&stage, tree, &wave, &mut found, &database, rules)?;
            let interests = database.file_interests()?;
            for (known, found) in wave.iter().zip(&found) {
                database.add(&known.control, &found.list)?;
            }
            database.activate(&interests, &found.iter().map(|one| one.list.as_slice()).collect::<Vec<_>>())?;
            needed = match rest.get(n + 1) {
                Some(next) => waves::pre_dependencies(known, next),
                None => Vec::new(),
            };
        }
        Ok(())
    })
}

/// Runs dpkg for named packages; their dependencies must be unpacked.
fn configure_some(sandbox: &Sandbox, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut argv = vec!["dpkg", "--configure"];
    argv.extend(names.iter().map(String::as_str));
    sandbox.run(&argv).context("configuring the packages that others need first")?;
    Ok(())
}

/// Runs a package's `preinst install` where dpkg would, with the environment dpkg gives it.
fn preinst(known: &Known, database: &Database, sandbox: &Sandbox) -> anyhow::Result<()> {
    let Some((_, script)) = known.control.files.get("preinst") else { return Ok(()) };
    let path = database.file("tmp.ci/preinst");
    fs_err::write(&path, script)?;
    dpkg_db::set_mode(&path, 0o755)?;
    sandbox
        .clone()
        .env("DPKG_MAINTSCRIPT_NAME", "preinst")
        .env("DPKG_MAINTSCRIPT_PACKAGE", known.name())
        .env("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1")
        .env("DPKG_MAINTSCRIPT_ARCH", known.control.paragraph.get("Architecture"))
        .env("DPKG_ADMINDIR", "/var/lib/dpkg")
        .env("DPKG_ROOT", "")
        .run(&["/var/lib/dpkg/tmp.ci/preinst", "install"])
        .with_context(|| format!("preparing to install `{}`", known.name()))?;
    fs_err::remove_file(&path)?;
    Ok(())
}

/// The package that ships the links from the top into `/usr`, from Debian 13 and Ubuntu 24.04 on. Before that it ships
/// directories, though `/usr` is merged in all we support: whoever makes the tree must make the links, before the first file
/// appears (debootstrap and mmdebstrap do the same).
const BASE_FILES: &str = "base-files";

/// Whether a package has `path` as a symbolic link.
fn ships_link(known: &Known, path: &str) -> anyhow::Result<bool> {
    let deb = Deb::open(&known.package.path, &known.package.sha256)?;
    for entry in deb.data()?.entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_symlink() && tree::absolute(&entry.path()?)? == path {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The directories that are links into `/usr`.
const LINKS: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

fn merged_usr(root: &Path) -> anyhow::Result<()> {
    for name in LINKS {
        fs_err::create_dir_all(root.join("usr").join(name))?;
        fs_err::os::unix::fs::symlink(Path::new("usr").join(name), root.join(name))?;
    }
    Ok(())
}

/// A staging tree: empty but for the symbolic links at the top of the real one (`/bin -> usr/bin`) and what they lead to.
fn open_stage(path: &Path, tree: &Tree) -> anyhow::Result<Tree> {
    fs_err::create_dir_all(path)?;
    let stage = Tree::open(path)?;
    for entry in fs_err::read_dir(tree.path())? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            let target = fs_err::read_link(entry.path())?;
            if entry.path().is_dir() {
                stage.ensure_dir(&tree::absolute(&target)?)?;
            }
            fs_err::os::unix::fs::symlink(target, path.join(entry.file_name()))?;
        }
    }
    Ok(stage)
}

/// Extracts packages at once, biggest first; results in the order of `packages`.
fn extract_all(packages: &[&Known], tree: &Tree, rules: &Rules) -> anyhow::Result<Vec<Extracted>> {
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(packages[*index].size));
    let found = parallel(&order, |index| {
        let known = packages[*index];
        let deb = Deb::open(&known.package.path, &known.package.sha256)?;
        let placement = Placement { conffiles: &known.conffiles, only: None, divert: &str::to_owned };
        let found = extract(&deb, tree, rules, &placement).with_context(|| format!("unpacking `{}`", known.name()))?;
        Ok((*index, found))
    })?;
    let mut sorted = found;
    sorted.sort_by_key(|(index, _)| *index);
    Ok(sorted.into_iter().map(|(_, found)| found).collect())
}

/// Maps on all cores, taking items in order; the first error wins.
pub fn parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(items.len()));
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    if result.is_err() {
                        next.store(items.len(), Ordering::Relaxed);
                    }
                    match results.lock() {
                        Ok(mut results) => results.push((index, result)),
                        Err(_) => break,
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().map_err(|_| anyhow::anyhow!("a worker thread panicked"))?;
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_from_before_the_merged_usr_are_unpacked_into_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, stage) = (dir.path().join("root"), dir.path().join("stage"));
        merged_usr(&root).unwrap();
        let root = Tree::open(&root).unwrap();
        root.ensure_dir("/bin").unwrap();
        let stage = open_stage(&stage, &root).unwrap();
        for tree in [&root, &stage] {
            tree.ensure_dir("/lib/systemd/system").unwrap();
            assert!(tree.path().join("usr/lib/systemd/system").is_dir());
            assert!(tree.path().join("lib").is_symlink());
        }
    }
}
