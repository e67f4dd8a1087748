//! Extraction of one package's files into a [`Tree`].
//!
//! Several packages are extracted at once, so nothing here may depend on who comes first: a file that is already there is
//! left alone and reported as a [`Clash`] (settled later, in order), and directories only get their mode and owner when all
//! packages are there, from the first package in order that ships them (as dpkg, which never touches an existing one).

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::deb::Deb;
use super::filter::Filter;
use super::tree::{Ids, Tree, absolute, is_dir, lstat_at, split};

/// A directory as a package ships it.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time, seconds.
    pub mtime: i64,
}

/// What extraction of a package found.
#[derive(Debug, Clone, Default)]
pub(super) struct Extracted {
    /// Every path of the package in archive order: the content of `info/*.list`. dpkg also lists what its path filter left
    /// out, and then reports it missing for ever; our list says what is there.
    pub list: Vec<String>,
    /// Directories, whose metadata is applied later.
    pub dirs: Vec<Dir>,
    /// Files that were already there.
    pub clashes: Vec<String>,
}

/// How to extract: shared by all packages of a wave.
pub(super) struct Rules<'a> {
    /// Paths left out.
    pub filter: &'a Filter,
    /// Numbers for the names in the archives.
    pub ids: &'a Ids,
}

/// Which files of a package to extract and where to.
pub(super) struct Placement<'a> {
    /// Configuration files: laid down as `.dpkg-new`, `dpkg --configure` moves them.
    pub conffiles: &'a HashSet<String>,
    /// Only these paths, replacing what is there.
    pub only: Option<&'a HashSet<String>>,
    /// Diversions: where a path really goes.
    pub divert: &'a dyn Fn(&str) -> String,
}

impl Placement<'_> {
    /// Real place of a path in the tree.
    pub(super) fn place(&self, path: &str) -> String {
        let real = (self.divert)(path);
        if self.conffiles.contains(path) { real + ".dpkg-new" } else { real }
    }
}

/// Extracts a package into `tree`.
pub(super) fn extract(deb: &Deb, tree: &Tree, rules: &Rules, placement: &Placement) -> anyhow::Result<Extracted> {
    let mut found = Extracted::default();
    let mut last: Option<(String, OwnedFd)> = None;
    let mut buffer = vec![0; 256 * 1024];
    let mut archive = deb.data()?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = absolute(&entry.path()?)?;
        let kind = entry.header().entry_type();
        if rules.filter.skips(&path, matches!(kind, EntryType::Directory | EntryType::Symlink)) {
            continue;
        }
        found.list.push(if path.is_empty() { "/.".to_owned() } else { path.clone() });
        if path.is_empty() || placement.only.is_some_and(|only| !only.contains(&path)) {
            continue;
        }
        let owner = rules.ids.owner(entry.header())?;
        let mode = entry.header().mode()? & 0o7777;
        let mtime = i64::try_from(entry.header().mtime()?)?;
        if kind == EntryType::Directory {
            tree.ensure_dir(&path)?;
            found.dirs.push(Dir { path, mode, owner, mtime });
            continue;
        }
        let place = placement.place(&path);
        let (parent, name) = split(&place);
        if last.as_ref().is_none_or(|(path, _)| path != parent) {
            last = Some((parent.to_owned(), tree.ensure_dir(parent)?));
        }
        let Some((_, dir)) = &last else { bail!("no parent directory") };
        if placement.only.is_some() && lstat_at(dir, name)?.is_some_and(|stat| !is_dir(&stat)) {
            unlinkat(dir.as_fd(), name, UnlinkatFlags::NoRemoveDir)?;
        }
        let link = entry.link_name()?.map(|link| link.into_owned());
        let made = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                write_file(dir, name, &mut entry, &mut buffer, mode, owner, mtime)
            }
            EntryType::Symlink => {
                let target = link.context("symbolic link without a target")?;
                make_symlink(dir, name, &target, owner, mtime)
            }
            EntryType::Link => {
                let target = absolute(&link.context("hard link without a target")?)?;
                let target = placement.place(&target);
                let (from_dir, from_name) = split(&target);
                let from = tree.ensure_dir(from_dir)?;
                linkat(from.as_fd(), from_name, dir.as_fd(), name, LinkatFlags::empty()).map_err(anyhow::Error::from)
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => make_node(dir, name, entry.header(), mode, owner),
            other => bail!("{path}: archive entries of type {other:?} are not supported"),
        };
        match made {
            Ok(()) => {}
            Err(error) if error.downcast_ref() == Some(&Errno::EEXIST) => {
                if !(kind == EntryType::Symlink && harmless(tree, dir, name, &place, entry.link_name()?.as_deref())?) {
                    found.clashes.push(path);
                }
            }
            Err(error) => return Err(error).with_context(|| format!("extracting {path}")),
        }
    }
    Ok(found)
}

