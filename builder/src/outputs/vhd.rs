//! `vhd`: the disk and a footer, which is all that a fixed VHD is. Written by us, because tools stamp it with the time and a random
//! number.
//!
//! Microsoft, "Virtual Hard Disk Image Format Specification" 1.0. Azure wants a size in whole MiB, which disks of ours have.

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use anyhow::Context;

use super::{Inputs, holes};
use crate::disk::Disk;

const FOOTER: usize = 512;
/// 2000-01-01T00:00:00Z, from where the format counts.
const ORIGIN: u64 = 946_684_800;
const FIXED: u32 = 2;
const MIB: u64 = 1 << 20;

/// Writes the disk again with its footer, and its holes.
pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let path = inputs.path("vhd");
    let source = fs_err::File::open(&disk.raw)?.into_parts().0;
    let bytes = source.metadata()?.len();
    anyhow::ensure!(bytes % MIB == 0, "the disk's size is not in whole MiB");
    let mut target = fs_err::File::create(&path)?.into_parts().0;
    holes::copy(&source, &target, bytes).context("copying the disk")?;
    target.seek(SeekFrom::Start(bytes))?;
    let id: [u8; 16] = std::array::from_fn(|n| inputs.digest("vhd").as_bytes()[n]);
    target.write_all(&footer(bytes, inputs.epoch, id))?;
    Ok(vec![path])
}

fn footer(bytes: u64, epoch: u64, id: [u8; 16]) -> [u8; FOOTER] {
    let mut footer = [0; FOOTER];
    let mut put = |at: usize, value: &[u8]| footer[at..at + value.len()].copy_from_slice(value);
    put(0, b"conectix");
    put(8, &2u32.to_be_bytes());
    put(12, &0x0001_0000u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    put(24, &(epoch.saturating_sub(ORIGIN) as u32).to_be_bytes());
    // What makes the disk: QEMU believes the size below only of makers it knows, and of others a geometry that is too small.
    put(28, b"win ");
    put(32, &0x0001_0000u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &bytes.to_be_bytes());
    put(48, &bytes.to_be_bytes());
    let (cylinders, heads, sectors) = geometry(bytes / 512);
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    put(60, &FIXED.to_be_bytes());
    put(68, &id);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// The specification's appendix: what old firmware would like to believe about the disk.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65535 * 16 * 255);
    if total >= 65535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let (mut per_track, mut rows) = (17, total / 17);
    let mut heads = rows.div_ceil(1024).max(4);
    if rows >= heads * 1024 || heads > 16 {
        (per_track, rows, heads) = (31, total / 31, 16);
    }
    if rows >= heads * 1024 {
        (per_track, rows) = (63, total / 63);
    }
    ((rows / heads) as u16, heads as u8, per_track as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_sums_up() {
        let footer = footer(1554 << 20, 1_795_432_958, [9; 16]);
        let stated = u32::from_be_bytes(footer[64..68].try_into().unwrap());
        let sum: u32 =
            footer.iter().enumerate().filter(|(n, _)| !(64..68).contains(n)).map(|(_, b)| u32::from(*b)).sum();
        assert_eq!(stated, !sum);
        assert_eq!(&footer[..8], b"conectix");
        assert_eq!(u64::from_be_bytes(footer[48..56].try_into().unwrap()), 1554 << 20);
    }

    /// Computed by hand with the specification's formula.
    #[test]
    fn geometry_of_small_and_large_disks() {
        assert_eq!(geometry((1 << 20) * 64 / 512), (963, 8, 17));
        assert_eq!(geometry(65535 * 16 * 255 + 1), (65535, 16, 255));
    }
}
