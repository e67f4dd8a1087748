//! Files only their owner may read: the mode is set when they are created, and nothing is ever overwritten.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::problem::Problem;

/// Creates a directory (0700); an existing one is an error.
pub(super) fn private_dir(path: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700).create(path).with_context(|| format!("creating {}", path.display()))
}

/// A directory in `parent` that goes when dropped, and that only its owner may enter: for what other programs write, which
/// choose their files' modes themselves.
pub(crate) fn private_temporary_dir(parent: &Path) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(".pgkiln-").permissions(std::fs::Permissions::from_mode(0o700));
    builder.tempdir_in(parent).with_context(|| format!("creating a directory in {}", parent.display()))
}

/// Writes a new file (0600) and makes it durable; an existing one is an error.
pub(super) fn private_file(path: &Path, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("creating {}", path.display()))?;
    file.write_all(bytes.as_ref()).and_then(|()| file.sync_all()).with_context(|| format!("writing {}", path.display()))
}

/// Builds `target` in a directory beside it and moves it into place in one step: either all of it is there or nothing,
/// and an existing `target` stays as it is. `build` gets a path that does not exist yet.
pub(super) fn all_or_nothing(target: &Path, build: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    refuse_existing(target)?;
    fs_err::create_dir_all(parent)?;
    let staging = private_temporary_dir(parent)?;
    let built = staging.path().join("built");
    build(&built)?;
    match renameat2(AT_FDCWD, &built, AT_FDCWD, target, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EEXIST) => refuse_existing(target)?,
        // A file system without RENAME_NOREPLACE (NFS): the check above was the best there is.
        Err(Errno::EINVAL) => fs_err::rename(&built, target)?,
        Err(errno) => return Err(errno).with_context(|| format!("renaming to {}", target.display())),
    }
    fs_err::File::open(parent)?.sync_all().with_context(|| format!("syncing {}", parent.display()))
}

/// The refusal to write over anything.
pub(super) fn refuse_existing(target: &Path) -> Result<(), Problem> {
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(Problem::new(
        "already exists; it is never overwritten",
        target.display().to_string(),
        "choose another place, or move it away (it may hold the only copy of a cluster's keys)",
    ))
}

/// Replaces a private file in one step.
pub(super) fn replace_private_file(path: &Path, bytes: &str) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent).context("creating a file")?;
    file.write_all(bytes.as_bytes()).and_then(|()| file.as_file().sync_all()).context("writing a file")?;
    file.persist(path).with_context(|| format!("renaming to {}", path.display()))?;
    fs_err::File::open(parent)?.sync_all().with_context(|| format!("syncing {}", parent.display()))
}
