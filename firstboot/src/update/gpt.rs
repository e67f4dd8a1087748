//! The partition table of the disk this machine was booted from: found, read, and renamed into.
//!
//! UEFI specification 2.10, section 5.3. Both copies are written, one after the other and each synced: whenever the power
//! fails, one of them is whole. The backup comes first, because the kernel looks at it only when the first copy is broken
//! and its command line says `gpt`, as the images' does.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use uuid::Uuid;

use crate::problem::Problem;

/// Sizes a disk's sectors may have.
const SECTORS: [u64; 2] = [512, 4096];
const HEADER: usize = 92;
const ENTRY: usize = 128;
/// More entries than anybody writes.
const MOST: usize = 1024;

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read-only root.
    Root,
    /// Its hash tree.
    Hashes,
    /// Anything else.
    Other,
}

impl Kind {
    /// UAPI Discoverable Partitions Specification; x86-64 and 64-bit ARM.
    fn of(id: Uuid) -> Self {
        match id.to_string().as_str() {
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" | "b921b045-1df0-41c3-af44-4c6f280d3fae" => Self::Root,
            "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5" | "df3300ce-d69f-4c92-978c-9bfb0f38d820" => Self::Hashes,
            _ => Self::Other,
        }
    }
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As the kernel numbers it, from 1.
    pub number: usize,
    /// What for.
    pub kind: Kind,
    /// Its own identifier.
    pub uuid: Uuid,
    /// Its name.
    pub label: String,
    /// First byte.
    pub at: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// A partition table as it is on the disk.
#[derive(Debug, Clone)]
pub struct Table {
    sector: u64,
    /// The header that was believed, with the sum left out.
    header: Vec<u8>,
    entries: Vec<u8>,
}

impl Table {
    /// Reads the first copy, or the backup if the first is broken.
    pub fn read(disk: &File, bytes: u64) -> Result<Self> {
        for sector in SECTORS {
            for at in [sector, bytes.saturating_sub(sector)] {
                if let Some(table) = Self::read_at(disk, at, sector)? {
                    return Ok(table);
                }
            }
        }
        let remedy = "look at the disk with `systemd-repart --dry-run=yes`; nothing was written";
        Err(Problem::new("the boot disk has no partition table with a right sum", "boot disk", remedy).into())
    }

