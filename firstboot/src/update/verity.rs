//! The root hash of what was written, computed anew from what is read back.
//!
//! Format: the kernel's `Documentation/admin-guide/device-mapper/verity.rst`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

const BLOCK: usize = 4096;
/// Hashes in a block of the tree.
const PER_BLOCK: usize = BLOCK / 32;
const SUPERBLOCK: usize = 512;

/// Somewhere bytes begin: a partition on its disk, or a file.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The file or disk.
    pub file: &'a File,
    /// First byte.
    pub at: u64,
    /// How many bytes there are.
    pub bytes: u64,
}

impl Place<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        ensure!(offset + buffer.len() as u64 <= self.bytes, "it ends after {} bytes", self.bytes);
        Ok(self.file.read_exact_at(buffer, self.at + offset)?)
    }
}

/// The root hash of `data`, as hexadecimal digits, if `tree` is its hash tree in every byte.
pub fn root_hash(data: Place<'_>, tree: Place<'_>, mut progress: impl FnMut(u64)) -> Result<String> {
    let mut head = [0; SUPERBLOCK];
    tree.read(&mut head, 0).context("reading the hash tree")?;
    let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| head[at + n])) as usize;
    let known = head.starts_with(b"verity\0\0") && head[32..64].starts_with(b"sha256\0");
    ensure!(known && number(64) == BLOCK && number(68) == BLOCK, "there is no hash tree of a kind this agent knows");
    let blocks = u64::from_le_bytes(std::array::from_fn(|n| head[72 + n]));
    let room = data.bytes / BLOCK as u64;
    ensure!((1..=room).contains(&blocks), "the hash tree is of {blocks} blocks, there are {room}");
    let salt = head.get(88..88 + usize::from(u16::from_le_bytes([head[80], head[81]])));
    let salt = salt.context("the hash tree's salt is too long")?;
    let hash = |block: &[u8]| Sha256::new().chain_update(salt).chain_update(block).finalize();
    let mut level = Vec::new();
    let mut buffer = vec![0; PER_BLOCK * BLOCK];
    for first in (0..blocks).step_by(PER_BLOCK) {
        let part = &mut buffer[..(blocks - first).min(PER_BLOCK as u64) as usize * BLOCK];
        data.read(part, first * BLOCK as u64).context("reading the root")?;
        level.extend(part.chunks(BLOCK).flat_map(hash));
        progress(part.len() as u64);
    }
    let mut levels = Vec::new();
    loop {
        level.resize(level.len().next_multiple_of(BLOCK), 0);
        let above: Vec<u8> = level.chunks(BLOCK).flat_map(hash).collect();
        levels.push(level);
        level = above;
        if level.len() == 32 {
            break;
        }
    }
    // The top comes first on disk.
    let wanted: Vec<u8> = levels.into_iter().rev().flatten().collect();
    let mut stored = vec![0; wanted.len()];
    tree.read(&mut stored, BLOCK as u64).context("reading the hash tree")?;
    ensure!(stored == wanted, "the hash tree is not the root's");
    Ok(hex(&level))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
