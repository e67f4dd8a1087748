//! One recipe baked in two worlds that have nothing in common but what the bake may depend on.
//!
//! What must not matter is a field of [`Conditions`] or [`Place`]; to vary one thing more, add a field. Not varied: the kernel and
//! the model of the processor. The date is `faketime`'s, a library preloaded into pgkiln, cargo and
//! build scripts; rustc does not bear it, and nothing of the environment enters the sandbox, so what runs there has the real clock, which
//! moves on between two bakes but not by months. User and home are names in the environment: a bake is always root's.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;
use pgkiln::bake;
use pgkiln::cache::Cache;
use pgkiln::lock::Recipe;
use pgkiln::lock::relock::fetch_or_relock;
use pgkiln::progress::Ui;
use pgkiln::tool::table;
use walkdir::WalkDir;

use crate::binary::{self, Said};
use crate::workspace;

mod difference;

pub use difference::{Unpacker, differences};

/// What is around a bake.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// Output directory, below the scratch directory.
    pub out: &'static str,
    /// Time zone.
    pub zone: &'static str,
    /// Language of messages, order of letters.
    pub locale: &'static str,
    /// What new files must not allow.
    pub mask: u32,
    /// Name of who bakes, and of the home directory (which has nothing in it).
    pub user: &'static str,
    /// On one processor instead of all.
    pub one_processor: bool,
    /// How far the clock is put forward, as `faketime` reads it.
    pub later: Option<&'static str>,
}

impl Conditions {
    /// A day like any other.
    pub const USUAL: Self = Self {
        out: "first",
        zone: "UTC",
        locale: "C.UTF-8",
        mask: 0o022,
        user: "root",
        one_processor: false,
        later: None,
    };
    /// Nothing is as usual.
    pub const OTHER: Self = Self {
        out: "elsewhere/the second",
        zone: "Asia/Kolkata",
        locale: "tr_TR.UTF-8",
        mask: 0o077,
        user: "ayse",
        one_processor: true,
        later: Some("+400d"),
    };

    /// Bakes every format with a new root tree; the directory with the outputs.
    pub fn bake(&self, place: &Place, work: &Path) -> anyhow::Result<PathBuf> {
        let (out, home) = (work.join(self.out), work.join("home").join(self.user));
        fs_err::create_dir_all(&home)?;
        let mut cmd = binary::pgkiln().args(["bake", "--fresh", "--relock", "--format", "all"]);
        cmd = cmd.arg("--cache").arg(&place.cache).arg("--out").arg(&out);
        cmd = match &place.agent {
            Some(agent) => cmd.arg("--agent").arg(agent),
            None => cmd,
        };
        // The toolchain is an input, wherever its owner's home is.
        for (name, dir) in
            [("CARGO_HOME", place.cargo_home.clone()), ("RUSTUP_HOME", beside_home("RUSTUP_HOME", ".rustup"))]
        {
            cmd = match dir {
                Some(dir) => cmd.env(name, dir),
                None => cmd,
            };
        }
        let names = [("TZ", self.zone), ("LANG", self.locale), ("LC_ALL", self.locale)];
        cmd = names.into_iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value));
        cmd = cmd.env("USER", self.user).env("LOGNAME", self.user).env("HOME", &home).arg(&place.recipe);
        if let Some(later) = self.later {
            // Pauses are measured by the monotonic clock, which stays right; times of files too, or cargo would find all of
            // them too young.
            cmd = cmd.env("NO_FAKE_STAT", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            cmd = cmd.env("RUSTC", without_preload(work)?).wrapped_by(&table::FAKETIME, ["-f", later]);
        }
        let said = self.with_ours(|| binary::run(cmd))?;
        ensure!(said.code == Some(0), "baking {self:?}\n{}", said.stderr);
        Ok(out)
    }

    /// Runs something with this process's umask and processors changed: a child has both from its parent.
    fn with_ours(&self, run: impl FnOnce() -> Said) -> anyhow::Result<Said> {
        let me = Pid::from_raw(0);
        let all = sched_getaffinity(me).context("asking for our processors")?;
        if self.one_processor {
            let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu) == Ok(true)).context("no processor")?;
            let mut one = CpuSet::new();
            one.set(first)?;
            sched_setaffinity(me, &one).context("taking one processor")?;
        }
        let before = umask(Mode::from_bits_truncate(self.mask));
        let said = run();
        umask(before);
        sched_setaffinity(me, &all).context("taking all processors again")?;
        Ok(said)
    }
}

