//! `update`: what a running node puts into its other slot. The names carry version and identifier, as systemd-sysupdate's patterns
//! (`@v`, `@u`) expect them.

use std::path::{Path, PathBuf};

use super::Inputs;
use crate::disk::Disk;

/// Gives the disk's parts their names; the root and its hash tree are the bytes of the partitions, the UKI that of the ESP.
pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let name = |rest: &str| inputs.dir.join(format!("{}_{}{rest}", inputs.name, inputs.version));
    let uuid = |half: &str| uuid::Uuid::try_parse(half).map(|uuid| uuid.to_string());
    let parts: [(&Path, PathBuf); 3] = [
        (&disk.uki, name(".efi")),
        (&disk.root, name(&format!(".root.{}.raw", uuid(&disk.root_hash[..32])?))),
        (&disk.hashes, name(&format!(".root-verity.{}.raw", uuid(&disk.root_hash[32..])?))),
    ];
    for (from, to) in &parts {
        fs_err::hard_link(from, to)?;
    }
    Ok(parts.into_iter().map(|(_, path)| path).collect())
}
