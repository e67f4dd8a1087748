//! Where an archive's keys come from. A keyring of this host is trusted as far as the host is, and may have more keys than
//! the recipe pins: only pinned ones count when a signature is judged. What comes from an address is believed only if it is
//! the pinned keys, by full fingerprint, and nothing else.

use std::path::Path;

use crate::apt::keyring::{self, Key};
use crate::fetch;
use crate::image::{self, Archive, Image};
use crate::problem::Problem;

/// Larger than any key file.
const KEY_LIMIT: u64 = 1 << 20;

/// The archive's keys as a binary keyring for gpgv.
pub(super) fn keyring(image: &Image, archive: &Archive) -> anyhow::Result<Vec<u8>> {
    Ok(keyring::join(&keys(image, archive)?))
}

/// The pinned key with this fingerprint alone.
pub(super) fn key(image: &Image, archive: &Archive, fingerprint: &str) -> anyhow::Result<Option<Key>> {
    Ok(keys(image, archive)?.into_iter().find(|key| key.fingerprint == fingerprint))
}

fn keys(image: &Image, archive: &Archive) -> anyhow::Result<Vec<Key>> {
    match &archive.key.value {
        image::Key::File(path) => from_file(image, archive, path),
        image::Key::Url(url) => from_url(archive, url),
    }
}

fn from_file(image: &Image, archive: &Archive, path: &Path) -> anyhow::Result<Vec<Key>> {
    if !path.is_file() {
        let package = image.distribution.archives.iter().find(|official| Path::new(official.keyring) == path);
        let remedy = match package {
            Some(official) => format!("apt-get install {}", official.keyring_package),
            None => "correct `key` there".to_owned(),
        };
        let what = format!("the keyring `{}` of archive `{}` does not exist", path.display(), archive.id);
        return Err(Problem::new(what, image.key_at(archive), remedy).into());
    }
    let place = path.display().to_string();
    let keys = keyring::read(&fs_err::read(path)?, &place)?;
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
