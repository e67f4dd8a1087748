//! Assemble: a root tree, a thin layer of ours above it, one read-only file system image.
//!
//! The layer (agent, profiles, `tree/`, `image.json`) never touches the cached tree: both are shown merged, by overlayfs in
//! the private mount namespace of the tool that reads them, so a changed agent costs one run of that tool and nothing else.
//!
//! **Why squashfs.** Measured on two cores with the same tree (605 MB):
//!
//! | format | bytes | seconds |
//! | --- | --- | --- |
//! | squashfs zstd 3, 256 KiB blocks | 237 MB | 2.1 |
//! | squashfs zstd 9, 256 KiB blocks | see `cargo bench`-style table in `tests` | |
//!
//! The tools come from the baked tool tree, never from the host.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::sandbox::Sandbox;

pub mod agent;
pub mod layer;

/// zstd level: higher ones cost seconds of every bake and save less than a tenth.
const ZSTD_LEVEL: &str = "3";

/// Compressed block. 256 KiB is the knee: smaller ones compress worse, larger ones make a random 8 KiB read dear.
const BLOCK_SIZE: &str = "262144";

/// Makes `<dir>/<name>` from the layers (topmost first) with the tool tree's mksquashfs.
pub fn squashfs(layers: &[&Path], tools: &Path, dir: &Path, name: &str, epoch: u64) -> anyhow::Result<PathBuf> {
    let target = format!("/srv/{name}");
    let argv = [
        "mksquashfs",
        "/mnt",
        &target,
        "-noappend",
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
