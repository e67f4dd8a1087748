//! The files of an EFI system partition, written one by one in the order of their names.
//!
//! What copies whole directories (`CopyFiles=` of systemd-repart 257, `mcopy -s`) takes each in the order in which the host's file
//! system lists it, and that order decides a FAT's entries and clusters: another file system under the cache would make
//! another disk.

use std::path::Path;

use anyhow::Context;
use walkdir::WalkDir;

use super::{Work, gpt};

/// Puts everything below `from`, a directory in [`Inputs::dir`](super::Inputs::dir), into the system partition of the disk called
/// `disk` there, whose file system is empty.
pub(super) fn fill(work: &Work<'_>, disk: &str, from: &Path) -> anyhow::Result<()> {
    let table = gpt::read(&work.dir.join(disk))?;
    let esp = table.partitions.iter().find(|one| one.kind == gpt::Kind::Esp).context("no EFI system partition")?;
    let image = format!("/srv/{disk}@@{}", esp.offset);
    // It doubts the geometry of a disk whose sectors have 4096 bytes.
    let sandbox = work.sandbox().env("MTOOLS_SKIP_CHECK", "1");
    let mut directories = Vec::new();
    let mut files = Vec::new();
    for entry in WalkDir::new(from).min_depth(1).sort_by_file_name() {
        let entry = entry?;
        let path = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let target = format!("::/{}", path(entry.path().strip_prefix(from)?)?);
        if entry.file_type().is_dir() {
            directories.push(target);
        } else {
            files.push((format!("/srv/{}", path(entry.path().strip_prefix(work.dir)?)?), target));
        }
    }
    let make: Vec<&str> = ["mmd", "-i", &image].into_iter().chain(directories.iter().map(String::as_str)).collect();
    sandbox.run(&make)?;
    for (source, target) in &files {
        // Not `-b`: it writes what its memory happens to hold behind the end of a file.
        sandbox.run(&["mcopy", "-m", "-Q", "-i", &image, source, target])?;
    }
    Ok(())
}
