//! The mark of an installation that is not finished: one sector, where the EFI system partition begins.
//!
//! It is written before anything else, and the boot sector that replaces it is what is written last. So one write of one
//! sector decides: before it no firmware sees a file system there and nothing boots, after it everything has been
//! read back. A disk with the mark whose partitions are all ours was blank (or named to be overwritten) when the installation
//! began, and nothing but the installation has written to it since: another one may take it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::update::gpt::{Kind, Table};

/// First byte of the EFI system partition: of every disk this program makes.
pub const AT: u64 = 1 << 20;
const TEXT: &[u8] = b"pgkiln: an installation has begun here and is not finished\n";
/// What a smaller disk's sectors have; larger ones begin with the same bytes.
const SMALLEST: usize = 512;

/// The sector.
pub fn sector(bytes: usize) -> Vec<u8> {
    let mut sector = TEXT.to_vec();
    sector.resize(bytes, 0);
    sector
}

/// Whether it is there, and the partition table is ours or none at all.
pub fn is_unfinished(disk: &File, bytes: u64) -> io::Result<bool> {
    let mut found = [0; SMALLEST];
    match disk.read_exact_at(&mut found, AT) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(found[..] == sector(SMALLEST) && Table::read(disk, bytes).map_or(true, |table| is_ours(&table)))
}

/// The system partition where the mark is, slots, and `/var`: nothing else.
fn is_ours(table: &Table) -> bool {
    let partitions = table.partitions();
    let first = partitions.first().is_some_and(|one| one.label == "esp" && one.at == AT);
    first && partitions[1..].iter().all(|one| one.kind != Kind::Other || one.label == "var")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::update::gpt::tests::disk;

    const BYTES: u64 = 8 << 20;
    const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
    const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    const DATA: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

    #[test]
    fn only_the_mark_with_our_own_table_or_none_is_an_unfinished_installation() {
        let id = Uuid::from_u128;
        let esp = (ESP, id(1), "esp", 2048, 4095);
        let ours = [esp, (ROOT, id(2), "20261125.abcdef01", 4096, 5119), (DATA, id(3), "var", 5120, 6143)];
        let judged = |file: &File| {
            let without = is_unfinished(file, BYTES).unwrap();
            file.write_all_at(&sector(SMALLEST), AT).unwrap();
            (without, is_unfinished(file, BYTES).unwrap())
        };
        assert_eq!(judged(&disk(BYTES, &ours)), (false, true));
        assert_eq!(judged(&disk(BYTES, &ours[..1])), (false, true));
        // The data of a live node, or of anybody.
        let other = [esp, (DATA, id(3), "pgkiln-state", 5120, 6143)];
        assert_eq!(judged(&disk(BYTES, &other)), (false, false));
        let elsewhere = [(ESP, id(1), "esp", 4096, 5119), (ROOT, id(2), "x", 6144, 7167)];
        assert_eq!(judged(&disk(BYTES, &elsewhere)), (false, false));
        let table = tempfile::tempfile().unwrap();
        table.set_len(BYTES).unwrap();
        assert_eq!(judged(&table), (false, true), "the power failed before there was a table");
        let short = tempfile::tempfile().unwrap();
        assert!(!is_unfinished(&short, 0).unwrap());
    }
}
