//! `gce`: a gzip-compressed tar archive with `disk.raw`, in whole GiB, as Compute Engine imports it. The archive is sparse (GNU's old
//! format, the one its documentation asks for), so a large disk of zeros costs nothing.
//!
//! GNU tar manual, "Sparse Formats", and its `struct oldgnu_header`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::Context;
use flate2::{Compression, GzBuilder};

use super::Inputs;
use super::holes::{self, Extent};
use crate::disk::Disk;

const GIB: u64 = 1 << 30;
const BLOCK: usize = 512;
/// Entries of the map in the header, and in each block that continues it.
const IN_HEADER: usize = 4;
const IN_BLOCK: usize = 21;
/// Fields of the header.
const MAP: usize = 386;
const CONTINUES: usize = 482;
const REAL_SIZE: usize = 483;

/// Writes the archive.
pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let path = inputs.path("gce.tar.gz");
    let source = fs_err::File::open(&disk.raw)?.into_parts().0;
    let bytes = source.metadata()?.len();
    let extents = holes::extents(&source, bytes).context("reading the disk")?;
    // The root is compressed already, and time would make every archive another one.
    let target = fs_err::File::create(&path)?;
    let mut archive = GzBuilder::new().mtime(0).operating_system(255).write(target, Compression::fast());
    archive.write_all(&headers(&extents, bytes.next_multiple_of(GIB), inputs.epoch)?)?;
    copy(&source, &extents, &mut archive)?;
    // Two empty blocks end an archive.
    archive.write_all(&[0; 2 * BLOCK])?;
    archive.finish()?;
    Ok(vec![path])
}

/// The file's header and the blocks that continue its map.
fn headers(extents: &[Extent], size: u64, epoch: u64) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(size < 8 * GIB, "the disk is too large for this archive");
    let stored: u64 = extents.iter().map(|extent| extent.length).sum();
    let mut map = extents.to_vec();
    if map.last().is_none_or(|last| last.offset + last.length < size) {
        // A hole at the end is told by an empty stretch there.
        map.push(Extent { offset: size, length: 0 });
    }
    let mut header = tar::Header::new_gnu();
    header.set_path("disk.raw")?;
    header.set_size(stored);
    header.set_mode(0o644);
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::GNUSparse);
    let (first, rest) = map.split_at(map.len().min(IN_HEADER));
    {
        let bytes = header.as_mut_bytes();
        put_map(&mut bytes[MAP..], first);
        bytes[CONTINUES] = u8::from(!rest.is_empty());
        bytes[REAL_SIZE..REAL_SIZE + 12].copy_from_slice(&number(size));
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    let mut blocks = rest.chunks(IN_BLOCK).peekable();
    while let Some(part) = blocks.next() {
        let mut block = [0; BLOCK];
        put_map(&mut block, part);
        block[IN_BLOCK * 24] = u8::from(blocks.peek().is_some());
        bytes.extend(block);
    }
    Ok(bytes)
}

fn put_map(bytes: &mut [u8], extents: &[Extent]) {
    for (extent, place) in extents.iter().zip(bytes.chunks_mut(24)) {
        place[..12].copy_from_slice(&number(extent.offset));
        place[12..24].copy_from_slice(&number(extent.length));
    }
}

/// Eleven octal digits and a zero byte: enough for 8 GiB, more than an image's disk has.
fn number(value: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..11].copy_from_slice(&format!("{value:011o}").as_bytes()[..11]);
    bytes
}

fn copy(source: &File, extents: &[Extent], archive: &mut impl Write) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut stored = 0;
    for extent in extents {
        let end = extent.offset + extent.length;
        let mut offset = extent.offset;
        while offset < end {
            let part = &mut buffer[..(end - offset).min(1 << 20) as usize];
            source.read_exact_at(part, offset)?;
            archive.write_all(part)?;
            offset += part.len() as u64;
        }
        stored += extent.length as usize;
    }
    archive.write_all(&vec![0; stored.next_multiple_of(BLOCK) - stored])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Read back by the tar crate, which knows the format: with more stretches than fit the header.
    #[test]
    fn the_archive_is_the_disk_again() {
        let (mib, stretches) = (1u64 << 20, 30u64);
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * stretches * mib).unwrap();
        (0..stretches).for_each(|n| file.write_all_at(b"content", 2 * n * mib + 3).unwrap());
        let extents = holes::extents(&file, 2 * stretches * mib).unwrap();
        assert_eq!(extents.len() as u64, stretches);
        let mut bytes = headers(&extents, 64 * mib, 7).unwrap();
        copy(&file, &extents, &mut bytes).unwrap();
        bytes.extend([0; 2 * BLOCK]);
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut read = Vec::new();
        entry.read_to_end(&mut read).unwrap();
        assert_eq!(read.len() as u64, 64 * mib);
        let mut original = vec![0; (2 * stretches * mib) as usize];
        file.read_exact_at(&mut original, 0).unwrap();
        assert!(read[..original.len()] == original && read[original.len()..].iter().all(|byte| *byte == 0));
    }
}
