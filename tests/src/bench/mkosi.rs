//! mkosi making the same kind of disk from the same packages: what a bake of a disk is measured beside.
//!
//! It comes from Debian 13 like the image, in a tree of its own (`tests/mkosi/`), because the host's release has an older one or
//! none. Packages come from the local disk, as for a bake; there is no network in the sandbox, so none can be measured.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use pgkiln::cache::Cache;
use pgkiln::lock::relock::fetch_or_relock;
use pgkiln::lock::{Locked, Recipe};
use pgkiln::sandbox::Sandbox;

use crate::reference::Reference;
use crate::workspace;

/// Slots as `images/common/repart.d` has them, except that root and hash tree get no room to grow: less to write.
const PARTITIONS: [(&str, &str); 3] = [
    (
        "00-esp",
        "[Partition]\nType=esp\nFormat=vfat\nCopyFiles=/efi:/\nCopyFiles=/boot:/\nSizeMinBytes=512M\nSizeMaxBytes=512M\n",
    ),
    (
        "10-root",
        "[Partition]\nType=root\nFormat=squashfs\nCompression=zstd\nCompressionLevel=3\nCopyFiles=/\nVerity=data\n\
         VerityMatchKey=root\nMinimize=best\n",
    ),
    ("20-root-verity", "[Partition]\nType=root-verity\nVerity=hash\nVerityMatchKey=root\nMinimize=best\n"),
];

/// A tree with mkosi, and what it is to make.
pub(super) struct Mkosi {
    tree: PathBuf,
    archive: PathBuf,
    project: PathBuf,
    scratch: PathBuf,
    epoch: u64,
}

impl Mkosi {
    /// A project in `dir` (on the cache's file system) with the packages of `recipe`. The tree is made once and cached by its lock.
    pub(super) fn new(recipe: &Recipe<Locked>, cache: &Cache, dir: &Path) -> anyhow::Result<Self> {
        let own = Recipe::load(&workspace::root().join("tests/mkosi"))?.locked()?;
        let own = fetch_or_relock(own, cache, &|_| ()).context("fetching mkosi")?.recipe;
        let tree = cache.root().join("mkosi").join(own.lock().digest().to_string());
        if !tree.is_dir() {
            let scratch = cache.work_dir("mkosi-")?;
            let made = scratch.path().join("tree");
            Reference::new(&own, cache, &scratch.path().join("archive"))?.make(&made).context("making mkosi's tree")?;
            fs_err::create_dir_all(tree.parent().context("path")?)?;
            fs_err::rename(made, &tree)?;
        }
        let (archive, project, scratch) = (dir.join("archive"), dir.join("project"), dir.join("scratch"));
        Reference::with(recipe, &[own.lock()], cache, &archive)?;
        fs_err::create_dir_all(project.join("mkosi.repart"))?;
        fs_err::create_dir_all(project.join("cache"))?;
        fs_err::create_dir_all(&scratch)?;
        fs_err::write(project.join("mkosi.conf"), configuration(recipe))?;
        for (name, text) in PARTITIONS {
            fs_err::write(project.join(format!("mkosi.repart/{name}.conf")), text)?;
        }
        Ok(Self { tree, archive, project, scratch, epoch: recipe.lock().source_date_epoch })
    }

    /// Has it make the disk, from nothing but packages: how long that took, and the bytes the disk uses.
    pub(super) fn make(&self) -> anyhow::Result<(Duration, u64)> {
        let sandbox = Sandbox::new(&self.tree, self.epoch)
            .bind(&self.archive, "mnt", true)
            .bind(&self.project, "srv", false)
            .bind(&self.scratch, "var/tmp", false);
        let started = Instant::now();
        sandbox.run(&["mkosi", "--directory=/srv", "--force", "build"]).context("running mkosi")?;
        let elapsed = started.elapsed();
        let disk = fs_err::metadata(self.project.join("out/image.raw"))?;
        Ok((elapsed, disk.blocks() * 512))
    }
}

fn configuration(recipe: &Recipe<Locked>) -> String {
    let suite = &recipe.image().suite;
    let mut text = format!(
        "[Distribution]\nDistribution=debian\nRelease={suite}\nLocalMirror=file:///mnt\n\n\
         [Output]\nFormat=disk\nOutput=image\nSplitArtifacts=\nOutputDirectory=/srv/out\n\n\
         [Build]\nPackageCacheDirectory=/srv/cache\nWorkspaceDirectory=/var/tmp\n\n\
         [Content]\nBootable=yes\nBootloader=systemd-boot\nWithRecommends=no\nWithDocs=no\nPackages=\n"
    );
    for package in &recipe.lock().packages {
        let _ = writeln!(text, "  {}", package.name);
    }
    text
}
