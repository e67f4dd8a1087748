//! What pgkiln itself puts into an image: agent, profiles, the recipe's `tree/`, `image.json`.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use walkdir::WalkDir;

use crate::configure::seal;
use crate::unpack::dpkg_db::set_mode;

/// The agent's place.
const AGENT: &str = "usr/bin/firstboot";
/// The profiles' place.
const PROFILES: &str = "usr/share/pgkiln/profiles";
/// What the image says about itself.
const IMAGE_JSON: &str = "usr/lib/pgkiln/image.json";

/// Sources of the layer.
pub struct Sources<'a> {
    /// The agent's binary.
    pub agent: &'a Path,
    /// Directory of role profiles; need not exist.
    pub profiles: &'a Path,
    /// Files copied as they are; need not exist.
    pub tree: &'a Path,
    /// Content of `image.json`.
    pub image_json: &'a [u8],
}

/// Makes the layer in the empty directory `upper`. Directories that `lower` has too keep its mode and owner: in an overlay
/// the upper one's would count.
pub fn make(sources: &Sources, lower: &Path, upper: &Path, epoch: u64) -> anyhow::Result<()> {
    copy(sources.agent, &upper.join(AGENT), 0o755)?;
    let image_json = upper.join(IMAGE_JSON);
    fs_err::create_dir_all(image_json.parent().context("path")?)?;
    fs_err::write(&image_json, sources.image_json)?;
    copy_tree(sources.profiles, &upper.join(PROFILES))?;
    copy_tree(sources.tree, upper)?;
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    for entry in WalkDir::new(upper) {
        let entry = entry?;
        std::os::unix::fs::lchown(entry.path(), Some(0), Some(0))?;
        if entry.file_type().is_dir() {
            dirs.insert(entry.path().to_owned());
        }
    }
    for dir in dirs {
        match lower.join(dir.strip_prefix(upper)?).symlink_metadata() {
            Ok(below) if below.is_dir() => {
                chown(&dir, Some(below.uid()), Some(below.gid()))?;
                set_mode(&dir, below.permissions().mode() & 0o7777)?;
            }
            _ => set_mode(&dir, 0o755)?,
        }
    }
    seal::clamp_times(upper, epoch)?;
    level_times(upper, epoch)
}

/// The layer's times say nothing about its content (a checkout sets them): all are the epoch.
fn level_times(upper: &Path, epoch: u64) -> anyhow::Result<()> {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    let time = nix::sys::time::TimeSpec::new(i64::try_from(epoch)?, 0);
    for entry in WalkDir::new(upper).contents_first(true) {
        utimensat(nix::fcntl::AT_FDCWD, entry?.path(), &time, &time, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    fs_err::create_dir_all(to.parent().context("path")?)?;
    fs_err::copy(from, to)?;
    set_mode(to, mode)
}

/// Copies a directory of sources: links as links, files 0755 if the owner may run them, else 0644 (a checkout's umask must
/// not show).
fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    for entry in WalkDir::new(from).sort_by_file_name() {
        let entry = entry?;
        let target = to.join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs_err::create_dir_all(&target)?;
        } else if entry.file_type().is_symlink() {
            fs_err::create_dir_all(target.parent().context("path")?)?;
            fs_err::os::unix::fs::symlink(fs_err::read_link(entry.path())?, &target)?;
        } else {
            let runnable = entry.metadata()?.permissions().mode() & 0o100 != 0;
            copy(entry.path(), &target, if runnable { 0o755 } else { 0o644 })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_layer_look_like_the_ones_below() {
        let dir = tempfile::tempdir().unwrap();
        let (lower, upper, tree) = (dir.path().join("lower"), dir.path().join("upper"), dir.path().join("tree"));
        for path in [lower.join("etc/private"), upper.clone(), tree.join("etc/private")] {
            fs_err::create_dir_all(path).unwrap();
        }
        set_mode(&lower.join("etc/private"), 0o710).unwrap();
        fs_err::write(tree.join("etc/private/key"), "x").unwrap();
        fs_err::write(dir.path().join("agent"), "#!").unwrap();
        let sources = Sources {
            agent: &dir.path().join("agent"),
            profiles: &dir.path().join("none"),
            tree: &tree,
            image_json: b"{}",
        };
        make(&sources, &lower, &upper, 1000).unwrap();
        let mode = |path: &str| upper.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("etc/private"), mode("etc/private/key"), mode("usr/bin/firstboot")), (0o710, 0o644, 0o755));
        assert_eq!(upper.join("etc/private/key").metadata().unwrap().mtime(), 1000);
    }
}
