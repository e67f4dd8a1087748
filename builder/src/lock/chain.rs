//! Keeps what a lock's chain of trust can be checked with again — key, `InRelease`, indexes — and checks it: key → InRelease
//! → index → package, without believing the archive's state of today.

use anyhow::Context;

use super::{Locked, Recipe, Suite, keys, verify};
use crate::apt::packages::Index;
use crate::apt::release::Release;
use crate::apt::{self, signature};
use crate::cache::Cache;
use crate::digest::Sha256;
use crate::fetch::{self, Event};
use crate::image::Archive;
use crate::problem::Problem;
use crate::store::Store;

/// What could be kept and checked.
#[derive(Debug, Default)]
pub struct Chain {
    /// Suites whose chain is in the store and holds.
    pub checked: Vec<String>,
    /// Suites of which the archive no longer serves what was locked: their packages rest on the lock alone.
    pub lost: Vec<String>,
}

/// Puts the chain of every suite into `store` and checks every locked package against it.
pub fn keep(
    recipe: &Recipe<Locked>,
    cache: &Cache,
    store: &Store,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<Chain> {
    let (image, lock) = (recipe.image(), recipe.lock());
    let work = cache.work_dir("chain.")?;
    let mut chain = Chain::default();
    for (n, archive) in image.archives.iter().enumerate() {
        let (mut index, mut complete) = (Index::default(), true);
        for suite in lock.suites.iter().filter(|suite| suite.archive == archive.id) {
            let name = format!("{} {}", suite.archive, suite.suite);
            match suite_chain(recipe, archive, n, suite, &mut index, cache, store, work.path(), report) {
                Ok(()) => chain.checked.push(name),
                Err(error) if is_lost(&error) => {
                    complete = false;
                    chain.lost.push(name);
                }
                Err(error) => return Err(error),
            }
        }
        for package in lock.packages.iter().filter(|package| complete && package.archive == archive.id) {
            let entry = index.find(&package.name, &package.version, &package.arch).map(|(_, entry)| entry);
            if entry.is_none_or(|entry| entry.sha256 != package.sha256 || entry.size != package.size) {
                return Err(Problem::new(
                    format!("{} {} is not in the index that the lock names", package.name, package.version),
                    image.lock_file().display().to_string(),
                    "the lock was edited by hand; make it again with `pgkiln lock --update`",
                )
                .into());
            }
        }
    }
    Ok(chain)
}

/// The archive has another state by now.
#[derive(Debug, thiserror::Error)]
#[error("the archive no longer serves what was locked")]
struct MovedOn;

fn is_lost(error: &anyhow::Error) -> bool {
    let gone = |failure: &fetch::Failure| failure.kind != fetch::FailureKind::Unreachable;
    error.is::<MovedOn>() || error.downcast_ref::<fetch::Failure>().is_some_and(gone)
}

#[expect(clippy::too_many_arguments, reason = "one step of `keep`, whose state it shares")]
fn suite_chain(
    recipe: &Recipe<Locked>,
    archive: &Archive,
    n: usize,
    suite: &Suite,
    index: &mut Index,
    cache: &Cache,
    store: &Store,
    work: &std::path::Path,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<()> {
    let image = recipe.image();
    let base = apt::bases(image, archive).urls.into_iter().next().context("an archive has an address")?;
    let inrelease = inrelease(suite, &base, cache)?;
    let place = format!("{base}/dists/{}/InRelease", suite.suite);
    let from = keys::Source { image, cache, report };
    let key = keys::key(&from, archive, &suite.signer)?;
    let key = key.with_context(|| format!("{} is not in the keyring", suite.signer))?;
    fs_err::write(store.key_path(&suite.signer), &key.packets)?;
    let signer = [suite.signer.clone()];
    let signed = signature::verify(&inrelease, &store.key_path(&suite.signer), &signer, &place, work)?;
    let release = Release::parse(&signed.text, &place)?;
    release.check_identity(&verify::wanted(image, archive, &suite.suite), &place)?;
    store.take(&suite.inrelease_sha256, inrelease.len() as u64, cache)?;
    for file in verify::files(&release, archive, &image.architecture, &suite.suite, &place)? {
        let item = file.item(&release, &base, &suite.suite);
        let packed = fetch::read(&item, cache, report)?;
        index.add(n, &file.unpack(&release, &packed, &place)?, &place)?;
        store.take(&item.sha256, item.size, cache)?;
    }
    Ok(())
}

/// The file as it was locked: from the cache, where locking left it, or from the archive if that has not moved on.
fn inrelease(suite: &Suite, base: &str, cache: &Cache) -> anyhow::Result<Vec<u8>> {
    let kept = cache.cas_path(&suite.inrelease_sha256);
    if let Ok(bytes) = fs_err::read(&kept)
        && Sha256::of(&bytes) == suite.inrelease_sha256
    {
        return Ok(bytes);
    }
    let path = format!("dists/{}/InRelease", suite.suite);
    let (bytes, _) = fetch::get(&[base.to_owned()], &path, "the suite", verify::INRELEASE_LIMIT)?;
    if Sha256::of(&bytes) != suite.inrelease_sha256 {
        return Err(MovedOn.into());
    }
    cache.put(&bytes)?;
    Ok(bytes)
}
