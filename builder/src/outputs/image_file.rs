//! The image as one file: `root | hash tree`, for machines that have no disk with it (`pxe`).
//!
//! Both are the bytes of the disk's partitions, and the root hash on the command line stands for them. Each is in whole blocks,
//! so that the file can be a block device.

use std::io::{self, Write};

use crate::disk::Disk;

/// Where the initrd looks for it in the initramfs.
pub const PATH: &str = "pgkiln/root.img";
/// Of a hash tree, and of everything here.
pub const BLOCK: u64 = 4096;

/// The file, not written yet.
#[derive(Debug)]
pub struct ImageFile<'a> {
    disk: &'a Disk,
    /// Size of the whole.
    pub bytes: u64,
}

impl<'a> ImageFile<'a> {
    /// Measures the parts.
    pub fn of(disk: &'a Disk) -> anyhow::Result<Self> {
        let mut bytes = 0;
        for part in [&disk.root, &disk.hashes] {
            let length = fs_err::metadata(part)?.len();
            anyhow::ensure!(length % BLOCK == 0, "{} is not in whole blocks", part.display());
            bytes += length;
        }
        Ok(Self { disk, bytes })
    }

    /// Writes it.
    pub fn write(&self, to: &mut impl Write) -> anyhow::Result<()> {
        for part in [&self.disk.root, &self.disk.hashes] {
            io::copy(&mut fs_err::File::open(part)?, to)?;
        }
        Ok(())
    }
}
