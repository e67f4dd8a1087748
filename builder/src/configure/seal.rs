//! The finished tree: times clamped, every file listed with its digest.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::unpack::deb::hex;
use crate::unpack::parallel;
use crate::unpack::tree::text;

/// One path of the image, as `manifest.json` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Absolute path.
    pub path: String,
    /// Package that ships it; `None` for what scripts or pgkiln made.
    pub owner_package: Option<String>,
    /// Type and permission bits, octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// SHA-256 of a file's content or a link's target; `None` for everything else.
    pub sha256: Option<String>,
}

/// Sets every time later than `epoch` to `epoch`: what remains are the times the packages' authors set.
pub fn clamp_times(root: &Path, epoch: u64) -> anyhow::Result<()> {
    let limit = i64::try_from(epoch)?;
    // Content first: changing an entry changes its directory's time.
    for entry in WalkDir::new(root).contents_first(true) {
        let entry = entry?;
        if entry.metadata()?.mtime() > limit {
            let time = TimeSpec::new(limit, 0);
            utimensat(AT_FDCWD, entry.path(), &time, &time, UtimensatFlags::NoFollowSymlink)
                .with_context(|| format!("setting the time of {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Lists a tree, sorted by path; `owner` names the package a path belongs to.
pub fn list(root: &Path, owner: &(dyn Fn(&str) -> Option<String> + Sync)) -> anyhow::Result<Vec<FileEntry>> {
    let entries: Vec<_> = WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter().collect::<Result<_, _>>()?;
    let mut files = parallel(&entries, |entry| {
        let meta = entry.metadata()?;
        let path = format!("/{}", text(entry.path().strip_prefix(root)?.as_os_str())?);
        let sha256 = if meta.is_file() {
            Some(hex(&Sha256::digest(fs_err::read(entry.path())?)))
        } else if meta.is_symlink() {
            Some(hex(&Sha256::digest(fs_err::read_link(entry.path())?.as_os_str().as_encoded_bytes())))
        } else {
            None
        };
        Ok(FileEntry {
            owner_package: owner(&path),
            mode: format!("{:06o}", meta.permissions().mode()),
            uid: meta.uid(),
            gid: meta.gid(),
            sha256,
            path,
        })
    })?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}