/// A symbolic link that finds a directory, or itself, is no clash.
fn harmless(
    tree: &Tree,
    dir: &OwnedFd,
    name: &str,
    place: &str,
    target: Option<&std::path::Path>,
) -> anyhow::Result<bool> {
    let same =
        readlinkat(dir.as_fd(), name).is_ok_and(|there| target.is_some_and(|target| target.as_os_str() == there));
    Ok(same || tree.lstat(place)?.is_some_and(|stat| is_dir(&stat)))
}

fn write_file(
    dir: &OwnedFd,
    name: &str,
    content: &mut impl Read,
    buffer: &mut [u8],
    mode: u32,
    (uid, gid): (u32, u32),
    mtime: i64,
) -> anyhow::Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir.as_fd(), name, flags, Mode::from_bits_truncate(0o600))?);
    loop {
        let n = content.read(buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
    }
    fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(&file, Mode::from_bits_truncate(mode))?;
    futimens(&file, &TimeSpec::new(mtime, 0), &TimeSpec::new(mtime, 0))?;
    Ok(())
}

fn make_symlink(
    dir: &OwnedFd,
    name: &str,
    target: &std::path::Path,
    (uid, gid): (u32, u32),
    mtime: i64,
) -> anyhow::Result<()> {
    symlinkat(target, dir.as_fd(), name)?;
    fchownat(dir.as_fd(), name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let time = TimeSpec::new(mtime, 0);
    utimensat(dir.as_fd(), name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

fn make_node(dir: &OwnedFd, name: &str, header: &tar::Header, mode: u32, (uid, gid): (u32, u32)) -> anyhow::Result<()> {
    let kind = match header.entry_type() {
        EntryType::Fifo => SFlag::S_IFIFO,
        EntryType::Char => SFlag::S_IFCHR,
        _ => SFlag::S_IFBLK,
    };
    let device = nix::sys::stat::makedev(
        header.device_major()?.unwrap_or_default().into(),
        header.device_minor()?.unwrap_or_default().into(),
    );
    mknodat(dir.as_fd(), name, kind, Mode::from_bits_truncate(mode), device)?;
    fchownat(dir.as_fd(), name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Gives the directories of `packages` (in order; the first that ships one decides) their mode, owner and time.
pub(super) fn finish_dirs<'a>(tree: &Tree, packages: impl Iterator<Item = &'a [Dir]>) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for dir in packages.flatten() {
        if !seen.insert(dir.path.as_str()) {
            continue;
        }
        let (parent, name) = split(&dir.path);
        let parent = tree.ensure_dir(parent)?;
        // A directory that some package ships as a symbolic link keeps the attributes of what it points to.
        if !lstat_at(&parent, name)?.is_some_and(|stat| is_dir(&stat)) {
            continue;
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let fd = openat(parent.as_fd(), name, flags, Mode::empty())?;
        fchown(&fd, Some(Uid::from_raw(dir.owner.0)), Some(Gid::from_raw(dir.owner.1)))?;
        fchmod(&fd, Mode::from_bits_truncate(dir.mode))?;
        futimens(&fd, &TimeSpec::new(dir.mtime, 0), &TimeSpec::new(dir.mtime, 0))?;
    }
    Ok(())
}
