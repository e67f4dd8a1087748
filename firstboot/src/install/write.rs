//! Writing to the chosen disk, in an order in which the power may fail at any moment: first the mark, then the table, then
//! everything else, all of it read back past every cache of this machine, and last the one sector that makes it bootable.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use nix::libc;

use super::contents::ENDS;
use super::mark;
use super::source::Source;
use crate::problem::Problem;
use crate::update::gpt::{Partition, Table};

const CHUNK: usize = 1 << 20;
/// Reading past the page cache wants whole blocks in memory, too.
const ALIGNMENT: usize = 4096;

/// Called with how many bytes more are done.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Bytes from somewhere to a place on the disk.
#[derive(Debug)]
pub struct Part {
    /// What it is, in words.
    pub name: &'static str,
    /// Where they come from.
    pub from: File,
    /// First byte there.
    pub from_at: u64,
    /// How many.
    pub bytes: u64,
    /// First byte on the disk.
    pub at: u64,
}

/// A part that fills the beginning of a partition.
pub fn slot(name: &'static str, from: File, from_at: u64, bytes: u64, slot: &Partition) -> Result<Part> {
    ensure!(bytes <= slot.bytes, "the {name} has {bytes} bytes, its partition {}", slot.bytes);
    Ok(Part { name, from, from_at, bytes, at: slot.at })
}

/// The disk that is written to.
#[derive(Debug)]
pub struct Target<'a> {
    path: &'a Path,
    disk: File,
    bytes: u64,
}

impl<'a> Target<'a> {
    /// Opens a disk nobody else uses.
    pub fn open(path: &'a Path, bytes: u64) -> Result<Self> {
        // Exclusively, for a moment: later its own partitions are used. On a file the flag has no effect.
        let alone = fs::OpenOptions::new().write(true).custom_flags(libc::O_EXCL).open(path);
        alone.map_err(|error| {
            let remedy =
                "something of this machine uses it (LVM, mdraid, a mount): take it apart, or name another disk";
            Problem::new(format!("{error}"), path.display().to_string(), remedy)
        })?;
        let disk = fs::OpenOptions::new().read(true).write(true).open(path)?.into_parts().0;
        Ok(Self { path, disk, bytes })
    }

    /// Marks the disk, takes away what its ends say of earlier content, and writes the table.
    pub fn begin(&self, source: &Source) -> Result<Table> {
        let mut table = source.table.clone();
        table.move_to(self.bytes)?;
        self.put(&mark::sector(source.boot_sector.bytes as usize), mark::AT).context("marking the disk")?;
        let zeros = vec![0; ENDS as usize];
        for at in [0, self.bytes - ENDS] {
            self.put(&zeros, at).context("clearing the ends of the disk")?;
        }
        table.write(&self.disk, self.bytes)?;
        self.put(&table.protective_mbr(self.bytes), 0).context("writing the partition table")?;
        Ok(table)
    }

