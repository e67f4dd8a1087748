//! The head of the disk: its first bytes, from the partition table to the last byte the EFI system partition uses. Beside the root
//! and its hash tree this is all an installer needs, and it is a few MiB: behind it a fresh system partition is zeros.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::gpt::{self, Kind};
use crate::digest::Sha256;
use crate::sparse::{self, Sparse};

/// A head, in a file of its own.
#[derive(Debug, Clone)]
pub struct Head {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its digest, which the installer's command line names as [`WORD`].
    pub sha256: Sha256,
}

/// Word of the kernel's command line; also known to `firstboot/src/install/source.rs`.
pub const WORD: &str = "pgkiln.head";

/// Cuts the head off a disk.
pub(super) fn cut(raw: &Path, to: PathBuf) -> anyhow::Result<Head> {
    let table = gpt::read(raw)?;
    let esp = table.partitions.first().filter(|one| one.kind == Kind::Esp);
    let esp = esp.context("the EFI system partition comes first on the disk, or an installer could not find it")?;
    let disk = fs_err::File::open(raw)?.into_parts().0;
    // In whole blocks, so that it can be a block device.
    let (bytes, sha256) = sparse::content(&disk, 0, esp.offset + esp.bytes)?;
    let mut file = fs_err::File::create(&to)?;
    let written =
        std::io::copy(&mut Sparse::new(&disk, 0, bytes), &mut file).context("copying the head of the disk")?;
    anyhow::ensure!(written == bytes, "the disk ends within its head");
    Ok(Head { path: to, bytes, sha256 })
}
