//! What pgkiln itself puts into an image: agent, profiles, the recipe's trees of files, `image.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use walkdir::WalkDir;

use crate::configure::seal;
use crate::digest::Sha256;
use crate::unpack::dpkg_db::set_mode;

/// The agent's place.
const AGENT: &str = "usr/bin/firstboot";
/// The profiles' place.
const PROFILES: &str = "usr/share/pgkiln/profiles";
/// What the image says about itself.
const IMAGE_JSON: &str = "usr/lib/pgkiln/image.json";

/// Files and links that are copied as they are: by the path below the image's root, the path of their source.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<PathBuf, PathBuf>);

impl Files {
    /// Role profiles (the directory need not exist) and the recipe's trees. What a later tree has replaces what an earlier
    /// one has at the same path.
    pub fn collect(profiles: &Path, trees: &[PathBuf]) -> anyhow::Result<Self> {
        let mut files = Self::default();
        if profiles.is_dir() {
            files.add(profiles, Path::new(PROFILES))?;
        }
        trees.iter().try_for_each(|tree| files.add(tree, Path::new("")))?;
        Ok(files)
    }

    fn add(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        for entry in WalkDir::new(from).sort_by_file_name() {
            let entry = entry?;
            if !entry.file_type().is_dir() {
                self.0.insert(to.join(entry.path().strip_prefix(from)?), entry.into_path());
            }
        }
        Ok(())
    }

    /// Digest of everything in it: paths, content, and which files may be run.
    pub fn digest(&self) -> anyhow::Result<Sha256> {
        let mut text = String::new();
        for (path, source) in &self.0 {
            let meta = source.symlink_metadata()?;
            let (kind, digest) = match meta.is_symlink() {
                true => ("link", Sha256::of(fs_err::read_link(source)?.as_os_str().as_encoded_bytes())),
                false => (if runnable(&meta) { "program" } else { "file" }, Sha256::of_file(source)?.0),
            };
            text.push_str(&format!("{kind} {digest} {}\n", path.display()));
        }
        Ok(Sha256::of(text))
    }

    /// Links stay links; modes are 0755 for files the owner may run, else 0644 (a checkout's umask must not show).
    fn copy(&self, upper: &Path) -> anyhow::Result<()> {
        for (path, source) in &self.0 {
            let (target, meta) = (upper.join(path), source.symlink_metadata()?);
            if meta.is_symlink() {
                fs_err::create_dir_all(target.parent().context("path")?)?;
                fs_err::os::unix::fs::symlink(fs_err::read_link(source)?, &target)?;
            } else {
                copy(source, &target, if runnable(&meta) { 0o755 } else { 0o644 })?;
            }
        }
        Ok(())
    }
}

fn runnable(meta: &std::fs::Metadata) -> bool {
    meta.permissions().mode() & 0o100 != 0
}

/// Sources of the layer.
pub struct Sources<'a> {
    /// The agent's binary.
    pub agent: &'a Path,
    /// Profiles and trees.
    pub files: &'a Files,
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
    sources.files.copy(upper)?;
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
pub(crate) fn level_times(upper: &Path, epoch: u64) -> anyhow::Result<()> {
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
        let files = Files::collect(&dir.path().join("none"), &[tree]).unwrap();
        let sources = Sources { agent: &dir.path().join("agent"), files: &files, image_json: b"{}" };
        make(&sources, &lower, &upper, 1000).unwrap();
        let mode = |path: &str| upper.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("etc/private"), mode("etc/private/key"), mode("usr/bin/firstboot")), (0o710, 0o644, 0o755));
        assert_eq!(upper.join("etc/private/key").metadata().unwrap().mtime(), 1000);
    }

    #[test]
    fn a_later_tree_wins_and_every_change_shows_in_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (common, own) = (dir.path().join("common"), dir.path().join("own"));
        let write = |tree: &Path, path: &str, text: &str| {
            fs_err::create_dir_all(tree.join(path).parent().unwrap()).unwrap();
            fs_err::write(tree.join(path), text).unwrap();
        };
        write(&common, "usr/lib/unit", "common");
        write(&common, "usr/lib/other", "common");
        write(&own, "usr/lib/unit", "own");
        let files = |trees: &[&PathBuf]| {
            let trees: Vec<PathBuf> = trees.iter().map(|tree| tree.to_path_buf()).collect();
            Files::collect(&dir.path().join("none"), &trees).unwrap()
        };
        let upper = dir.path().join("upper");
        files(&[&common, &own]).copy(&upper).unwrap();
        let read = |path: &str| fs_err::read_to_string(upper.join(path)).unwrap();
        assert_eq!((read("usr/lib/unit").as_str(), read("usr/lib/other").as_str()), ("own", "common"));

        let digest = |trees: &[&PathBuf]| files(trees).digest().unwrap();
        let before = digest(&[&common, &own]);
        assert_ne!(digest(&[&common]), before);
        assert_ne!(digest(&[&own, &common]), before, "the order decides");
        set_mode(&own.join("usr/lib/unit"), 0o755).unwrap();
        let runnable = digest(&[&common, &own]);
        assert_ne!(runnable, before);
        write(&own, "usr/lib/unit", "another");
        assert_ne!(digest(&[&common, &own]), runnable);
    }
}
