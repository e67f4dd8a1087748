//! The reference a baked tree is measured against: what mmdebstrap makes of the very same packages, without a network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgkiln::cache::Cache;
use pgkiln::digest::Sha256;
use pgkiln::lock::{Lock, Locked, Recipe};
use pgkiln::tool::{Cmd, table};
use pgkiln::unpack::deb::Deb;

/// A local archive of a lock's packages, made of hard links into the cache.
#[derive(Debug)]
pub struct Reference {
    dir: PathBuf,
    suite: String,
    include: String,
    options: Vec<String>,
    epoch: u64,
}

impl Reference {
    /// Makes the archive in `dir` (on the cache's file system); the packages must be in the cache.
    pub fn new(recipe: &Recipe<Locked>, cache: &Cache, dir: &Path) -> anyhow::Result<Self> {
        Self::with(recipe, &[], cache, dir)
    }

    /// The same, with packages of other locks that [`Reference::make`] does not install. The recipe's version of a package is
    /// the only one.
    pub fn with(recipe: &Recipe<Locked>, more: &[&Lock], cache: &Cache, dir: &Path) -> anyhow::Result<Self> {
        let (image, lock) = (recipe.image(), recipe.lock());
        let others = more.iter().flat_map(|lock| &lock.packages);
        let others = others.filter(|package| lock.package(&package.name).is_none());
        let index_dir = dir.join(format!("dists/{}/main/binary-{}", image.suite, image.architecture));
        fs_err::create_dir_all(&index_dir)?;
        fs_err::create_dir_all(dir.join("pool"))?;
        let mut index = String::new();
        for package in lock.packages.iter().chain(others) {
            let cached = cache.cas_path(&package.sha256);
            // As in any archive: mkosi takes the name from it.
            let version = package.version.split_once(':').map_or(package.version.as_str(), |(_, rest)| rest);
            let file = format!("pool/{}_{version}_{}.deb", package.name, package.arch);
            fs_err::hard_link(&cached, dir.join(&file))?;
            for (field, value) in Deb::open(&cached, &package.sha256)?.control()?.paragraph.fields() {
                let _ = writeln!(index, "{field}: {value}");
            }
            let _ = writeln!(index, "Filename: {file}\nSize: {}\nSHA256: {}\n", package.size, package.sha256);
        }
        let include: Vec<String> =
            lock.packages.iter().map(|package| format!("{}={}", package.name, package.version)).collect();
        fs_err::write(index_dir.join("Packages"), &index)?;
        let release = format!(
            "Suite: {0}\nCodename: {0}\nArchitectures: {1}\nComponents: main\nSHA256:\n {2} {3} main/binary-{1}/Packages\n",
            image.suite,
            image.architecture,
            Sha256::of(&index),
            index.len()
        );
        fs_err::write(dir.join(format!("dists/{}/Release", image.suite)), release)?;
        let filter = |kind: &str, list: &[String]| -> Vec<String> {
            list.iter().map(|pattern| format!("--dpkgopt={kind}={pattern}")).collect()
        };
        let mut options = filter("path-exclude", &image.path_excludes);
        options.extend(filter("path-include", &image.path_includes));
        Ok(Self {
            dir: dir.to_owned(),
            suite: image.suite.clone(),
            include: include.join(","),
            options,
            epoch: lock.source_date_epoch,
        })
    }

    /// Has mmdebstrap make the tree in `target`, which must not exist.
    pub fn make(&self, target: &Path) -> anyhow::Result<()> {
        Cmd::new(&table::MMDEBSTRAP)
            .args(["--variant=essential", "--mode=root", "--format=directory", "--quiet"])
            .args(&self.options)
            .arg(format!("--include={}", self.include))
            .arg(&self.suite)
            .arg(target)
            .arg(format!("deb [trusted=yes] copy://{} {} main", self.dir.display(), self.suite))
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            .run()
            .context("running mmdebstrap")
    }
}
