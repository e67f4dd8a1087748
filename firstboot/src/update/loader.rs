//! The boot loader's side of an update: which unified kernel images (UKI) the EFI system partition has, which one is tried
//! next, and how often (systemd's Automatic Boot Assessment).
//!
//! A file `<id>+<left>-<done>.efi` is tried while `left` is not 0; each try counts it down; one that was good loses its
//! counter. Files are never changed: a new one is written under a name the loader does not look at, synced, and renamed.

use std::cmp::Ordering;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use fs_err as fs;
use fs_err::os::unix::fs::FileExt;

use super::order;
use super::set::Digester;
use crate::durable;

/// Below the EFI system partition.
const DIRECTORY: &str = "EFI/Linux";
/// Sections of a UKI, and its command line, are not larger than this.
const HEADERS: usize = 4096;
const LINE: usize = 64 << 10;

/// A UKI the boot loader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// Its name without counter, with `.efi`: what the loader sorts by.
    pub id: String,
    /// Tries it has left; `None`: it was good, and counts no more.
    pub left: Option<u32>,
    /// Tries that were not good.
    pub done: u32,
    /// Root hash of its command line.
    pub root_hash: Option<String>,
}

impl Entry {
    fn of(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (id, left, done) = parse(name)?;
        let root_hash = root_hash(&path).ok();
        Some(Self { id, left, done, root_hash, path })
    }

    /// Whether the loader has given it up.
    pub fn is_exhausted(&self) -> bool {
        self.left == Some(0)
    }
}

/// `name+2-1.efi` is `name.efi` with 2 tries left and 1 done.
fn parse(name: &str) -> Option<(String, Option<u32>, u32)> {
    let stem = name.strip_suffix(".efi")?;
    let counted = stem.rsplit_once('+').and_then(|(stem, counter)| {
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        Some((stem, left.parse().ok()?, done.parse().ok()?))
    });
    Some(match counted {
        Some((stem, left, done)) => (format!("{stem}.efi"), Some(left), done),
        None => (name.to_owned(), None, 0),
    })
}

/// The images on the EFI system partition mounted at `esp`, the next boot's choice first.
pub fn entries(esp: &Path) -> Result<Vec<Entry>> {
    let directory = esp.join(DIRECTORY);
    let found = match fs::read_dir(&directory) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let paths = found.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut entries: Vec<Entry> = paths.into_iter().filter_map(Entry::of).collect();
    entries.sort_by(choice);
    Ok(entries)
}

/// The order in which systemd-boot sorts images with the same sort key and version: those it has given up come last.
fn choice(a: &Entry, b: &Entry) -> Ordering {
    let order = a.is_exhausted().cmp(&b.is_exhausted()).then_with(|| order::compare(&b.id, &a.id));
    order.then_with(|| b.left.cmp(&a.left))
}

/// A name that sorts before all that are there: `natural` (`<image>_<version>.efi`) if it does, else the highest one's with
/// a number.
pub fn id_for(natural: &str, version: &str, present: &[Entry]) -> Result<String> {
    let highest = present.iter().max_by(|a, b| order::compare(&a.id, &b.id));
    let Some(highest) = highest.filter(|highest| order::compare(&highest.id, natural) != Ordering::Less) else {
        return Ok(natural.to_owned());
    };
    let image =
        natural.strip_suffix(&format!("_{version}.efi")).context("a kernel image has its version in its name")?;
    let stem = highest.id.trim_end_matches(".efi");
    let parts: Vec<&str> = stem.strip_prefix(image).unwrap_or(stem).trim_start_matches('_').split('_').collect();
    let (base, number) = match parts.as_slice() {
        [base, number, _] => (*base, number.parse::<u32>().unwrap_or(0)),
        _ => (parts.first().copied().unwrap_or_default(), 0),
    };
    let id = format!("{image}_{base}_{}_{version}.efi", number + 1);
    ensure!(order::compare(&highest.id, &id) == Ordering::Less, "no name sorts before `{}`", highest.id);
    Ok(id)
}

