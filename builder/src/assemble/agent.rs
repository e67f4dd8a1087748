//! Our programs in the image, the agent and the initrd's: given, or built here so that the same source gives the same bytes on any
//! host.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use crate::cache::Cache;
use crate::digest::Sha256;
use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// Both programs and their digests.
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// Its digest.
    pub agent_sha256: Sha256,
    /// PID 1 of the initramfs; none where an image is baked without its sources, as a tree only.
    initrd: Option<(PathBuf, Sha256)>,
    /// Where those that were built here are until they are in the image.
    _dir: TempDir,
}

impl Programs {
    /// The agent `given` or the workspace's own, and the initrd's program. That one is always the workspace's: it belongs to
    /// this builder, as the list of modules does. It is built for every image, disk or not: the version depends on it.
    pub fn find(given: Option<&Path>, image_dir: &Path, cache: &Cache) -> anyhow::Result<Self> {
        let dir = cache.work_dir("programs-")?;
        let agent = match given {
            Some(path) => path.to_owned(),
            None => build("firstboot", image_dir, cache, dir.path()).context("building the agent")?,
        };
        let agent_sha256 = Sha256::of_file(&agent).context("reading the agent")?.0;
        let initrd = workspace(image_dir).ok().map(|_| {
            let program =
                build("pgkiln-initrd", image_dir, cache, dir.path()).context("building the initrd's program")?;
            let digest = Sha256::of_file(&program)?.0;
            anyhow::Ok((program, digest))
        });
        Ok(Self { agent, agent_sha256, initrd: initrd.transpose()?, _dir: dir })
    }

    /// What a version stands for.
    pub fn digests(&self) -> Vec<Sha256> {
        [self.agent_sha256].into_iter().chain(self.initrd.as_ref().map(|(_, digest)| *digest)).collect()
    }

    /// PID 1 of the initramfs and its digest, for a disk.
    pub fn initrd(&self, image_dir: &Path) -> anyhow::Result<(&Path, Sha256)> {
        match &self.initrd {
            Some((program, digest)) => Ok((program, *digest)),
            None => Err(no_sources(image_dir).into()),
        }
    }
}

/// Builds a package's program, static, with the paths of this machine mapped away, in a target directory of its own (other flags
/// than a developer's build, so the two never rebuild each other). A copy in `to`: what cargo wrote is the next checkout's that
/// bakes with this cache, as soon as the lock is gone.
fn build(package: &str, image_dir: &Path, cache: &Cache, to: &Path) -> anyhow::Result<PathBuf> {
    let workspace = workspace(image_dir)?;
    let target_dir = cache.root().join("agent");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    for (path, name) in [(Some(&workspace), "/pgkiln"), (Some(&target_dir), "/target"), (cargo_home.as_ref(), "/cargo")]
    {
        flags.extend(path.map(|path| format!("--remap-path-prefix={}={name}", path.display())));
    }
    let _alone = cache.lock("agent", || ())?;
    Cmd::new(&table::CARGO)
        .outside_cargo()
        .args(["build", "--locked", "--quiet", "--profile", "agent", "--package", package, "--target", &triple])
        .env("CARGO_TARGET_DIR", &target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .current_dir(&workspace)
        .run()?;
    let program = to.join(package);
    fs_err::copy(target_dir.join(triple).join("agent").join(package), &program)?;
    Ok(program)
}

/// The checkout an image's directory lies in.
fn workspace(image_dir: &Path) -> anyhow::Result<PathBuf> {
    let image_dir = fs_err::canonicalize(image_dir)?;
    let found = image_dir.ancestors().find(|dir| dir.join("firstboot/Cargo.toml").is_file());
    Ok(found.map(Path::to_owned).ok_or_else(|| no_sources(&image_dir))?)
}

fn no_sources(image_dir: &Path) -> Problem {
    Problem::new(
        "the agent's source is not beside the image",
        image_dir.display().to_string(),
        "bake an image of a checkout; for a `tree` alone it is enough to name a binary with --agent FILE",
    )
}

/// Role profiles of the checkout an image lies in; a directory that does not exist if there is none.
pub fn profiles(image_dir: &Path) -> PathBuf {
    workspace(image_dir).unwrap_or_default().join("profiles")
}
