//! `iso`: the installer, for CD drives (real ones, and those of hypervisors and remote consoles) and, byte for byte the same, for
//! sticks.
//!
//! A stick is a disk with a partition table. What a CD needs beside it fits into the first MiB, between the table and the
//! partition: an empty ISO 9660 file system (ECMA-119) and a boot catalog ("El Torito" 1.0; UEFI specification 2.10, 13.3.2)
//! that names the same partition. So it is written here, and no program's clock shows.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::Context;

use super::{Inputs, holes};
use crate::disk::{Disk, gpt};

/// Of a CD.
pub(crate) const BLOCK: usize = 2048;
/// Where descriptors begin (ECMA-119, 6.2.1), and what follows them.
const FIRST: u32 = 16;
pub(crate) const CATALOG: u32 = 19;
const PATHS: [u32; 2] = [20, 21];
const ROOT: u32 = 22;
/// Platform of a boot catalog: UEFI.
const EFI: u8 = 0xef;

pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let path = inputs.path("iso");
    let from = fs_err::File::open(disk.installer.as_ref().context("it was made")?)?.into_parts().0;
    let to = fs_err::File::create(&path)?.into_parts().0;
    let bytes = from.metadata()?.len();
    holes::copy(&from, &to, bytes).context("copying the installer")?;
    let table = gpt::read(&path)?;
    let esp = table.partitions.first().context("a partition")?;
    let blocks = Blocks {
        count: u32::try_from(bytes / BLOCK as u64)?,
        esp: u32::try_from(esp.offset / BLOCK as u64)?,
        date: jiff::Timestamp::from_second(inputs.epoch.try_into()?)?.strftime("%Y%m%d%H%M%S").to_string(),
    };
    anyhow::ensure!(bytes % BLOCK as u64 == 0 && blocks.esp > ROOT, "the partition begins too early for a CD");
    to.write_all_at(&blocks.all().concat(), u64::from(FIRST) * BLOCK as u64)?;
    to.sync_all()?;
    Ok(vec![path])
}

/// What the blocks from [`FIRST`] on say.
struct Blocks {
    count: u32,
    esp: u32,
    /// `20261125083419`.
    date: String,
}

impl Blocks {
    fn all(&self) -> Vec<Vec<u8>> {
        let paths = |bytes: [u8; 4], parent: [u8; 2]| [&[1, 0], &bytes[..], &parent, &[0, 0]].concat();
        let root = ROOT.to_le_bytes();
        let parts = [
            self.volume(),
            self.boot_record(),
            [&[255], &b"CD001"[..], &[1]].concat(),
            self.catalog(),
            paths(root, [1, 0]),
            paths(ROOT.to_be_bytes(), [0, 1]),
            [self.directory(0), self.directory(1)].concat(),
        ];
        let padded = |mut part: Vec<u8>| {
            part.resize(BLOCK, 0);
            part
        };
        parts.into_iter().map(padded).collect()
    }

    /// ECMA-119, 8.4.
    fn volume(&self) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"\x01CD001\x01");
        // Texts are filled up with blanks.
        for (at, length) in [(8, 32), (40, 32), (190, 623)] {
            put(at, &vec![b' '; length]);
        }
        put(40, b"PGKILN_INSTALL");
        put(80, &both32(self.count));
        put(120, &both16(1));
        put(124, &both16(1));
        put(128, &both16(BLOCK as u16));
        put(132, &both32(10));
        put(140, &PATHS[0].to_le_bytes());
        put(148, &PATHS[1].to_be_bytes());
        put(156, &self.directory(0));
        for (at, date) in [(813, self.date.as_str()), (830, &self.date), (847, "00000000000000"), (864, &self.date)] {
            put(at, format!("{date}00\0").as_bytes());
        }
        put(881, &[1]);
        bytes
    }

    /// "El Torito", figure 7.
    fn boot_record(&self) -> Vec<u8> {
        let mut bytes = b"\0CD001\x01EL TORITO SPECIFICATION".to_vec();
        bytes.resize(71, 0);
        bytes.extend(CATALOG.to_le_bytes());
        bytes
    }

    /// One entry: the partition. A length of 0 is "to the end": the field would end at 32 MiB.
    fn catalog(&self) -> Vec<u8> {
        let mut head = vec![0; 32];
        head[..2].copy_from_slice(&[1, EFI]);
        head[30..].copy_from_slice(&[0x55, 0xaa]);
        let sum = head.chunks(2).fold(0u16, |sum, word| sum.wrapping_add(u16::from_le_bytes([word[0], word[1]])));
        head[28..30].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
        let mut entry = vec![0x88, 0, 0, 0, 0, 0, 0, 0];
        entry.extend(self.esp.to_le_bytes());
        entry.resize(32, 0);
        [head, entry].concat()
    }

    /// ECMA-119, 9.1: the root directory, called 0 by itself and 1 as its own parent.
    fn directory(&self, name: u8) -> Vec<u8> {
        let date = self.short_date();
        [&[34, 0][..], &both32(ROOT), &both32(BLOCK as u32), &date, &[2, 0, 0], &both16(1), &[1, name]].concat()
    }
}

impl Blocks {
    /// ECMA-119, 9.1.5: years since 1900, month, day, hour, minute, second, zone.
    fn short_date(&self) -> [u8; 7] {
        let number = |range: std::ops::Range<usize>| self.date.get(range).and_then(|text| text.parse::<u16>().ok());
        let two = |at: usize| number(at..at + 2).unwrap_or_default() as u8;
        let year = number(0..4).unwrap_or_default().saturating_sub(1900) as u8;
        [year, two(4), two(6), two(8), two(10), two(12), 0]
    }
}

/// Both orders of bytes, one behind the other.
fn both32(value: u32) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

fn both16(value: u16) -> Vec<u8> {
    [value.to_le_bytes(), value.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_finds_the_partition_and_mounts_see_an_empty_volume() {
        let blocks = Blocks { count: 153_600, esp: 512, date: "20261125083419".into() }.all();
        assert!(blocks.iter().all(|block| block.len() == BLOCK) && FIRST as usize + blocks.len() <= 512);
        let volume = &blocks[0];
        assert_eq!((&volume[40..54], &volume[813..829]), (&b"PGKILN_INSTALL"[..], &b"2026112508341900"[..]));
        assert_eq!((&volume[80..84], &volume[84..88]), (&153_600u32.to_le_bytes()[..], &153_600u32.to_be_bytes()[..]));
        // Its root directory, whose first entry is itself.
        assert_eq!(volume[156..190], blocks[(ROOT - FIRST) as usize][..34]);
        assert_eq!(volume[174..181], [126, 11, 25, 8, 34, 19, 0]);
        let catalog = &blocks[(CATALOG - FIRST) as usize];
        assert_eq!(blocks[1][71..75], CATALOG.to_le_bytes());
        let words = catalog[..32].chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]]));
        assert_eq!(words.fold(0u16, u16::wrapping_add), 0, "the catalog's sum");
        assert_eq!((catalog[1], catalog[32], &catalog[40..44]), (EFI, 0x88, &512u32.to_le_bytes()[..]));
    }
}
