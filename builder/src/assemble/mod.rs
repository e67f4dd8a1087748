//! Assemble: a root tree, a thin layer of ours above it, one read-only file system image.
//!
//! The layer (agent, profiles, `tree/`, `image.json`) never touches the cached tree: both are shown merged, by overlayfs in
//! the private mount namespace of the tool that reads them, so a changed agent costs one run of that tool and nothing else.
//!
//! **Why squashfs.** The same tree (605 MB), the tool tree's own programs, two busy cores, so CPU seconds say more than the
//! clock:
//!
//! | format | MB | CPU seconds |
//! | --- | --- | --- |
//! | squashfs, zstd 3, 256 KiB | 237 | 2.4 |
//! | squashfs, zstd 9, 256 KiB | 225 | 9.7 |
//! | erofs, lz4hc 9, 64 KiB | 304 | 13.1 |
//! | erofs, zstd 3, 64 KiB | 266 | 18.2 |
//!
//! squashfs is smaller and far cheaper to make, and every supported kernel reads it; erofs with zstd needs Linux 6.10. erofs
//! promises quicker random reads; that was not measured here.
//!
//! The tools come from the baked tool tree, never from the host.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::digest::Sha256;
use crate::sandbox::Sandbox;

pub mod agent;
pub mod layer;

/// zstd level: higher ones cost seconds of every bake and save less than a tenth.
const ZSTD_LEVEL: &str = "3";

/// Compressed block. 256 KiB is the knee: smaller ones compress worse, larger ones make a random 8 KiB read dear.
const BLOCK_SIZE: &str = "262144";

/// The code that decides a root image's bytes, given its layers' sources.
const CODE: [&str; 2] = [include_str!("mod.rs"), include_str!("layer.rs")];

/// Digest of it: another pgkiln may make another image of the same inputs, which needs another version.
pub fn code() -> Sha256 {
    Sha256::of(CODE.map(|part| Sha256::of(part).to_string()).join("\n"))
}

/// Makes `<dir>/<image>.root.squashfs` from the layers (topmost first) with the tool tree's mksquashfs.
pub fn squashfs(layers: &[&Path], tools: &Path, dir: &Path, image: &str, epoch: u64) -> anyhow::Result<PathBuf> {
    let name = format!("{image}.root.squashfs");
    let target = format!("/srv/{name}");
    let argv = [
        "mksquashfs",
        "/mnt",
        &target,
        "-noappend",
        // Else a file that cannot be read becomes an empty one, and all is well.
        "-exit-on-error",
        "-no-progress",
        "-quiet",
        "-comp",
        "zstd",
        "-Xcompression-level",
        ZSTD_LEVEL,
        "-b",
        BLOCK_SIZE,
        // Overlayfs keeps its own notes there; they must not reach the image.
        "-xattrs-exclude",
        "^trusted.overlay",
    ];
    in_tools(layers, tools, dir, epoch).run(&argv).context("making the root image")?;
    Ok(dir.join(name))
}

/// A sandbox of the tool tree with the layers merged, read-only, at `/mnt` and `dir` at `/srv`.
fn in_tools(layers: &[&Path], tools: &Path, dir: &Path, epoch: u64) -> Sandbox {
    Sandbox::new(tools, epoch).overlay(layers, None, "mnt").bind(dir, "srv", false)
}
