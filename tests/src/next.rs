//! The next version of the image under test, as an update set: the same recipe with one more package and, where the mirror has
//! it, the pgBackRest of Debian's next release; one whose agent does not work, and some in which one service does not.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use pgkiln::bake;
use pgkiln::cli::default_cache_dir;
use pgkiln::lock::Lock;
use pgkiln::outputs::Format;
use pgkiln::progress::Ui;
use pgkiln::tool::{Cmd, table};

use crate::{binary, workspace};

/// A package that sorts before all others of the recipe: everything after it moves.
const PACKAGE: &str = "acl";
/// A component that must be the same version on both ends of a connection.
const COMPONENT: &str = "pgbackrest";
/// Where a later one is, and only this is taken from there with what it needs.
const SUITES: (&str, &str) = (r#"suites = ["trixie", "#, r#"suites = ["forky", "trixie", "#);
/// Mirrors keep a release that is not out less carefully; what is wanted of it is another version, not a recent one.
const FROZEN: &str = "Acquire::Check-Valid-Until \"false\";\n";
/// An agent that cannot be one.
const BROKEN: &str = "#!/bin/sh\necho broken on purpose >&2\nexit 3\n";

/// What a service's unit has in the version in which it cannot start.
const CANNOT_START: &str = "[Service]\nExecStartPre=\nExecStart=\nExecStart=/bin/false\n";

/// A baked set.
#[derive(Debug, Clone)]
pub struct Next {
    /// Directory of the set.
    pub dir: PathBuf,
    /// Its version.
    pub version: String,
    /// Upstream version of its pgBackRest, if that is another one than before.
    pub pgbackrest: Option<String>,
}

impl Next {
    /// Puts what a node needs of the set below a directory of its `/var`; hundreds of megabytes, which are read only.
    pub fn give(&self, to: &Path) -> anyhow::Result<()> {
        fs_err::create_dir_all(to)?;
        for entry in fs_err::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
            if !name.ends_with(".squashfs") && fs_err::hard_link(&path, to.join(&name)).is_err() {
                Cmd::new(&table::CP).arg(&path).arg(to.join(name)).run()?;
            }
        }
        Ok(())
    }
}

/// Bakes both in a copy of the recipe with a lock of its own: the version that works, and one whose agent does not.
pub fn bake() -> anyhow::Result<[Next; 2]> {
    let dir = dir();
    let images = dir.join("images");
    let recipe = images.join("debian-13");
    if images.exists() {
        fs_err::remove_dir_all(&images)?;
    }
    fs_err::create_dir_all(&recipe)?;
    let common = workspace::image("common");
    Cmd::new(&table::CP).arg("--archive").arg(common).arg(images.join("common")).run()?;
    let text = fs_err::read_to_string(workspace::image("debian-13").join("image.toml"))?;
    let changed = text.replacen("packages = [\n", &format!("packages = [\n  \"{PACKAGE}\",\n"), 1);
    ensure!(changed != text, "the recipe has no list of packages");
    fs_err::write(recipe.join("image.toml"), changed)?;
    let locked = binary::run(binary::pgkiln().arg("lock").arg(&recipe));
    ensure!(locked.code == Some(0), "locking the next version: {}", locked.stderr);
    let pgbackrest = later_pgbackrest(&recipe)?;
    let broken = dir.join("broken-agent");
    fs_err::write(&broken, BROKEN)?;
    fs_err::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok([bake_set("good", None, pgbackrest.clone())?, bake_set("broken", Some(broken), pgbackrest)?])
}

/// Bakes one more, after [`bake`]: agent and everything else work, but this service cannot start.
pub fn bake_without(service: &str) -> anyhow::Result<Next> {
    let units = dir().join("images/common/tree/usr/lib/systemd/system");
    let drop_in = units.join(format!("{service}.service.d/zz-broken.conf"));
    fs_err::create_dir_all(drop_in.parent().context("it is in a directory")?)?;
    fs_err::write(&drop_in, CANNOT_START)?;
    let baked = bake_set(&format!("without-{service}"), None, None);
    fs_err::remove_file(&drop_in)?;
    baked
}

fn dir() -> PathBuf {
    workspace::root().join("target/selftest/next")
}

fn bake_set(name: &str, agent: Option<PathBuf>, pgbackrest: Option<String>) -> anyhow::Result<Next> {
    let options = bake::Options {
        formats: Some(vec![Format::Update]),
        tools: workspace::image("tools"),
        relock: true,
        agent,
        ..bake::Options::new(dir().join("images/debian-13"), dir().join(name))
    };
    let baked = bake::bake(&options, &Ui::silent(default_cache_dir()))?;
    let dir = baked.manifest.parent().context("a manifest has a directory")?.to_owned();
    Ok(Next { dir, version: baked.version, pgbackrest })
}

/// Locks the recipe again with the pgBackRest of Debian's next release, and nothing else of it that is not needed. `None`, and
/// said aloud, where the mirror has no such thing: recipe and lock are as they were.
fn later_pgbackrest(recipe: &Path) -> anyhow::Result<Option<String>> {
    let (file, lock) = (recipe.join("image.toml"), recipe.join("image.lock"));
    let locked = || Lock::load(&lock)?.context("it was locked");
    let (text, before) = (fs_err::read_to_string(&file)?, locked()?);
    let changed = text.replacen(SUITES.0, SUITES.1, 1);
    ensure!(changed != text, "the recipe has not `{}`", SUITES.0);
    fs_err::write(&file, changed)?;
    let apt = recipe.with_file_name("apt.conf");
    fs_err::write(&apt, FROZEN)?;
    let update = binary::pgkiln().args(["lock", "--update"]).arg(recipe).arg(COMPONENT).env("APT_CONFIG", &apt);
    let said = binary::run(update);
    let version = |lock: &Lock| lock.package(COMPONENT).map(|package| package.version.clone()).unwrap_or_default();
    let (old, new) = (version(&before), version(&locked()?));
    if said.code == Some(0) && upstream(&old) != upstream(&new) {
        // What moved; its changelog is farther in.
        let moved =
            said.stdout.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
        eprintln!("the next version has another pgBackRest: {}", moved.collect::<Vec<_>>().join("; "));
        return Ok(Some(upstream(&new).to_owned()));
    }
    eprintln!(
        "NOT SHOWN: what another pgBackRest does. Debian's next release cannot be had here, or has no other: {old}, {new}. {}",
        said.stderr.trim()
    );
    fs_err::write(&file, text)?;
    before.write_if_changed(&lock)?;
    Ok(None)
}

/// A package's version without Debian's revision.
fn upstream(version: &str) -> &str {
    version.split_once('-').map_or(version, |(upstream, _)| upstream)
}