impl std::fmt::Display for Conditions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { out, zone, locale, mask, user, one_processor, later } = self;
        let processors = if *one_processor { "one processor" } else { "all processors" };
        let date = later.map_or_else(|| "today".to_owned(), |later| format!("today {later}"));
        write!(f, "{date}, {zone}, {locale}, umask {mask:03o}, as {user}, in `{out}`, {processors}")
    }
}

/// What a bake reads, and where it keeps things.
#[derive(Debug, Clone)]
pub struct Place {
    /// Directory of the recipe, in a checkout.
    pub recipe: PathBuf,
    /// The cache: packages, trees, and what cargo builds.
    pub cache: PathBuf,
    /// Where cargo has its sources.
    pub cargo_home: Option<PathBuf>,
    /// An agent to install instead of building the checkout's.
    pub agent: Option<PathBuf>,
}

impl Place {
    /// This checkout and this host's caches.
    pub fn here(recipe: &str, cache: &Cache) -> Self {
        let cargo_home = beside_home("CARGO_HOME", ".cargo");
        Self { recipe: workspace::image(recipe), cache: cache.root().to_owned(), cargo_home, agent: None }
    }

    /// The same sources and packages at other paths below `dir` (on the cache's file system), with the modes of a checkout
    /// under the strictest umask. Nothing that was made of them comes along: trees and programs are made again.
    pub fn elsewhere(&self, dir: &Path) -> anyhow::Result<Self> {
        let name = self.recipe.file_name().context("a recipe has a name")?;
        let sources = dir.join("sources");
        for entry in fs_err::read_dir(workspace::root())? {
            let entry = entry?;
            // The history, and what may be large and is made.
            if ![".git", "target", "out"].iter().any(|not| entry.file_name() == *not) {
                copy(&entry.path(), &sources.join(entry.file_name()))?;
            }
        }
        let ours = Cache::open(&self.cache)?;
        let cache = Cache::open(dir.join("cache"))?;
        for recipe in [sources.join("images").join(name), sources.join("images/tools")] {
            let fetched = lock_what_can_be_fetched(&recipe, &ours)?;
            for package in &fetched.lock().packages {
                let target = cache.cas_path(&package.sha256);
                fs_err::create_dir_all(target.parent().context("a cached file has a parent")?)?;
                if !target.exists() {
                    fs_err::hard_link(ours.cas_path(&package.sha256), target)?;
                }
            }
        }
        let cargo_home = self.cargo_home.as_ref().map(|home| linked(home, &dir.join("cargo home")));
        Ok(Self {
            recipe: sources.join("images").join(name),
            cache: cache.root().to_owned(),
            cargo_home: cargo_home.transpose()?,
            agent: self.agent.clone(),
        })
    }

    /// The tool tree of these bakes, which has what reads their outputs.
    pub fn tools(&self) -> anyhow::Result<PathBuf> {
        let ui = Ui::silent(self.cache.clone());
        Ok(bake::tool_tree(&self.recipe.with_file_name("tools"), &ui)?.root)
    }
}

/// rustc in today's world: with faketime's library its memory allocator waits for itself for ever. Not a wrapper, which build
/// scripts that ask rustc for its version go around.
fn without_preload(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("rustc-today");
    fs_err::write(&path, "#!/bin/sh\nunset LD_PRELOAD\nexec rustc \"$@\"\n")?;
    fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

/// What an environment variable names, else a directory of the home.
fn beside_home(variable: &str, dir: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(dir)).filter(|dir| dir.is_dir()))
}

/// A directory whose entries are links to those of another.
fn linked(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        fs_err::os::unix::fs::symlink(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to.to_owned())
}

/// Copies a file or directory; others than the owner may nothing.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in WalkDir::new(from) {
        let entry = entry?;
        let below = entry.path().strip_prefix(from)?;
        // Joined with nothing, a file's path would end with a slash.
        let target = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
        let kind = entry.file_type();
        if kind.is_dir() {
            fs_err::create_dir_all(&target)?;
        } else if kind.is_symlink() {
            fs_err::os::unix::fs::symlink(fs_err::read_link(entry.path())?, &target)?;
            continue;
        } else {
            fs_err::create_dir_all(target.parent().context("a file has a parent")?)?;
            fs_err::copy(entry.path(), &target)?;
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(&entry.metadata()?.permissions()) & 0o700;
        fs_err::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// Has a recipe's packages in the cache, and writes its lock anew where the archive no longer has all of them.
pub fn lock_what_can_be_fetched(recipe: &Path, cache: &Cache) -> anyhow::Result<Recipe<pgkiln::lock::Locked>> {
    let fetched = fetch_or_relock(Recipe::load(recipe)?.locked()?, cache, &|_| ())?.recipe;
    fetched.lock().write_if_changed(&recipe.join("image.lock"))?;
    Ok(fetched)
}
