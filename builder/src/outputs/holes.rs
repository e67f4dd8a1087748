//! Where a disk has content, decided by its bytes and not by what a file system happens to have allocated.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Zeros shorter than this are content too: every hole costs an entry of somebody's list.
const GRAIN: u64 = 1 << 20;

/// A stretch of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) length: u64,
}

/// The content of a file, in order.
pub(super) fn extents(file: &File, length: u64) -> io::Result<Vec<Extent>> {
    let mut found: Vec<Extent> = Vec::new();
    let mut buffer = vec![0; GRAIN as usize];
    for offset in (0..length).step_by(GRAIN as usize) {
        let part = &mut buffer[..GRAIN.min(length - offset) as usize];
        file.read_exact_at(part, offset)?;
        if part.iter().all(|byte| *byte == 0) {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length += part.len() as u64,
            _ => found.push(Extent { offset, length: part.len() as u64 }),
        }
    }
    Ok(found)
}

/// Copies the content to the same places of an empty file.
pub(super) fn copy(from: &File, to: &File, length: u64) -> io::Result<()> {
    to.set_len(length)?;
    let mut buffer = vec![0; GRAIN as usize];
    for extent in extents(from, length)? {
        let end = extent.offset + extent.length;
        for offset in (extent.offset..end).step_by(GRAIN as usize) {
            let part = &mut buffer[..GRAIN.min(end - offset) as usize];
            from.read_exact_at(part, offset)?;
            to.write_all_at(part, offset)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_and_zeros_are_none() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(6 * GRAIN + 10).unwrap();
        for at in [GRAIN + 5, 2 * GRAIN, 6 * GRAIN + 9] {
            file.write_all_at(b"x", at).unwrap();
        }
        let expected = [Extent { offset: GRAIN, length: 2 * GRAIN }, Extent { offset: 6 * GRAIN, length: 10 }];
        assert_eq!(extents(&file, 6 * GRAIN + 10).unwrap(), expected);
    }
}
