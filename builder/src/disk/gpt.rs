//! A partition table, read back: what a disk really holds, not what was asked for.
//!
//! UEFI specification 2.10, section 5.3; kinds of partitions: UAPI Discoverable Partitions Specification.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use uuid::Uuid;

use crate::problem::Problem;

/// Sizes a disk's sectors may have.
const SECTORS: [u64; 2] = [512, 4096];
const HEADER: usize = 92;
const ENTRY: usize = 128;

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// EFI system partition.
    Esp,
    /// Read-only root.
    Root,
    /// Its hash tree.
    RootVerity,
    /// Anything else.
    Other(Uuid),
}

impl Kind {
    fn of(id: Uuid) -> Self {
        match id.to_string().as_str() {
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => Self::Esp,
            // x86-64 and 64-bit ARM.
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" | "b921b045-1df0-41c3-af44-4c6f280d3fae" => Self::Root,
            "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5" | "df3300ce-d69f-4c92-978c-9bfb0f38d820" => Self::RootVerity,
            _ => Self::Other(id),
        }
    }

    /// As systemd-repart calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::Root => "root",
            Self::RootVerity => "root-verity",
            Self::Other(_) => "other",
        }
    }
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What for.
    pub kind: Kind,
    /// Its own identifier.
    pub uuid: Uuid,
    /// Its name.
    pub label: String,
    /// First byte.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's identifier.
    pub uuid: Uuid,
    /// Bytes of a sector.
    pub sector: u64,
    /// The used entries, in order.
    pub partitions: Vec<Partition>,
}

/// Reads the table of a raw disk and checks its sums.
pub fn read(disk: &Path) -> anyhow::Result<Table> {
    let file = fs_err::File::open(disk)?;
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.file().read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    let bad = |what: &str| Problem::new(what, disk.display().to_string(), "bake it again, or copy it again");
    for sector in SECTORS {
        let Ok(mut header) = read(sector, HEADER) else { continue };
        if !header.starts_with(b"EFI PART") {
            continue;
        }
        let (sum, entries_sum) = (u32_at(&header, 16), u32_at(&header, 88));
        header[16..20].fill(0);
        let (count, size) = (u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
        if crc(&header) != sum || size != ENTRY || count > 1024 {
            return Err(bad("the header of its partition table was altered").into());
        }
        let place = u64_at(&header, 72).checked_mul(sector).ok_or_else(|| bad("its partition table is nowhere"))?;
        let entries = read(place, count * size).context("reading the partition table")?;
        if crc(&entries) != entries_sum {
            return Err(bad("its partition table was altered").into());
        }
        let used = entries.chunks(ENTRY).filter(|entry| entry[..16] != [0; 16]);
        let partitions: Option<Vec<_>> = used.map(|entry| partition(entry, sector)).collect();
        let partitions = partitions.ok_or_else(|| bad("a partition of it ends before it begins, or nowhere"))?;
        return Ok(Table { uuid: uuid_at(&header, 56), sector, partitions });
    }
    Err(bad("it has no partition table").into())
}

fn partition(entry: &[u8], sector: u64) -> Option<Partition> {
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let units = entry[56..128].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let label: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Some(Partition {
        kind: Kind::of(uuid_at(entry, 0)),
        uuid: uuid_at(entry, 16),
        label: String::from_utf16_lossy(&label),
        offset: first.checked_mul(sector)?,
        bytes: last.checked_add(1)?.checked_sub(first)?.checked_mul(sector)?,
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes_le(std::array::from_fn(|n| bytes[at + n]))
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn table(entries_at: u64, first: u64, last: u64) -> anyhow::Result<Table> {
        let disk = tempfile::NamedTempFile::new()?;
        write(disk.as_file(), Uuid::from_u128(1), entries_at, first, last)?;
        read(disk.path())
    }

    /// A table with one entry and right sums, as somebody would write it who wants to be believed.
    pub(crate) fn write(
        disk: &std::fs::File,
        kind: Uuid,
        entries_at: u64,
        first: u64,
        last: u64,
    ) -> std::io::Result<()> {
        let mut entry = [0; ENTRY];
        entry[..16].copy_from_slice(&kind.to_bytes_le());
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[80] = 1;
        header[84] = ENTRY as u8;
        header[88..92].copy_from_slice(&crc(&entry).to_le_bytes());
        let sum = crc(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write_all_at(&header, 512)?;
        disk.write_all_at(&entry, 1024)
    }

    #[test]
    fn numbers_that_lead_nowhere_are_refused_and_not_computed_with() {
        let good = table(2, 40, 47).unwrap().partitions;
        assert_eq!((good[0].offset, good[0].bytes), (40 * 512, 8 * 512));
        for (entries_at, first, last) in
            [(u64::MAX, 40, 47), (2, 47, 40), (2, 0, u64::MAX), (2, u64::MAX / 2, u64::MAX - 1)]
        {
            let told = format!("{:#}", table(entries_at, first, last).unwrap_err());
            assert!(told.contains("nowhere"), "{told}");
        }
    }
}