    /// Writes the parts.
    pub fn write(&self, parts: &[Part], progress: Progress<'_>) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        for part in parts {
            let mut done = 0;
            while done < part.bytes {
                let chunk = &mut buffer[..(part.bytes - done).min(CHUNK as u64) as usize];
                part.from
                    .read_exact_at(chunk, part.from_at + done)
                    .with_context(|| format!("reading the {}", part.name))?;
                self.disk.write_all_at(chunk, part.at + done).with_context(|| self.writing(part))?;
                done += chunk.len() as u64;
                progress(chunk.len() as u64);
            }
            self.disk.sync_all().with_context(|| self.writing(part))?;
        }
        Ok(())
    }

    fn writing(&self, part: &Part) -> String {
        format!("writing the {} to {}", part.name, self.path.display())
    }

    /// Reads the parts back from the disk itself and compares them.
    pub fn compare(&self, parts: &[Part], progress: Progress<'_>) -> Result<()> {
        let disk = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(self.path)?.into_parts().0;
        let (mut theirs, mut room) = (vec![0; CHUNK], vec![0; CHUNK + ALIGNMENT]);
        let skip = room.as_ptr().align_offset(ALIGNMENT);
        for part in parts {
            let mut done = 0;
            while done < part.bytes {
                let length = (part.bytes - done).min(CHUNK as u64) as usize;
                part.from.read_exact_at(&mut theirs[..length], part.from_at + done)?;
                let found = &mut room[skip..skip + length];
                let at = part.at + done;
                disk.read_exact_at(found, at).with_context(|| format!("reading {} back", self.path.display()))?;
                if let Some(n) = found.iter().zip(&theirs).position(|(found, wanted)| found != wanted) {
                    let what = format!("byte {} of it is not what was written ({})", at + n as u64, part.name);
                    let remedy = "the disk is failing: replace it; it does not boot";
                    return Err(Problem::new(what, self.path.display().to_string(), remedy).into());
                }
                done += length as u64;
                progress(length as u64);
            }
        }
        Ok(())
    }

    /// Makes the disk bootable: nothing may follow that could fail.
    pub fn finish(&self, source: &Source) -> Result<()> {
        let part = std::slice::from_ref(&source.boot_sector);
        self.write(part, &mut |_| ())?;
        self.compare(part, &mut |_| ())
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.disk.write_all_at(bytes, at)?;
        Ok(self.disk.sync_all()?)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::NamedTempFile;
    use uuid::Uuid;

    use super::*;
    use crate::install::contents::{self, Contents};
    use crate::install::disks::Disk;
    use crate::update::gpt;
    use crate::update::verity::hex;

    const MIB: u64 = 1 << 20;
    const BYTES: u64 = 64 * MIB;
    const HASH: &str = "00000000000000000000000000000007000000000000000000000000000000ff";

    /// An image: 2 MiB of system partition of which half is used, 4 MiB of root, a hash tree.
    fn image() -> (File, File, File, String) {
        use sha2::{Digest, Sha256};
        let [esp, root, tree] = [
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
        ];
        let parts = [
            (esp, Uuid::from_u128(1), "esp", 2048, 6143),
            (root, Uuid::from_u128(7), "20261125.abcdef01", 6144, 16383),
            (tree, Uuid::from_u128(255), "20261125.abcdef01", 16384, 18431),
        ];
        let head = gpt::tests::disk(10 * MIB, &parts);
        head.write_all_at(b"boot sector", MIB).unwrap();
        head.write_all_at(&vec![3; MIB as usize - 512], MIB + 512).unwrap();
        head.set_len(2 * MIB).unwrap();
        let mut bytes = vec![0; 2 * MIB as usize];
        head.read_exact_at(&mut bytes, 0).unwrap();
        let sum = hex(&Sha256::digest(&bytes));
        let (root, image) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        root.write_all_at(&vec![4; 4 * MIB as usize], 0).unwrap();
        image.write_all_at(&vec![5; 4 * MIB as usize + 8192], 0).unwrap();
        (head, root, image, format!("roothash={HASH} pgkiln.head={sum}"))
    }

    fn source() -> Source {
        let (head, root, image, line) = image();
        Source::of(head, root, image, &line, HASH).unwrap()
    }

    fn look(path: &Path) -> Contents {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        runtime.block_on(contents::look(&Disk::of(path, BYTES, "S1"), scratch.path(), contents::BRIEFLY)).unwrap()
    }

    fn disk() -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(BYTES).unwrap();
        file
    }

    #[test]
    fn until_the_last_sector_it_is_an_unfinished_installation_and_then_the_image() {
        let (source, file) = (source(), disk());
        // Of a disk that was named to be overwritten.
        [0, BYTES - MIB].iter().for_each(|at| file.as_file().write_all_at(&vec![0xaa; MIB as usize], *at).unwrap());
        let target = Target::open(file.path(), BYTES).unwrap();
        let mut done = 0;
        let table = target.begin(&source).unwrap();
        assert_eq!(look(file.path()), Contents::Unfinished);
        target.write(&source.parts, &mut |bytes| done += bytes).unwrap();
        target.compare(&source.parts, &mut |bytes| done += bytes).unwrap();
        assert_eq!(done, 2 * source.bytes());
        assert_eq!(look(file.path()), Contents::Unfinished);
        target.finish(&source).unwrap();
        let Contents::Holds { what, .. } = look(file.path()) else { panic!("what boots is nobody's to take") };
        assert!(what.contains("a partition table (gpt)"), "{what}");
        assert_eq!(Table::read(file.as_file(), BYTES).unwrap().partitions(), table.partitions());
        let byte = |at: u64| {
            let mut byte = [0];
            file.as_file().read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        assert_eq!((byte(MIB), byte(MIB + 512), byte(2 * MIB - 1), byte(2 * MIB)), (b'b', 3, 3, 0));
        assert_eq!((byte(3 * MIB), byte(7 * MIB - 1), byte(7 * MIB)), (4, 4, 0));
        assert_eq!((byte(8 * MIB), byte(8 * MIB + 8191), byte(8 * MIB + 8192)), (5, 5, 0));
        assert_eq!((byte(450), byte(510)), (0xee, 0x55));
        assert_eq!((byte(MIB - 1), byte(BYTES - MIB)), (0, 0), "nothing is left that another program would know again");
    }

    /// Whatever was on the disk when it was named to be overwritten, and whichever write the power fails after.
    #[test]
    fn a_torn_table_is_an_unfinished_installation_too() {
        let (source, file) = (source(), disk());
        let target = Target::open(file.path(), BYTES).unwrap();
        target.begin(&source).unwrap();
        for at in [0, 512, 1024, BYTES - 512, BYTES - 33 * 512] {
            file.as_file().write_all_at(&[0xff; 512], at).unwrap();
            // Random bytes are no signature; a table one copy of which is whole is read from that one.
            assert_eq!(look(file.path()), Contents::Unfinished, "torn at {at}");
        }
        let mut foreign = vec![0; MIB as usize];
        crate::install::signatures::luks(&mut foreign);
        file.as_file().write_all_at(&foreign, 0).unwrap();
        assert!(matches!(look(file.path()), Contents::Holds { .. }), "the mark alone does not make a disk ours");
    }

    #[test]
    fn a_byte_that_is_not_what_was_written_is_found() {
        let (source, file) = (source(), disk());
        let target = Target::open(file.path(), BYTES).unwrap();
        target.begin(&source).unwrap();
        target.write(&source.parts, &mut |_| ()).unwrap();
        for (at, name) in [(3 * MIB + 70_000, "root"), (8 * MIB + 8191, "hash tree"), (MIB + 600, "boot loader")] {
            file.as_file().write_all_at(&[0x80], at).unwrap();
            let told = target.compare(&source.parts, &mut |_| ()).unwrap_err().to_string();
            assert!(told.contains(&format!("byte {at} of it")) && told.contains(name), "{told}");
            target.write(&source.parts, &mut |_| ()).unwrap();
        }
    }

    #[test]
    fn parts_of_another_image_or_altered_ones_are_refused() {
        let told = |line: &str, hash: &str| {
            let (head, root, image, _) = image();
            Source::of(head, root, image, line, hash)
                .map(|_| String::new())
                .unwrap_or_else(|error| format!("{error:#}"))
        };
        let line = image().3;
        assert_eq!(told(&line, HASH), "");
        assert!(told(&line, &HASH.replace("7", "8")).contains("of another image"));
        assert!(told("ro", HASH).contains("no `pgkiln.head=`"));
        let altered = line.replace("head=", "head=0");
        assert!(told(&altered, HASH).contains("was altered"));
        assert_eq!(source().needed, 9 * MIB + 5 * MIB + MIB + (1 << 30));
    }
}