    fn read_at(disk: &File, at: u64, sector: u64) -> Result<Option<Self>> {
        let mut header = vec![0; HEADER];
        if disk.read_exact_at(&mut header, at).is_err() || !header.starts_with(b"EFI PART") {
            return Ok(None);
        }
        let (sum, entries_sum) = (u32_at(&header, 16), u32_at(&header, 88));
        header[16..20].fill(0);
        let (count, size) = (u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
        if crc(&header) != sum || size != ENTRY || count > MOST || u32_at(&header, 12) as usize != HEADER {
            return Ok(None);
        }
        let mut entries = vec![0; count * size];
        let place = u64_at(&header, 72).checked_mul(sector).context("the partition table is nowhere")?;
        disk.read_exact_at(&mut entries, place).context("reading the partition table")?;
        Ok((crc(&entries) == entries_sum).then_some(Self { sector, header, entries }))
    }

    /// The used entries, in order.
    pub fn partitions(&self) -> Vec<Partition> {
        let numbered = self.entries.chunks(ENTRY).zip(1..).filter(|(entry, _)| entry[..16] != [0; 16]);
        let partition = |(entry, number): (&[u8], usize)| {
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            let units = entry[56..128].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let label: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            Some(Partition {
                number,
                kind: Kind::of(uuid_at(entry, 0)),
                uuid: uuid_at(entry, 16),
                label: String::from_utf16_lossy(&label),
                at: first.checked_mul(self.sector)?,
                bytes: last.checked_add(1)?.checked_sub(first)?.checked_mul(self.sector)?,
            })
        };
        numbered.filter_map(partition).collect()
    }

    /// Gives a partition another identifier and name.
    pub fn rename(&mut self, number: usize, uuid: Uuid, label: &str) -> Result<()> {
        let entry = self.entries.chunks_mut(ENTRY).nth(number - 1).context("no such partition")?;
        entry[16..32].copy_from_slice(&uuid.to_bytes_le());
        entry[56..].fill(0);
        // 36 units, as UEFI has it; what does not fit is for people only.
        for (place, unit) in entry[56..].chunks_mut(2).zip(label.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
        Ok(())
    }

    /// Bytes of a sector.
    pub fn sector(&self) -> u64 {
        self.sector
    }

    /// Makes it the table of another disk, of `bytes`.
    pub fn move_to(&mut self, bytes: u64) -> Result<()> {
        let last = bytes / self.sector - 1;
        let entries = (self.entries.len() as u64).div_ceil(self.sector);
        let usable = last.checked_sub(entries + 1).context("the disk is smaller than a partition table")?;
        let fits = self.partitions().iter().all(|one| one.at + one.bytes <= (usable + 1) * self.sector);
        anyhow::ensure!(fits, "the disk ends within its partitions");
        let fields = [(24, 1), (32, last), (48, usable), (72, 2)];
        fields.iter().for_each(|(at, value)| self.header[*at..at + 8].copy_from_slice(&u64::to_le_bytes(*value)));
        self.header[56..72].copy_from_slice(&Uuid::new_v4().to_bytes_le());
        Ok(())
    }

    /// What the first sector says to programs that know no such tables: the disk is full (UEFI, 5.2.3).
    pub fn protective_mbr(&self, bytes: u64) -> Vec<u8> {
        let mut mbr = vec![0; self.sector as usize];
        let sectors = u32::try_from(bytes / self.sector - 1).unwrap_or(u32::MAX);
        mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
        mbr[458..462].copy_from_slice(&sectors.to_le_bytes());
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        mbr
    }

    /// Writes both copies, the backup first.
    pub fn write(&self, disk: &File, bytes: u64) -> Result<()> {
        let length = (self.entries.len() as u64).next_multiple_of(self.sector);
        let last = bytes / self.sector - 1;
        let (own, other) = (u64_at(&self.header, 24), u64_at(&self.header, 32));
        let (first_at, backup_at) = (own.min(other), own.max(other));
        // A disk that has grown keeps its backup where it was until systemd-repart has moved it.
        anyhow::ensure!(first_at == 1 && backup_at <= last, "the partition table's copies are not at the disk's ends");
        let first_entries = if own == first_at { u64_at(&self.header, 72) } else { 2 };
        let backup_entries = backup_at - length / self.sector;
        for (at, twin, entries) in [(backup_at, first_at, backup_entries), (first_at, backup_at, first_entries)] {
            let mut header = self.header.clone();
            header[24..32].copy_from_slice(&at.to_le_bytes());
            header[32..40].copy_from_slice(&twin.to_le_bytes());
            header[72..80].copy_from_slice(&entries.to_le_bytes());
            header[88..92].copy_from_slice(&crc(&self.entries).to_le_bytes());
            let sum = crc(&header);
            header[16..20].copy_from_slice(&sum.to_le_bytes());
            disk.write_all_at(&self.entries, entries * self.sector).context("writing the partition table")?;
            disk.write_all_at(&header, at * self.sector).context("writing the partition table")?;
            disk.sync_all().context("writing the partition table")?;
        }
        Ok(())
    }
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

    /// A disk of `bytes` with these partitions: type, identifier, name, first and last sector.
    pub(crate) fn disk(bytes: u64, partitions: &[(&str, Uuid, &str, u64, u64)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let mut entries = vec![0; ENTRY * 128];
        for (entry, (kind, uuid, label, first, last)) in entries.chunks_mut(ENTRY).zip(partitions) {
            entry[..16].copy_from_slice(&Uuid::parse_str(kind).unwrap().to_bytes_le());
            entry[16..32].copy_from_slice(&uuid.to_bytes_le());
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for (place, unit) in entry[56..].chunks_mut(2).zip(label.encode_utf16()) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        let mut header = vec![0; HEADER];
        header[..8].copy_from_slice(b"EFI PART");
        header[10] = 1;
        header[12] = 92;
        header[24] = 1;
        header[32..40].copy_from_slice(&(bytes / 512 - 1).to_le_bytes());
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        Table { sector: 512, header, entries }.write(&file, bytes).unwrap();
        file
    }

    const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    const BYTES: u64 = 4 << 20;

    #[test]
    fn a_partition_gets_another_name_in_both_copies_and_nothing_else_changes() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let disk = disk(BYTES, &[(ROOT, a, "1", 2048, 3071), (ROOT, b, "_empty", 3072, 4095)]);
        let mut table = Table::read(&disk, BYTES).unwrap();
        let before = table.partitions();
        assert_eq!((before[1].number, before[1].at, before[1].bytes), (2, 3072 * 512, 512 << 10));
        let new = Uuid::from_u128(7);
        table.rename(2, new, "20261125.abcdef01").unwrap();
        table.write(&disk, BYTES).unwrap();
        let expected =
            [before[0].clone(), Partition { uuid: new, label: "20261125.abcdef01".into(), ..before[1].clone() }];
        assert_eq!(Table::read(&disk, BYTES).unwrap().partitions(), expected);
        // The first copy is gone: the backup says the same, and writing makes the first whole again.
        disk.write_all_at(&[0; 512], 512).unwrap();
        let table = Table::read(&disk, BYTES).unwrap();
        assert_eq!(table.partitions(), expected);
        table.write(&disk, BYTES).unwrap();
        disk.write_all_at(&[0; 512], BYTES - 512).unwrap();
        assert_eq!(Table::read(&disk, BYTES).unwrap().partitions(), expected);
        disk.write_all_at(&[0; 512], 512).unwrap();
        assert!(Table::read(&disk, BYTES).is_err());
    }

    #[test]
    fn a_table_moves_to_a_larger_disk_and_not_to_one_that_is_too_small() {
        let parts = [(ROOT, Uuid::from_u128(1), "1", 2048, 3071)];
        let mut table = Table::read(&disk(BYTES, &parts), BYTES).unwrap();
        let before = table.partitions();
        let large = tempfile::tempfile().unwrap();
        large.set_len(3 * BYTES).unwrap();
        table.move_to(3 * BYTES).unwrap();
        table.write(&large, 3 * BYTES).unwrap();
        large.write_all_at(&[0; 512], 512).unwrap();
        assert_eq!(Table::read(&large, 3 * BYTES).unwrap().partitions(), before, "from the copy at its end");
        assert!(table.move_to(3072 * 512 + 32 * 512).is_err());
        assert!(table.move_to(4096).is_err());
        let mbr = table.protective_mbr(3 * BYTES);
        assert_eq!((mbr[450], &mbr[458..462]), (0xee, &(3 * BYTES as u32 / 512 - 1).to_le_bytes()[..]));
    }

    /// Whichever of the four writes was the last one that got through, a whole copy is there: the old one or the new one.
    #[test]
    fn a_power_cut_between_any_two_writes_leaves_a_table() {
        let (a, b, new) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(7));
        let parts = [(ROOT, a, "1", 2048, 3071), (ROOT, b, "_empty", 3072, 4095)];
        let image = |file: &File| {
            let mut bytes = vec![0; BYTES as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let disk = disk(BYTES, &parts);
        let old = image(&disk);
        let mut table = Table::read(&disk, BYTES).unwrap();
        table.rename(2, new, "new").unwrap();
        table.write(&disk, BYTES).unwrap();
        let new_image = image(&disk);
        let sectors = |from: u64, count: u64| (from * 512) as usize..((from + count) * 512) as usize;
        let last = BYTES / 512 - 1;
        // In the order in which they are written.
        let writes = [sectors(last - 32, 32), sectors(last, 1), sectors(2, 32), sectors(1, 1)];
        for done in 0..=writes.len() {
            let mut torn = old.clone();
            for write in &writes[..done] {
                torn[write.clone()].copy_from_slice(&new_image[write.clone()]);
            }
            disk.write_all_at(&torn, 0).unwrap();
            let seen = Table::read(&disk, BYTES).unwrap().partitions()[1].uuid;
            // Once the first copy is begun, its broken sum makes the backup count, which is new already.
            assert_eq!(seen, if done < 3 { b } else { new }, "after {done} writes");
        }
    }
}
