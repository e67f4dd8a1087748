//! The next version of the image under test, as an update set: the same recipe with one more package; and one whose agent does
//! not work.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use pgkiln::bake;
use pgkiln::cli::default_cache_dir;
use pgkiln::outputs::Format;
use pgkiln::progress::Ui;
use pgkiln::tool::{Cmd, table};

use crate::{binary, workspace};

/// A package that sorts before all others of the recipe: everything after it moves.
const PACKAGE: &str = "acl";
/// An agent that cannot be one.
const BROKEN: &str = "#!/bin/sh\necho broken on purpose >&2\nexit 3\n";

/// A baked set.
#[derive(Debug, Clone)]
pub struct Next {
    /// Directory of the set.
    pub dir: PathBuf,
    /// Its version.
    pub version: String,
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

/// Bakes both in a copy of the recipe with a lock of its own: the version that works, and one that does not.
pub fn bake() -> anyhow::Result<[Next; 2]> {
    let dir = workspace::root().join("target/selftest/next");
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
    let broken = dir.join("broken-agent");
    fs_err::write(&broken, BROKEN)?;
    fs_err::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let bake = |name: &str, agent: Option<PathBuf>| {
        let options = bake::Options {
            formats: Some(vec![Format::Update]),
            tools: workspace::image("tools"),
            relock: true,
            agent,
            ..bake::Options::new(&recipe, dir.join(name))
        };
        let baked = bake::bake(&options, &Ui::silent(default_cache_dir()))?;
        let dir = baked.manifest.parent().context("a manifest has a directory")?.to_owned();
        anyhow::Ok(Next { dir, version: baked.version })
    };
    Ok([bake("good", None)?, bake("broken", Some(broken))?])
}
