//! Where an archive's keys come from. A keyring out of the tool tree's keyring packages, or, where it has none, of this
//! host, is trusted as far as those are, and may have more keys than the recipe pins: only pinned ones count when a
//! signature is judged. What comes from an address is believed only if it is the pinned keys, by full fingerprint, and
//! nothing else.

use std::path::Path;

use super::keyring_package;
use crate::apt::keyring::{self, Key};
use crate::cache::Cache;
use crate::fetch::{self, Event};
use crate::image::{self, Archive, Image};
use crate::problem::Problem;

/// Whose keys are asked for, and what they may be fetched with.
pub(super) struct Source<'a> {
    pub(super) image: &'a Image,
    pub(super) cache: &'a Cache,
    pub(super) report: &'a dyn Fn(Event<'_>),
}

/// Larger than any key file.
const KEY_LIMIT: u64 = 1 << 20;

/// The archive's keys as a binary keyring for gpgv.
pub(super) fn keyring(from: &Source<'_>, archive: &Archive) -> anyhow::Result<Vec<u8>> {
    Ok(keyring::join(&keys(from, archive)?))
}

/// The pinned key with this fingerprint alone.
pub(super) fn key(from: &Source<'_>, archive: &Archive, fingerprint: &str) -> anyhow::Result<Option<Key>> {
    Ok(keys(from, archive)?.into_iter().find(|key| key.fingerprint == fingerprint))
}

fn keys(from: &Source<'_>, archive: &Archive) -> anyhow::Result<Vec<Key>> {
    match &archive.key.value {
        image::Key::File(path) => from_file(from, archive, path),
        image::Key::Url(url) => from_url(archive, url),
    }
}

fn from_file(from: &Source<'_>, archive: &Archive, path: &Path) -> anyhow::Result<Vec<Key>> {
    let (bytes, place) = match keyring_package::read(from.image, path, from.cache, from.report) {
        Ok(Some(found)) => (found.bytes, format!("{} of {}", path.display(), found.package)),
        // The tool tree's archive may be out of reach where this one is not: this host's file is as good.
        Ok(None) | Err(_) if path.is_file() => (fs_err::read(path)?, path.display().to_string()),
        Err(error) => return Err(error),
        Ok(None) => {
            let package = keyring_package::package_of(path);
            let remedy =
                package.map_or("correct `key` there".to_owned(), |package| format!("apt-get install {package}"));
            let what = format!("the keyring `{}` of archive `{}` does not exist", path.display(), archive.id);
            return Err(Problem::new(what, from.image.key_at(archive), remedy).into());
        }
    };
    let keys = keyring::read(&bytes, &place)?;
    if !keys.iter().any(|key| archive.fingerprints.contains(&key.fingerprint)) {
        return Err(Problem::new(
            format!("the keyring of archive `{}` has none of the pinned keys: it has {}", archive.id, names(&keys)),
            place,
            "update the keyring's package, or correct `key` and `fingerprints` in image.toml",
        )
        .into());
    }
    Ok(keys)
}

fn from_url(archive: &Archive, url: &str) -> anyhow::Result<Vec<Key>> {
    let bytes = fetch::get_key(url, &format!("the key of archive `{}`", archive.id), KEY_LIMIT)?;
    let keys = keyring::read(&bytes, url)?;
    let strangers: Vec<Key> =
        keys.iter().filter(|key| !archive.fingerprints.contains(&key.fingerprint)).cloned().collect();
    let pinned = archive.fingerprints.join(", ");
    if strangers.len() == keys.len() {
        return Err(Problem::new(
            format!("the key served is {}, the recipe pins {pinned}", names(&keys)),
            url,
            "compare the fingerprint with what the archive's owner publishes elsewhere, then correct `fingerprints`",
        )
        .into());
    }
    if !strangers.is_empty() {
        return Err(Problem::new(
            format!("beside a pinned key the file has others: {}", names(&strangers)),
            url,
            "pin them too if the archive's owner publishes them, or use a file with the pinned key only",
        )
        .into());
    }
    Ok(keys)
}

fn names(keys: &[Key]) -> String {
    keys.iter().map(|key| key.fingerprint.as_str()).collect::<Vec<_>>().join(", ")
}
