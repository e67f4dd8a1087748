//! The image as files in memory: `root | hash tree` in one, and the head of the disk in another, for machines that have no disk with
//! the image yet (`pxe`, `iso`). Live nodes need the first alone; an installer writes both to a disk.
//!
//! All are the bytes of the raw disk. The root hash on the command line stands for the first two, a SHA-256 for the head. Each
//! is in whole blocks, so that the files can be block devices.
//!
//! They come as an archive of the initramfs, not as bare files that the boot loader would have to wrap: then every boot loader
//! that can load two initrds can boot it, the oldest iPXE and BIOS included.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;

use crate::disk::{Disk, cpio};

/// Where the initrd looks for root and hash tree in the initramfs.
pub const PATH: &str = "pgkiln/root.img";
/// And for the head of the disk.
pub const HEAD: &str = "pgkiln/head.img";
/// Of a hash tree, and of everything here.
pub const BLOCK: u64 = 4096;
/// Archives begin at whole words, and some boot loaders put one right behind the other.
pub(crate) const ALIGNMENT: usize = 512;

/// Writes the archive.
pub(crate) fn archive(disk: &Disk, to: &Path) -> anyhow::Result<()> {
    let mut file = BufWriter::new(fs_err::File::create(to)?);
    let mut written = 0;
    let mut directory = Some("pgkiln");
    // The head last: it is what a machine with little memory can do without, if it only is to be live.
    for (path, parts) in [(PATH, vec![&disk.root, &disk.hashes]), (HEAD, vec![&disk.head.path])] {
        let mut bytes = 0;
        for part in &parts {
            let length = fs_err::metadata(part)?.len();
            anyhow::ensure!(length % BLOCK == 0, "{} is not in whole blocks", part.display());
            bytes += length;
        }
        let size = u32::try_from(bytes).context("the image is too large for an archive of the initramfs (4 GiB)")?;
        let mut head = cpio::Archive::default();
        directory.take().into_iter().for_each(|path| head.directory(path));
        let head = head.into_head_of(path, size);
        file.write_all(&head)?;
        for part in parts {
            io::copy(&mut fs_err::File::open(part)?, &mut file)?;
        }
        written += head.len() as u64 + bytes;
    }
    let mut end = cpio::end();
    let length = written as usize + end.len();
    end.resize(end.len() + length.next_multiple_of(ALIGNMENT) - length, 0);
    file.write_all(&end)?;
    Ok(file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?)
}
