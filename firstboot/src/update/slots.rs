//! Where the other version goes: two partitions of the boot disk, or, in a lab's container, a directory that its supervisor
//! takes the node's next root from.
//!
//! The running slot is never written. While the other one is, nothing points to it: its identifiers are taken away first
//! and given when the content has been read back.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use uuid::Uuid;

use super::gpt::{Kind, Partition, Table};
use super::loader;
use super::set::{Digester, Part, Set};
use super::verity::{self, Place};
use crate::durable;
use crate::layout::Layout;
use crate::problem::Problem;

/// Name of a slot without an image, as systemd-sysupdate has it.
const EMPTY: &str = "_empty";
/// What is copied at a time.
const CHUNK: usize = 1 << 20;

/// Where the EFI system partition is mounted.
pub const ESP: &str = "/boot";
/// In a lab's container, beside the loader's files: the roots of other versions.
const FILES: &str = "/boot/slots";

/// How far a copy is: bytes more.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// The two slots of this node.
#[derive(Debug)]
pub enum Slots {
    /// Partitions of the boot disk.
    Disk(Disk),
    /// Files that stand in for them: a container has no disk of its own.
    Files {
        /// The directory.
        dir: PathBuf,
        /// Root hash of what runs, unless the lab was started with it.
        running: Option<String>,
    },
}

/// The boot disk.
#[derive(Debug)]
pub struct Disk {
    disk: File,
    bytes: u64,
    running: String,
    root: Partition,
    hashes: Partition,
}

impl Slots {
    /// The slots of the running machine.
    pub fn find(layout: &Layout) -> Result<Self> {
        let running = running(layout);
        let files = layout.at(FILES);
        if layout.at("/run/systemd/container").exists() && files.is_dir() {
            return Ok(Self::Files { dir: files, running });
        }
        let none = |what: &str| {
            let remedy = "an update needs a machine that was booted from a disk made by `pgkiln bake --format raw`";
            Problem::new(what, "/proc/cmdline", remedy)
        };
        let running = running.ok_or_else(|| none("this system was not booted with a root hash"))?;
        let esp = fs::canonicalize(layout.at("/dev/disk/pgkiln/esp"));
        let esp = esp.map_err(|_| none("this system was not booted from a disk with an EFI system partition"))?;
        let name = esp.file_name().context("a device has a name")?;
        // /sys/class/block/<partition> leads into the directory of its disk.
        let sysfs = fs::canonicalize(layout.at("/sys/class/block").join(name))?;
        let disk = sysfs.parent().and_then(Path::file_name).context("a partition has a disk")?;
        Self::on(&layout.at("/dev").join(disk), running)
    }

    /// The slots of a disk on which the image `running` runs.
    pub fn on(path: &Path, running: String) -> Result<Self> {
        let disk = fs::OpenOptions::new().read(true).write(true).open(path)?.into_parts().0;
        let bytes = size(&disk)?;
        let table = Table::read(&disk, bytes)?;
        let [own_root, own_hashes] = halves(&running)?;
        let partitions = table.partitions();
        let other = |kind: Kind, own: Uuid| -> Result<Partition> {
            let of_kind: Vec<&Partition> = partitions.iter().filter(|one| one.kind == kind).collect();
            let runs = of_kind.iter().any(|one| one.uuid == own);
            anyhow::ensure!(runs, "{}: no partition has the identifier {own} of what runs", path.display());
            let other = of_kind.into_iter().find(|one| one.uuid != own).ok_or_else(|| {
                let what = "the disk has one slot only: there is nowhere to put another version";
                let remedy = "give the machine a disk with room for a second slot (1 GiB more than slot A, /var and the \
                              boot partition take) and install it anew";
                Problem::new(what, path.display().to_string(), remedy)
            })?;
            Ok(other.clone())
        };
        let (root, hashes) = (other(Kind::Root, own_root)?, other(Kind::Hashes, own_hashes)?);
        Ok(Self::Disk(Disk { disk, bytes, running, root, hashes }))
    }

    /// Root hash of what runs.
    pub fn running(&self) -> Option<&str> {
        match self {
            Self::Disk(disk) => Some(&disk.running),
            Self::Files { running, .. } => running.as_deref(),
        }
    }

    /// Refuses a set that has no room, before anything is written.
    pub fn check_room(&self, set: &Set) -> Result<()> {
        let Self::Disk(disk) = self else { return Ok(()) };
        for (part, slot) in [(&set.root, &disk.root), (&set.hashes, &disk.hashes)] {
            if part.bytes > slot.bytes {
                let what = format!("`{}` has {} bytes, its slot {}", part.name, part.bytes, slot.bytes);
                let remedy = "this image needs larger slots: install the node anew from a disk of it";
                return Err(Problem::new(what, format!("partition {}", slot.number), remedy).into());
            }
        }
        Ok(())
    }

