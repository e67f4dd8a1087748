//! The hash tree that lets the kernel check every block of the root as it is read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::Context;

use super::Work;
use crate::digest::{Hasher, Sha256};

const BLOCK: usize = 4096;
/// Hashes in a block of the tree.
const PER_BLOCK: usize = BLOCK / 32;
const SUPERBLOCK: usize = 512;

/// Makes the hash tree with the tool tree's veritysetup: its file and the root hash.
pub(super) fn format(work: &Work<'_>) -> anyhow::Result<(PathBuf, String)> {
    let hashes = work.dir.join("root.verity");
    let root = work.root.file_name().and_then(|name| name.to_str()).context("path of the root image")?;
    let link = work.dir.join(root);
    // A link, not a copy: the sandbox shows one directory.
    if link != work.root {
        fs_err::hard_link(work.root, &link)?;
    }
    let output = work.run(&[
        "veritysetup",
        "format",
        "--hash=sha256",
        "--data-block-size=4096",
        "--hash-block-size=4096",
        &format!("--salt={}", work.digest("salt")),
        &format!("--uuid={}", work.uuid("verity")),
        &format!("/srv/{root}"),
        "/srv/root.verity",
    ])?;
    // veritysetup makes it private.
    fs_err::set_permissions(&hashes, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let text = String::from_utf8(output.stdout).context("veritysetup's output")?;
    let hash = text.lines().find_map(|line| line.strip_prefix("Root hash:")).map(|hash| hash.trim().to_owned());
    let hash = hash.filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
    Ok((hashes, hash.context("veritysetup printed no root hash")?))
}

/// What a hash tree says and what its data says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recomputed {
    /// The root hash of the data.
    pub root_hash: Sha256,
    /// Whether the stored tree is the data's.
    pub tree_matches: bool,
    /// How many bytes of data it covers.
    pub data_bytes: u64,
}

/// Computes the hash tree of the data at `data` anew, with the salt and length that the superblock at `hashes` states, and compares
/// it with the tree stored there. Format: the kernel's `Documentation/admin-guide/device-mapper/verity.rst`; code of ours, so
/// that it does not believe the program that wrote it.
pub fn recompute(disk: &File, data: u64, hashes: u64) -> anyhow::Result<Recomputed> {
    let mut head = [0; SUPERBLOCK];
    disk.read_exact_at(&mut head, hashes).context("reading the hash tree")?;
    let known = head.starts_with(b"verity\0\0") && head[32..64].starts_with(b"sha256\0");
    anyhow::ensure!(known, "there is no hash tree with SHA-256");
    let blocks = u64::from_le_bytes(std::array::from_fn(|n| head[72 + n]));
    let room = disk.metadata()?.len().saturating_sub(data) / BLOCK as u64;
    anyhow::ensure!((1..=room).contains(&blocks), "the hash tree says it is of {blocks} blocks, the disk has {room}");
    let salt_length = usize::from(u16::from_le_bytes([head[80], head[81]]));
    let salt = head.get(88..88 + salt_length).context("the hash tree's salt is too long")?;
    let hash = |block: &[u8]| {
        let mut hasher = Hasher::new();
        hasher.update(salt);
        hasher.update(block);
        *hasher.finish().as_bytes()
    };
    let mut level = Vec::new();
    let mut buffer = vec![0; PER_BLOCK * BLOCK];
    for first in (0..blocks).step_by(PER_BLOCK) {
        let part = &mut buffer[..(blocks - first).min(PER_BLOCK as u64) as usize * BLOCK];
        disk.read_exact_at(part, data + first * BLOCK as u64).context("reading the root")?;
        level.extend(part.chunks(BLOCK).flat_map(hash));
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
    let tree: Vec<u8> = levels.into_iter().rev().flatten().collect();
    let mut stored = vec![0; tree.len()];
    disk.read_exact_at(&mut stored, hashes + BLOCK as u64).context("reading the hash tree")?;
    let root_hash = Sha256::from_bytes(std::array::from_fn(|n| level[n]));
    Ok(Recomputed { root_hash, tree_matches: stored == tree, data_bytes: blocks * BLOCK as u64 })
}
