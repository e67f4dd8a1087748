//! The finished tree: times clamped, every file listed with its digest.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use crate::digest::Sha256;
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
    pub sha256: Option<Sha256>,
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
            Some(Sha256::of_file(entry.path())?.0)
        } else if meta.is_symlink() {
            Some(Sha256::of(fs_err::read_link(entry.path())?.as_os_str().as_encoded_bytes()))
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

/// The list of two layers merged: the upper one's entries replace the lower one's.
pub fn merge(lower: &[FileEntry], upper: Vec<FileEntry>) -> Vec<FileEntry> {
    let mut all: std::collections::BTreeMap<String, FileEntry> =
        lower.iter().map(|entry| (entry.path.clone(), entry.clone())).collect();
    for mut entry in upper {
        if let Some(below) = all.get(&entry.path).filter(|_| entry.sha256.is_none()) {
            entry.owner_package.clone_from(&below.owner_package);
        }
        all.insert(entry.path.clone(), entry);
    }
    all.into_values().collect()
}
