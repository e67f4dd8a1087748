//! One archive, one recipe and one cache per case; what must be refused, and what must not stay behind.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use jiff::SignedDuration;
use pgkiln::cache::Cache;
use pgkiln::digest::Sha256;
use pgkiln::fetch;
use pgkiln::lock::{Lock, Recipe, resolve};
use pgkiln::problem::{Problem, Problems};
use pgkiln_tests::archive::{Archive, Deb, Publication};
use pgkiln_tests::archive_server::Server;
use pgkiln_tests::keys::Keys;

pub(super) type Result<T = ()> = anyhow::Result<T>;

/// One thing that is wrong with an archive.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: &'static str,
    /// What the refusal says, and that of no other case.
    pub(super) says: &'static str,
    pub(super) make: fn(&mut Hostile) -> Result,
}

/// An archive that was honest until now.
pub(super) struct Hostile {
    pub(super) archive: Archive,
    pub(super) keys: Arc<Keys>,
    pub(super) server: Server,
    pub(super) cache: Cache,
    pub(super) image: PathBuf,
    _work: tempfile::TempDir,
}

/// Made after what was published first.
pub(super) fn newer() -> Publication {
    Publication { made: SignedDuration::from_secs(5), ..Publication::default() }
}

impl Hostile {
    pub(super) fn new(keys: Arc<Keys>) -> Result<Self> {
        let mut archive = Archive::with_keys("stable", keys.clone())?;
        archive.add(&Deb::new("base", "1").essential())?;
        archive.add(&Deb::new("app", "1:2.0-1").depends("base"))?;
        archive.publish(&Publication::default())?;
        let server = Server::start(archive.dir())?;
        let work = tempfile::tempdir()?;
        let cache = Cache::open(work.path().join("cache"))?;
        let image = archive.recipe(work.path(), &server.url(), &["app"])?;
        Ok(Self { archive, keys, server, cache, image, _work: work })
    }

    pub(super) fn resolve(&self) -> Result<Lock> {
        let old = Lock::load(&self.image.join("image.lock"))?;
        Ok(resolve::resolve(Recipe::load(&self.image)?.image(), old.as_ref(), &[], &self.cache, &|_| ())?.lock)
    }

    /// What a user does: lock, then fetch.
    fn lock_and_fetch(&self) -> Result<Lock> {
        let lock = self.resolve()?;
        fetch::fetch(&Recipe::load(&self.image)?.with(lock.clone())?.items(), &self.cache, &|_| ())?;
        Ok(lock)
    }

    pub(super) fn passes(&self) -> Result {
        let lock = self.lock_and_fetch()?;
        let names: Vec<&str> = lock.packages.iter().map(|package| package.name.as_str()).collect();
        ensure!(names == ["app", "base"], "{names:?}");
        for package in &lock.packages {
            ensure!(self.cache.verified(&package.sha256, package.size)?.is_some(), "{} was not fetched", package.name);
        }
        Ok(())
    }

    /// The case's refusal, after making sure that it left nothing.
    pub(super) fn refusal(mut self, case: &Case) -> Result<Problem> {
        // What an honest bake may have from this archive, and may therefore find in the cache.
        let mut honest = BTreeSet::new();
        for name in ["base", "app"] {
            honest.insert(Sha256::of_file(&self.archive.pool_path(name)?)?.0);
        }
        (case.make)(&mut self)?;
        let Err(error) = self.lock_and_fetch() else { bail!("not refused, expected: {}", case.says) };
        let one = |cause: &(dyn std::error::Error + 'static)| {
            (cause.downcast_ref::<Problem>().cloned())
                .or_else(|| cause.downcast_ref::<Problems>().and_then(|problems| problems.0.first().cloned()))
        };
        let problem = error.chain().find_map(one).with_context(|| format!("not a problem: {error:?}"))?;
        for shard in fs_err::read_dir(self.cache.root().join("cas/sha256"))? {
            for file in fs_err::read_dir(shard?.path())? {
                let path = file?.path();
                let content = fs_err::read(&path)?;
                let digest = Sha256::of(&content);
                ensure!(path.ends_with(digest.to_string()), "the store has a file that is not what its name says");
                let package = content.starts_with(b"!<arch>");
                ensure!(honest.contains(&digest) || !package, "the store has a package of the hostile archive");
                let index = problem.place.contains("Packages");
                ensure!(package || !index, "the store has a refused index");
            }
        }
        for file in fs_err::read_dir(self.cache.root().join("partial"))? {
            // One that was under way when another was refused is resumed, if it is one to have.
            let digest: Sha256 = file?.file_name().to_string_lossy().parse()?;
            ensure!(honest.contains(&digest), "a refused download is left");
        }
        ensure!(!self.cache.relock_path("fixture").exists(), "a lock is left in the cache");
        Ok(problem)
    }

    /// Replaces something in the recipe.
    pub(super) fn edit(&self, from: &str, to: &str) -> Result {
        let file = self.image.join("image.toml");
        let text = fs_err::read_to_string(&file)?;
        ensure!(text.contains(from), "{from} is not in the recipe");
        Ok(fs_err::write(file, text.replace(from, to))?)
    }

    /// The recipe pins another key than `first`.
    pub(super) fn pin(&self, name: &str) -> Result {
        self.edit(self.keys.fingerprint("first"), self.keys.fingerprint(name))
    }

    /// The text of a `Release` file as it should be.
    pub(super) fn release(&self) -> Result<String> {
        self.archive.lay_out(&newer(), self.archive.index()?)
    }

    /// Serves this, signed by `first`.
    pub(super) fn sign(&self, release: &str) -> Result {
        self.sign_by(release, &["first"], &[])
    }

    pub(super) fn sign_by(&self, release: impl AsRef<[u8]>, names: &[&str], more: &[&str]) -> Result {
        self.serve(self.keys.clearsign(release.as_ref(), names, more)?)
    }

    pub(super) fn serve(&self, inrelease: impl AsRef<[u8]>) -> Result {
        Ok(fs_err::write(self.archive.inrelease(), inrelease)?)
    }

    /// The signed file as text.
    pub(super) fn inrelease(&self) -> Result<String> {
        Ok(fs_err::read_to_string(self.archive.inrelease())?)
    }

    /// Signs an index in which `from` is `to`.
    pub(super) fn index(&self, from: &str, to: &str) -> Result {
        let index = self.archive.index()?;
        ensure!(index.contains(from), "{from} is not in the index");
        self.sign(&self.archive.lay_out(&newer(), index.replace(from, to))?)
    }

    /// Signs these files as the suite's indexes.
    pub(super) fn index_files(&self, files: &[(&str, Vec<u8>)]) -> Result {
        self.sign(&self.archive.lay_out_files(&newer(), files)?)
    }
}
