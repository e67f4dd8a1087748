//! A single bit of a disk that is not what it was: whatever of the root is read, the machine notices, stops and says why.
//!
//! Each run is a boot of its own, because one altered block ends a machine. It reads the whole root, so a flip that does not
//! matter for booting is read, too.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use pgkiln::outputs::Format;

use crate::qemu::{self, Kernel, Machine};
use crate::random::SplitMix;
use crate::{disk, memory};

/// From power to the machine's end.
const LIMIT: Duration = Duration::from_secs(600);
/// The first block of the hash partition says how the tree is laid out; nothing of it is part of the tree (veritysetup(8)).
const BLOCK: u64 = 4096;
/// Reads every block of the root as the kernel gives it out. There is no journal to take what it says.
const READ: &str = "\
echo probe-reads >/dev/console; \
cat $(findmnt -no SOURCE /) > /dev/null; \
echo probe-read=$? >/dev/console; \
systemctl poweroff --force";
/// What the kernel and the initrd's program say of a block that is not what the root hash stands for.
const NOTICED: [&str; 2] = ["is corrupted", "does not have the root hash of the command line"];

/// A disk, and the ranges a flip may hit.
pub struct Prepared {
    dir: tempfile::TempDir,
    disk: PathBuf,
    kernel: Kernel,
    /// Start and length of the root's content, then of its hash tree.
    ranges: [(u64, u64); 2],
}

impl Prepared {
    /// Bakes a disk, and makes sure that an unaltered one is read to its end.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("pgkiln-flips-").tempdir_in("/var/tmp")?;
        let outputs = disk::outputs("flips", &[Format::Raw, Format::Pxe], None)?;
        let disk = dir.path().join("disk.raw");
        qemu::disk(outputs.file(".raw")?, &disk, fs_err::metadata(outputs.file(".raw")?)?.len())?;
        // Firmware and boot loader are not the question, nor are the services that a node has: the probe alone.
        // A host that is too busy for a moment is no broken timer.
        let kernel = memory::without_root(&outputs, "systemd.unit=probe.service panic=1 no_timer_check")?;
        let table = pgkiln::disk::gpt::read(&disk)?;
        let start = |name: &str| {
            let part = table.partitions.iter().find(|one| one.kind.name() == name).context("a partition")?;
            anyhow::Ok(part.offset)
        };
        let file = fs_err::File::open(&disk)?.into_parts().0;
        let (root, hashes) = (start("root")?, start("root-verity")?);
        // The number of data blocks, in the superblock of the tree (cryptsetup, docs/on-disk-format of dm-verity).
        let mut blocks = [0; 8];
        file.read_exact_at(&mut blocks, hashes + 72)?;
        let length = u64::from_le_bytes(blocks) * BLOCK;
        let ranges = [(root, length), (hashes + BLOCK, tree(length))];
        let prepared = Self { dir, disk, kernel, ranges };
        let said = prepared.boot(&prepared.dir.path().join("unaltered"), &prepared.disk)?;
        ensure!(said.contains("probe-read=0") && !noticed(&said), "an unaltered disk:\n{said}");
        Ok(prepared)
    }

    fn boot(&self, dir: &Path, disk: &Path) -> anyhow::Result<String> {
        let machine = Machine::new(dir, disk)?.bios().probe(READ).kernel(self.kernel.clone());
        machine.boot()?.wait_for_end(LIMIT)
    }

    /// Flips one bit in a copy, and boots it. Where it was, and how it was noticed.
    pub fn run(&self, number: u64) -> anyhow::Result<String> {
        let mut random = SplitMix(number);
        // Every fourth hits the tree: by size alone it would be one in 128.
        let (what, (start, length)) =
            if number.is_multiple_of(4) { ("hash tree", self.ranges[1]) } else { ("root", self.ranges[0]) };
        let (at, bit) = (random.below(length), random.below(8));
        let dir = tempfile::tempdir_in(self.dir.path())?;
        let disk = dir.path().join("disk.raw");
        qemu::disk(&self.disk, &disk, fs_err::metadata(&self.disk)?.len())?;
        flip(&disk, start + at, 1 << bit)?;
        let (said, place) = (self.boot(dir.path(), &disk)?, format!("bit {bit} of byte {at} of the {what}"));
        ensure!(noticed(&said), "{place} went unnoticed:\n{said}");
        ensure!(!said.contains("probe-read=0"), "{place} was given out as if it were right:\n{said}");
        let served = if said.contains("probe-reads") { "when read" } else { "while booting" };
        Ok(format!("{place}: noticed {served}"))
    }
}

fn flip(disk: &Path, at: u64, bit: u8) -> anyhow::Result<()> {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(disk)?.into_parts().0;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    Ok(file.write_all_at(&[byte[0] ^ bit], at)?)
}

fn noticed(said: &str) -> bool {
    NOTICED.iter().any(|text| said.contains(text))
}

/// Bytes of the tree over so many bytes: 32 for every block of the level below, up to the level of one block.
fn tree(bytes: u64) -> u64 {
    let mut sum = 0;
    let mut level = bytes;
    while level > BLOCK {
        level = (level.div_ceil(BLOCK) * 32).next_multiple_of(BLOCK);
        sum += level;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_a_level_of_one_block_at_its_top() {
        assert_eq!(tree(BLOCK * 128), BLOCK);
        assert_eq!(tree(BLOCK * 129), BLOCK * 3);
        assert_eq!(tree(BLOCK * 128 * 128), BLOCK * 129);
    }
}
