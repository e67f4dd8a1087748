//! Debian archives: where they are, what is in them, who signed them; apt itself resolves.
//!
//! The chain of trust, each link checked here: pinned fingerprint → `InRelease` ([`signature`]) → package index
//! ([`release`]) → package ([`packages`]). After that the lock's SHA-256 carries it.

use std::path::Path;

use crate::image::{Archive, Image, Place, Url};

pub mod deb822;
pub mod host;
pub mod keyring;
pub mod packages;
pub mod release;
pub mod signature;
pub mod solver;
pub mod version;

/// Where an archive can be had today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bases {
    /// Base URLs, best first.
    pub urls: Vec<String>,
    /// Whether they are mirrors that this host's own apt uses.
    pub from_host: bool,
}

/// The addresses of an archive, as the recipe, an overlay and this host's apt sources say.
pub fn bases(image: &Image, archive: &Archive) -> Bases {
    let official = image.distribution.archive(&archive.id);
    let only = |url: String| Bases { urls: vec![url], from_host: false };
    match (archive.overlaid.as_ref().and_then(|overlaid| overlaid.place.as_ref()), &archive.url) {
        (Some(Place::Archive(url)), _) => return only(url.clone()),
        (Some(Place::Snapshots(service)), Url::Snapshot(time)) => return only(format!("{service}/{time}")),
        // A snapshot service for what is no snapshot was refused.
        (Some(Place::Snapshots(_)) | None, _) => {}
    }
    match (&archive.url, official) {
        (Url::Base(url), _) => only(url.clone()),
        (Url::Snapshot(time), Some(official)) => only(format!("{}{time}", official.snapshot.unwrap_or_default())),
        (Url::Host, Some(official)) => match host::mirrors(Path::new("/"), image.distribution, official) {
            mirrors if mirrors.is_empty() => only(official.fallback.to_owned()),
            urls => Bases { urls, from_host: true },
        },
        // The parser refuses `host` and `snapshot` for archives that are not in the table.
        (Url::Host | Url::Snapshot(_), None) => Bases { urls: Vec::new(), from_host: false },
    }
}
