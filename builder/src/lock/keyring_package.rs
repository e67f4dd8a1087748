//! Keyrings out of Debian's keyring packages as the tool tree's lock has them, so that what an archive is believed for does
//! not depend on which keyrings this host happens to have, or how old they are. The chain is the tool tree's own: its lock
//! names the package by SHA-256, and was signed for by Debian's keys.
//!
//! PGDG's key is in such a package too, but that one has half of Perl beside it: it comes from its address, by fingerprint.

use std::io::Read;
use std::path::Path;

use anyhow::Context;

use super::Recipe;
use crate::cache::Cache;
use crate::fetch::{self, Event};
use crate::image::Image;
use crate::image::distribution::DISTRIBUTIONS;
use crate::unpack::deb::Deb;
use crate::unpack::tree::absolute;

/// Links that are followed, one to another.
const LINKS: usize = 4;

/// A keyring and the package it is from.
pub(super) struct FromPackage {
    /// As the package has it.
    pub(super) bytes: Vec<u8>,
    /// Name and version.
    pub(super) package: String,
}

/// The package that has the keyring at `path`, by the table of distributions.
pub fn package_of(path: &Path) -> Option<&'static str> {
    let archives = DISTRIBUTIONS.iter().flat_map(|distribution| distribution.archives);
    archives.into_iter().find(|archive| Path::new(archive.keyring) == path).map(|archive| archive.keyring_package)
}

/// The keyring at `path` as the tool tree's lock has it; `None` if it has no such package, or `image` is the tool tree.
///
/// # Errors
///
/// If the lock has the package, but it cannot be fetched, or has no such file.
pub(super) fn read(
    image: &Image,
    path: &Path,
    cache: &Cache,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<Option<FromPackage>> {
    let (Some(name), Some(own)) = (package_of(path), image.file.parent()) else { return Ok(None) };
    let tools = own.with_file_name("tools");
    if tools == own || !tools.join("image.lock").is_file() {
        return Ok(None);
    }
    let tools = Recipe::load(&tools)?.locked()?;
    let Some(package) = tools.lock().package(name) else { return Ok(None) };
    let told = format!("{name} {}", package.version);
    let item = tools.items().into_iter().find(|item| item.sha256 == package.sha256);
    let item = item.context("a locked package is an item")?;
    fetch::fetch(&[item], cache, report).with_context(|| format!("fetching {told} for its keyring"))?;
    let deb = Deb::open(&cache.cas_path(&package.sha256), &package.sha256)?;
    match file(&deb, path)? {
        Some(bytes) => Ok(Some(FromPackage { bytes, package: told })),
        None => anyhow::bail!("{told} has no {}", path.display()),
    }
}

/// A file of a package, also by another name that is a link to it beside it (`.gpg` to `.pgp` in Debian 13).
fn file(deb: &Deb, path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let mut name = path.to_owned();
    for _ in 0..LINKS {
        let mut link = None;
        for entry in deb.data()?.entries()? {
            let mut entry = entry?;
            if Path::new(&absolute(&entry.path()?)?) != name {
                continue;
            }
            link = entry.link_name()?.map(|target| name.with_file_name(&*target));
            if link.is_none() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                return Ok(Some(bytes));
            }
        }
        match link {
            Some(target) => name = target,
            None => return Ok(None),
        }
    }
    Ok(None)
}