/// Writes a UKI that will be tried `tries` times, next. Returns its path; before the rename at the end the boot loader does
/// not see it.
pub fn install(esp: &Path, id: &str, tries: u32, content: &mut dyn Read, sha256: &str) -> Result<PathBuf> {
    let directory = esp.join(DIRECTORY);
    let path = directory.join(format!("{}+{tries}.efi", id.trim_end_matches(".efi")));
    let temporary = directory.join(".next.new");
    fs::create_dir_all(&directory)?;
    let mut file = fs::File::create(&temporary)?;
    let written = std::io::copy(content, &mut file).with_context(|| format!("writing {}", temporary.display()));
    written.and_then(|_| Ok(file.flush().and_then(|()| file.sync_all())?)).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    drop(file);
    let mut digest = Digester::new(fs::File::open(&temporary)?);
    std::io::copy(&mut digest, &mut std::io::sink())?;
    let found = digest.finish();
    if found != sha256 {
        let _ = fs::remove_file(&temporary);
        anyhow::bail!("{} has SHA-256 {found} when it is read back, not {sha256}", temporary.display());
    }
    fs::rename(&temporary, &path)?;
    sync(&directory)?;
    Ok(path)
}

/// Removes images; a missing one is fine.
pub fn remove(entries: &[Entry]) -> Result<()> {
    for entry in entries {
        durable::remove(&entry.path)?;
    }
    Ok(())
}

/// What the running image's file is called from now on: without counter (it was good), or with another one.
pub fn rename(esp: &Path, running: &Entry, left: Option<u32>, done: u32) -> Result<()> {
    let stem = running.id.trim_end_matches(".efi");
    let name = match (left, done) {
        (None, _) => running.id.clone(),
        (Some(left), 0) => format!("{stem}+{left}.efi"),
        (Some(left), done) => format!("{stem}+{left}-{done}.efi"),
    };
    let directory = esp.join(DIRECTORY);
    fs::rename(&running.path, directory.join(name))?;
    sync(&directory)
}

/// What the boot loader does before it starts a file whose tries are counted.
pub fn count_down(esp: &Path, entry: &Entry) -> Result<()> {
    let Some(left) = entry.left.filter(|left| *left > 0) else { return Ok(()) };
    let name = format!("{}+{}-{}.efi", entry.id.trim_end_matches(".efi"), left - 1, entry.done + 1);
    Ok(fs::rename(&entry.path, esp.join(DIRECTORY).join(name))?)
}

/// Makes a rename durable. FAT enters the new name without the content's place and length, and has them in memory only
/// (`vfat_rename`): syncing the directory first would put exactly that on the disk, with the old name gone. Syncing the file system
/// completes the entries before it writes any; it leaves the disk's own cache alone, which syncing the directory then empties.
fn sync(directory: &Path) -> Result<()> {
    let directory = fs::File::open(directory)?;
    nix::unistd::syncfs(directory.file()).context("syncing the EFI system partition")?;
    Ok(directory.sync_all()?)
}

