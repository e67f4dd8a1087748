//! A directory tree that will become `/` of a node, seen from outside.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT`: `..` and absolute symbolic links stop at the tree's own
//! top, so a hostile or careless package (`/etc -> /`, `../../etc/shadow`) cannot reach the host.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};

/// An open tree.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    top: OwnedFd,
}

impl Tree {
    /// Opens an existing directory as a tree.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let top = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { path: path.to_owned(), top })
    }

    /// Where the tree lies on this host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory `path` (absolute in the tree), following symbolic links inside the tree only.
    pub fn dir(&self, path: &str) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let relative = path.trim_start_matches('/');
        openat2(self.top.as_fd(), if relative.is_empty() { "." } else { relative }, how)
    }

    /// Like [`Tree::dir`], making what is missing with mode 0755.
    pub fn ensure_dir(&self, path: &str) -> anyhow::Result<OwnedFd> {
        match self.dir(path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("opening directory {path} in the tree")),
        }
        let (parent, name) = split(path);
        let parent = self.ensure_dir(parent)?;
        match mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("making directory {path} in the tree")),
        }
        self.dir(path).with_context(|| format!("opening directory {path} in the tree"))
    }

    /// What is at `path`, not following a final symbolic link; `None` if nothing is.
    pub fn lstat(&self, path: &str) -> anyhow::Result<Option<FileStat>> {
        let (parent, name) = split(path);
        let parent = match self.dir(parent) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(errno) => return Err(errno).with_context(|| format!("opening directory {parent} in the tree")),
        };
        lstat_at(&parent, name)
    }
}

/// `fstatat` without following; `None` if nothing is there.
pub fn lstat_at(dir: &OwnedFd, name: &str) -> anyhow::Result<Option<FileStat>> {
    match fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("looking at {name} in the tree")),
    }
}

/// Whether a stat result is a directory.
pub fn is_dir(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// Parent and last component of an absolute path.
pub fn split(path: &str) -> (&str, &str) {
    path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path))
}

/// The absolute form of a path as a package writes it (`./usr/bin/`): refused if it could leave the tree.
pub fn absolute(raw: &Path) -> anyhow::Result<String> {
    let mut path = String::new();
    for part in raw.components() {
        match part {
            std::path::Component::CurDir | std::path::Component::RootDir => {}
            std::path::Component::Normal(name) => {
                path.push('/');
                path.push_str(name.to_str().with_context(|| format!("path {} is not UTF-8", raw.display()))?);
            }
            _ => bail!("path `{}` leaves the tree", raw.display()),
        }
    }
    Ok(path)
}

/// Names of users or groups with their numbers, from the tree's own `/etc/passwd` or `/etc/group`: a package's files belong
/// to the names in its archive; the numbers of the machine it was built on count only for names unknown here.
#[derive(Debug, Clone, Default)]
pub struct Ids {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Ids {
    /// Reads both files of a tree; a missing one has no names.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let table = |file: &str| -> anyhow::Result<BTreeMap<String, u32>> {
            let path = root.join(file);
            if !path.exists() {
                return Ok(BTreeMap::new());
            }
            let entry = |line: &str| {
                let mut fields = line.split(':');
                Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
            };
            Ok(fs_err::read_to_string(path)?.lines().filter_map(entry).collect())
        };
        Ok(Self { users: table("etc/passwd")?, groups: table("etc/group")? })
    }

    /// Owner of an archive entry.
    pub fn owner(&self, header: &tar::Header) -> anyhow::Result<(u32, u32)> {
        let known = |table: &BTreeMap<String, u32>, name: Option<&[u8]>| {
            name.and_then(|name| std::str::from_utf8(name).ok()).and_then(|name| table.get(name).copied())
        };
        let uid = known(&self.users, header.username_bytes()).map_or_else(|| header.uid(), |id| Ok(u64::from(id)))?;
        let gid = known(&self.groups, header.groupname_bytes()).map_or_else(|| header.gid(), |id| Ok(u64::from(id)))?;
        Ok((u32::try_from(uid)?, u32::try_from(gid)?))
    }

    /// Names by number, for tables that people read.
    pub fn names(&self) -> (BTreeMap<u32, &str>, BTreeMap<u32, &str>) {
        fn turned(table: &BTreeMap<String, u32>) -> BTreeMap<u32, &str> {
            table.iter().map(|(name, id)| (*id, name.as_str())).collect()
        }
        (turned(&self.users), turned(&self.groups))
    }
}

/// Text of an [`OsStr`], for paths that were UTF-8 when they were written.
pub fn text(name: &OsStr) -> anyhow::Result<&str> {
    name.to_str().with_context(|| format!("{} is not UTF-8", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_symbolic_links_and_dots_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("top")).unwrap();
        std::os::unix::fs::symlink("../../../..", dir.path().join("up")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.ensure_dir("/top/made/here").unwrap();
        tree.ensure_dir("/up/and/here").unwrap();
        assert!(dir.path().join("made/here").is_dir() && dir.path().join("and/here").is_dir());
    }

    #[test]
    fn paths_that_leave_are_refused() {
        assert_eq!(absolute(Path::new("./usr/bin/")).unwrap(), "/usr/bin");
        assert_eq!(absolute(Path::new("./")).unwrap(), "");
        assert!(absolute(Path::new("./usr/../../etc/shadow")).is_err());
    }
}