    /// Takes the other slot's identifiers away: from here on nothing can boot it.
    pub fn clear(&self) -> Result<()> {
        match self {
            Self::Disk(disk) => disk.rename([Uuid::new_v4(), Uuid::new_v4()], EMPTY),
            Self::Files { dir, running } => {
                for entry in fs::read_dir(dir)? {
                    let entry = entry?;
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if !running.as_ref().is_some_and(|hash| name.starts_with(hash.as_str())) {
                        durable::remove(&entry.path())?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes root and hash tree, reads them back from the device, and says whether they have the set's root hash.
    pub fn write(&self, set: &Set, progress: Progress<'_>) -> Result<()> {
        let found = match self {
            Self::Disk(Disk { disk, root, hashes, .. }) => {
                copy(set, &set.root, disk, root.at, progress)?;
                copy(set, &set.hashes, disk, hashes.at, progress)?;
                read_again(disk)?;
                let place = |slot: &Partition, part: &Part| Place { file: disk, at: slot.at, bytes: part.bytes };
                verity::root_hash(place(root, &set.root), place(hashes, &set.hashes), progress)?
            }
            Self::Files { dir, .. } => {
                let new = |name: &str| {
                    let mut options = fs::OpenOptions::new();
                    options.read(true).write(true).create(true).truncate(true);
                    Ok::<_, anyhow::Error>(options.open(dir.join(name))?.into_parts().0)
                };
                let (root, hashes) = (new(".root.new")?, new(".hashes.new")?);
                copy(set, &set.root, &root, 0, progress)?;
                copy(set, &set.hashes, &hashes, 0, progress)?;
                read_again(&root)?;
                let place = |file, part: &Part| Place { file, at: 0, bytes: part.bytes };
                verity::root_hash(place(&root, &set.root), place(&hashes, &set.hashes), progress)?
            }
        };
        if found != set.root_hash {
            let what =
                format!("what was written has the root hash {found} when it is read back, not {}", set.root_hash);
            return Err(
                Problem::new(what, "the other slot", "the disk is failing, or the set is not what it says").into()
            );
        }
        Ok(())
    }

    /// Gives the other slot the identifiers that follow from the root hash: from here on its UKI finds it.
    pub fn name(&self, set: &Set) -> Result<()> {
        match self {
            Self::Disk(disk) => disk.rename(halves(&set.root_hash)?, &set.image.version),
            Self::Files { dir, .. } => {
                for (from, to) in [(".hashes.new", "hashes"), (".root.new", "root")] {
                    fs::rename(dir.join(from), dir.join(format!("{}.{to}", set.root_hash)))?;
                }
                durable::sync_dir(dir)
            }
        }
    }

    /// What the other slot is called: a version, or `_empty`.
    pub fn other(&self) -> Result<String> {
        match self {
            Self::Disk(disk) => Ok(disk.root.label.clone()),
            Self::Files { dir, running } => {
                let names = fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                let other = names.filter(|name| name.ends_with(".root") && !name.starts_with('.'));
                let mut other =
                    other.filter(|name| running.as_ref().is_none_or(|hash| !name.starts_with(hash.as_str())));
                Ok(other.next().unwrap_or_else(|| EMPTY.to_owned()))
            }
        }
    }
}

impl Disk {
    fn rename(&self, [root, hashes]: [Uuid; 2], label: &str) -> Result<()> {
        let mut table = Table::read(&self.disk, self.bytes)?;
        table.rename(self.root.number, root, label)?;
        table.rename(self.hashes.number, hashes, label)?;
        table.write(&self.disk, self.bytes)
    }
}

/// Root hash of the running system: of PID 1's command line in a container, else of the kernel's.
pub fn running(layout: &Layout) -> Option<String> {
    let read = |path: &str| fs::read_to_string(layout.at(path)).ok().and_then(|line| loader::hash_of(&line));
    if layout.at("/run/systemd/container").exists() { read("/proc/1/cmdline") } else { read("/proc/cmdline") }
}

/// Identifiers of root and hash tree: the halves of the root hash (UAPI Discoverable Partitions Specification).
pub fn halves(root_hash: &str) -> Result<[Uuid; 2]> {
    let half = |range| root_hash.get(range).and_then(|half| Uuid::try_parse(half).ok()).context("no root hash");
    Ok([half(0..32)?, half(32..64)?])
}

/// Size of a disk or of a file.
fn size(disk: &File) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut disk = disk;
    Ok(disk.seek(SeekFrom::End(0))?)
}

/// Copies a part and refuses it unless its sum is the set's; synced before this returns.
fn copy(set: &Set, part: &Part, to: &File, at: u64, progress: Progress<'_>) -> Result<()> {
    let mut from = Digester::new(set.source.open(&part.name)?.take(part.bytes + 1));
    let mut buffer = vec![0; CHUNK];
    let mut offset = at;
    loop {
        let read = fill(&mut from, &mut buffer).with_context(|| format!("reading {}", set.source.place(&part.name)))?;
        if read == 0 {
            break;
        }
        anyhow::ensure!(offset + read as u64 - at <= part.bytes, "`{}` is longer than the manifest says", part.name);
        to.write_all_at(&buffer[..read], offset).context("writing the other slot")?;
        offset += read as u64;
        progress(read as u64);
    }
    let (bytes, sha256) = (from.bytes, from.finish());
    if bytes != part.bytes || sha256 != part.sha256 {
        let what =
            format!("`{}` has {bytes} bytes and SHA-256 {sha256}, not {} and {}", part.name, part.bytes, part.sha256);
        let remedy = "the set is damaged or half copied: copy it again; the running version is untouched";
        return Err(Problem::new(what, set.source.place(&part.name), remedy).into());
    }
    to.sync_data().context("writing the other slot")
}

/// Reads until the buffer is full or nothing comes any more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Drops what the kernel remembers, so that reading asks the device.
fn read_again(disk: &File) -> Result<()> {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    disk.sync_all()?;
    posix_fadvise(disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("dropping cached pages")
}