/// `roothash=` in the section `.cmdline` of a UKI (PE format, Microsoft's specification, sections 3 and 4).
fn root_hash(path: &Path) -> Result<String> {
    let file = fs::File::open(path)?;
    let mut head = vec![0; HEADERS];
    let read = file.read_at(&mut head, 0)?;
    head.truncate(read);
    let number = |at: usize, bytes: usize| -> Result<usize> {
        let part = head.get(at..at + bytes).context("its headers end too early")?;
        Ok(part.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let pe = number(0x3c, 4)?;
    ensure!(head.get(pe..pe + 4) == Some(b"PE\0\0"), "{} is no EFI program", path.display());
    let (count, optional) = (number(pe + 6, 2)?, number(pe + 20, 2)?);
    for n in 0..count {
        let at = pe + 24 + optional + 40 * n;
        if head.get(at..at + 8) != Some(b".cmdline") {
            continue;
        }
        let (length, place) = (number(at + 8, 4)?.min(LINE), number(at + 20, 4)?);
        let mut line = vec![0; length];
        file.read_exact_at(&mut line, place as u64)?;
        return hash_of(&String::from_utf8_lossy(&line)).context("its command line has no root hash");
    }
    anyhow::bail!("{} has no command line", path.display())
}

/// `roothash=` of a kernel command line.
pub fn hash_of(line: &str) -> Option<String> {
    let words = line.split(|c: char| c.is_whitespace() || c == '\0');
    let hash = words.filter_map(|word| word.strip_prefix("roothash=")).next_back()?;
    (hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| hash.to_ascii_lowercase())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As much of a UKI as is read here.
    pub(crate) fn uki(root_hash: &str) -> Vec<u8> {
        let line = format!("roothash={root_hash} ro");
        let mut bytes = vec![0; 1024];
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x86] = 2;
        bytes[0x94] = 16;
        let sections = 0x80 + 24 + 16;
        bytes[sections..sections + 7].copy_from_slice(b".osrel\0");
        let at = sections + 40;
        bytes[at..at + 8].copy_from_slice(b".cmdline");
        bytes[at + 8..at + 10].copy_from_slice(&(line.len() as u16).to_le_bytes());
        bytes[at + 20..at + 22].copy_from_slice(&512_u16.to_le_bytes());
        bytes[512..512 + line.len()].copy_from_slice(line.as_bytes());
        bytes
    }

    fn entry(name: &str) -> Entry {
        let (id, left, done) = parse(name).unwrap();
        Entry { path: name.into(), id, left, done, root_hash: None }
    }

    #[test]
    fn names_with_and_without_counter() {
        assert_eq!(parse("a_1+3.efi"), Some(("a_1.efi".into(), Some(3), 0)));
        assert_eq!(parse("a_1+2-1.efi"), Some(("a_1.efi".into(), Some(2), 1)));
        assert_eq!(parse("a_1.efi"), Some(("a_1.efi".into(), None, 0)));
        assert_eq!(parse("a+b.efi"), Some(("a+b.efi".into(), None, 0)));
        assert_eq!(parse(".next.new"), None);
    }

    #[test]
    fn a_new_name_is_the_next_choice_whatever_is_there() {
        let mut present = vec![entry("debian-13_20261125.5000aaaa.efi")];
        for version in ["20261125.9000bbbb", "20261125.1000cccc", "20261124.ffffffff", "20261126.00000000"] {
            let id = id_for(&format!("debian-13_{version}.efi"), version, &present).unwrap();
            let new = entry(&id.replace(".efi", "+3.efi"));
            present.push(new.clone());
            present.sort_by(choice);
            assert_eq!(present[0], new, "{present:?}");
            // Given up, it is the last, and another name is found all the same.
            present[0].left = Some(0);
            present.sort_by(choice);
            let given_up = present.last_mut().unwrap();
            assert_eq!(given_up.id, id);
            given_up.left = None;
        }
    }

    #[test]
    fn an_image_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "ab".repeat(32);
        let content = uki(&hash);
        let sha256 = super::super::set::sha256(&content);
        let refused = install(dir.path(), "x_1.efi", 3, &mut content.as_slice(), &"0".repeat(64));
        assert!(refused.is_err() && entries(dir.path()).unwrap().is_empty());
        install(dir.path(), "x_1.efi", 3, &mut content.as_slice(), &sha256).unwrap();
        let found = entries(dir.path()).unwrap();
        assert_eq!((found[0].left, found[0].root_hash.as_deref()), (Some(3), Some(hash.as_str())));
        rename(dir.path(), &found[0], None, 0).unwrap();
        let found = entries(dir.path()).unwrap();
        assert_eq!((found.len(), found[0].left, found[0].id.as_str()), (1, None, "x_1.efi"));
    }
}
