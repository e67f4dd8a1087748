//! Reading files that are mostly holes, as disks are: a hole is zeros without asking the kernel for them page by page.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::digest::{Hasher, Sha256};

/// A stretch of a file, read in order. What the file system calls a hole (lseek(2), `SEEK_DATA`) reads as zeros; one that knows no
/// holes calls everything data, and the bytes are the same.
#[derive(Debug)]
pub(crate) struct Sparse<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    /// What is at [`Self::at`]: a hole or data, and to where.
    hole: bool,
    until: u64,
}

impl<'a> Sparse<'a> {
    /// The `length` bytes from `offset` on. It moves the file's own position.
    pub(crate) fn new(file: &'a File, offset: u64, length: u64) -> Self {
        Self { file, at: offset, end: offset.saturating_add(length), hole: false, until: offset }
    }

    /// Asks what comes next.
    fn look(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let from = i64::try_from(self.at).map_err(io::Error::other)?;
        let seek = |whence| lseek(self.file, from, whence).map(|found| found.cast_unsigned());
        (self.hole, self.until) = match seek(Whence::SeekData) {
            // Reading says that it ends here.
            _ if length <= self.at => (false, self.end),
            Ok(data) if data > self.at => (true, data),
            Err(Errno::ENXIO) => (true, length),
            Ok(_) => (false, seek(Whence::SeekHole).unwrap_or(self.end)),
            Err(_) => (false, self.end),
        };
        Ok(())
    }
}

impl Read for Sparse<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end {
            return Ok(0);
        }
        if self.at == self.until {
            self.look()?;
        }
        let most =
            usize::try_from(self.until.min(self.end).saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let read = match self.hole {
            true => {
                buffer[..most].fill(0);
                most
            }
            false => self.file.read_at(&mut buffer[..most], self.at)?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// How much of a stretch of a disk is in use, and the digest of that: most of a new disk is room for later, and zeros take as long
/// to hash as anything else.
pub(crate) fn content(disk: &File, offset: u64, bytes: u64) -> io::Result<(u64, Sha256)> {
    const BLOCK: usize = 4096;
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let (mut hasher, mut used, mut at) = (Hasher::new(), 0, 0);
    let mut stretch = Sparse::new(disk, offset, bytes);
    let mut buffer = vec![0; 1 << 20];
    while at < bytes {
        let part = &mut buffer[..(bytes - at).min(1 << 20) as usize];
        stretch.read_exact(part)?;
        let first = at;
        at += part.len() as u64;
        let blocks = part.chunks(BLOCK).rposition(|block| *block != ZEROS[..block.len()]).map_or(0, |last| last + 1);
        if blocks == 0 {
            continue;
        }
        // Zeros that were passed over have something behind them after all.
        (used..first).step_by(BLOCK).for_each(|_| hasher.update(ZEROS));
        let end = (blocks * BLOCK).min(part.len());
        hasher.update(&part[..end]);
        used = first + end as u64;
    }
    Ok((used, hasher.finish()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_reads_what_is_there(
            length in 0..400_000u64,
            writes in prop::collection::vec((0..400_000u64, 1..9000usize), 0..6),
            (offset, more) in (0..500_000u64, 0..500_000u64),
        ) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            for (at, bytes) in writes {
                file.write_all_at(&vec![7; bytes], at).unwrap();
            }
            let mut all = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            let mut read = Vec::new();
            Sparse::new(&file, offset, more).read_to_end(&mut read).unwrap();
            let (from, to) = (all.len().min(offset as usize), all.len().min((offset + more) as usize));
            prop_assert!(read == all[from..to], "{} and {}", read.len(), to - from);
        }
    }

    /// Else nothing is gained, and nobody would notice.
    #[test]
    fn a_hole_is_not_read() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"x", 1 << 39).unwrap();
        let mut holes = Sparse::new(&file, 0, 1 << 40);
        let mut buffer = vec![1; 4096];
        holes.read_exact(&mut buffer).unwrap();
        assert!(holes.hole && holes.until == 1 << 39, "{holes:?}");
        let mut rest = Sparse::new(&file, (1 << 39) + 4096, 1 << 39);
        rest.read_exact(&mut buffer).unwrap();
        assert!(rest.hole && rest.until == 1 << 40, "{rest:?}");
    }

    #[test]
    fn a_stretch_ends_for_its_digest_where_only_zeros_follow() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(5 << 20).unwrap();
        let (from, bytes) = (4096, 4u64 << 20);
        let (used, sha256) = content(&disk, from, bytes).unwrap();
        assert_eq!((used, sha256), (0, Sha256::of("")));
        // Within a block; behind holes of several reads; the last byte.
        for (at, expected) in [(10, 4096), ((3 << 20) + 4096, (3 << 20) + 8192), (bytes - 1, bytes)] {
            disk.write_all_at(b"x", from + at).unwrap();
            let mut all = vec![0; expected as usize];
            disk.read_exact_at(&mut all, from).unwrap();
            assert_eq!(content(&disk, from, bytes).unwrap(), (expected, Sha256::of(all)), "{at}");
        }
        disk.write_all_at(b"outside", from + bytes).unwrap();
        assert_eq!(content(&disk, from, bytes).unwrap().0, bytes);
        assert!(content(&disk, from, 5 << 20).is_err(), "a disk that ends within");
    }
}
