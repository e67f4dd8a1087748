//! What is on a disk. Only what is provably blank may be written to without being named: no signature libblkid knows (file
//! systems, partition tables, LVM, mdraid, ZFS, swap, LUKS, anywhere on it), and nothing but zeros at both ends, where everything
//! else that uses whole disks leaves its mark.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs_err as fs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::Deserialize;

use super::disks::Disk;
use super::mark;
use crate::tool::Tool;

/// At both ends: a partition table and its copy take this much.
pub const ENDS: u64 = 1 << 20;
/// What libblkid calls the partition table of an installation, and the sector before it.
const TABLES: [&str; 2] = ["gpt", "PMBR"];
/// In which no cluster can lie: tables, swap, an EFI system partition, and what cannot be written to.
const WITHOUT: [&str; 14] = [
    "gpt",
    "PMBR",
    "dos",
    "mac",
    "sun",
    "bsd",
    "atari",
    "swap",
    "swsuspend",
    "vfat",
    "iso9660",
    "squashfs",
    "erofs",
    "DM_verity_hash",
];
/// For all of a disk that is to be overwritten: one that turns reads some hundred directories a second, others many thousands.
pub(super) const THOROUGHLY: Duration = Duration::from_secs(120);
/// For one that is only to be described.
pub(super) const BRIEFLY: Duration = Duration::from_secs(5);
/// Of one file system: names of directories that wait for their turn are kept in memory, of which a live machine may have
/// little more than its image.
const MOST_DIRECTORIES: usize = 500_000;

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Nothing, provably.
    Blank,
    /// An installation of ours that was interrupted: nothing of anybody else's.
    Unfinished,
    /// Something.
    Holds {
        /// What, in words.
        what: String,
        /// PostgreSQL clusters that could be looked at.
        clusters: Vec<Cluster>,
        /// Where others may be that could not, and why not.
        unseen: Vec<String>,
    },
}

/// A PostgreSQL cluster on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Device and directory.
    pub place: String,
    /// Its system identifier, which no other cluster has.
    pub system_id: u64,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    label: Option<String>,
}

/// Looks at a disk and changes nothing. `scratch`: where file systems are mounted, read-only, for a moment; `limit`: for how
/// long clusters are searched for.
pub async fn look(disk: &Disk, scratch: &Path, limit: Duration) -> Result<Contents> {
    let mut what = Vec::new();
    let (mut clusters, mut unseen) = (Vec::new(), Vec::new());
    let mut foreign = false;
    let until = Instant::now() + limit;
    for device in disk.all() {
        for signature in signatures(&device.path).await? {
            let seen = look_inside(&device.path, &signature.kind, scratch, until);
            clusters.extend(seen.clusters);
            unseen.extend(seen.unseen.filter(|why| !unseen.contains(why)));
            foreign |= device.path == disk.path && !TABLES.contains(&signature.kind.as_str());
            let name = if device.path == disk.path { String::new() } else { format!(" on {}", device.path.display()) };
            let words = format!("{}{name}", words(&signature));
            if !what.contains(&words) {
                what.push(words);
            }
        }
    }
    what.extend(clusters.iter().map(|cluster: &Cluster| {
        format!("the PostgreSQL cluster with the system identifier {} in {}", cluster.system_id, cluster.place)
    }));
    if what.is_empty() && !zero_ends(&disk.path, disk.size).with_context(|| format!("reading {disk}"))? {
        what.push(format!("data of a kind nobody knows (not zeros in its first or last {} KiB)", ENDS >> 10));
    }
    if what.is_empty() {
        return Ok(Contents::Blank);
    }
    if !foreign && clusters.is_empty() {
        let file = fs::File::open(&disk.path)?;
        if mark::is_unfinished(file.file(), disk.size).with_context(|| format!("reading {disk}"))? {
            return Ok(Contents::Unfinished);
        }
    }
    Ok(Contents::Holds { what: what.join(", "), clusters, unseen })
}

async fn signatures(device: &Path) -> Result<Vec<Signature>> {
    let text = Tool::new("wipefs").args(["--no-act", "--json"]).arg(device).run().await?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let found: Found = serde_json::from_str(&text).context("reading wipefs's answer")?;
    Ok(found.signatures)
}

fn words(signature: &Signature) -> String {
    let label = signature.label.as_ref().map(|label| format!(" `{label}`")).unwrap_or_default();
    match signature.kind.as_str() {
        "gpt" | "dos" | "PMBR" | "mac" | "sun" | "bsd" | "atari" => format!("a partition table ({})", signature.kind),
        "LVM2_member" => format!("a physical volume of LVM{label}"),
        "linux_raid_member" => format!("a member of an mdraid array{label}"),
        "zfs_member" => format!("a member of a ZFS pool{label}"),
        "crypto_LUKS" => "an encrypted volume (LUKS)".to_owned(),
        "swap" => format!("swap space{label}"),
        kind => format!("a file system or volume of type {kind}{label}"),
    }
}

fn zero_ends(device: &Path, size: u64) -> io::Result<bool> {
    let file = fs::File::open(device)?.into_parts().0;
    let mut bytes = vec![0; ENDS.min(size) as usize];
    for at in [0, size.saturating_sub(ENDS)] {
        file.read_exact_at(&mut bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What was found in a file system, and why that is not all of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    clusters: Vec<Cluster>,
    unseen: Option<String>,
}

impl Seen {
    fn nothing_of(device: &Path, why: &str) -> Self {
        Self { clusters: Vec::new(), unseen: Some(format!("{}: {why}", device.display())) }
    }
}

/// Clusters in a file system that can be mounted without changing it: not even its journal is replayed. What cannot be looked
/// into may hold one.
fn look_inside(device: &Path, kind: &str, scratch: &Path, until: Instant) -> Seen {
    let options = match kind {
        "ext3" | "ext4" => "noload",
        "xfs" => "norecovery",
        // Its log is replayed even when it is mounted read-only; below the top are all subvolumes, not the default one alone.
        "btrfs" => "rescue=nologreplay,subvolid=5",
        "ext2" => "",
        kind if WITHOUT.contains(&kind) => return Seen::default(),
        kind => return Seen::nothing_of(device, &format!("what {kind} holds cannot be looked at here")),
    };
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = fs::create_dir_all(scratch).map_err(|error| error.to_string());
    let mount = |()| mount(Some(device), scratch, Some(kind), flags, Some(options)).map_err(|error| error.to_string());
    if let Err(error) = mounted.and_then(mount) {
        return Seen::nothing_of(device, &format!("{kind} cannot be mounted here ({error})"));
    }
    let seen = clusters(scratch, &device.display().to_string(), until, MOST_DIRECTORIES);
    if let Err(error) = umount2(scratch, MntFlags::MNT_DETACH) {
        tracing::warn!("unmounting {}: {error}", scratch.display());
    }
    seen
}

/// Breadth first: where databases usually are is seen before what lies deep.
fn clusters(root: &Path, device: &str, until: Instant, most: usize) -> Seen {
    let mut seen = Seen::default();
    let mut todo = VecDeque::from([root.to_owned()]);
    let mut known = 1;
    while let Some(directory) = todo.pop_front() {
        let inside = directory.strip_prefix(root).unwrap_or(&directory).display();
        let left = |why: &str| Some(format!("{device}: {why}"));
        if Instant::now() >= until || known > most {
            seen.unseen = left(&format!("it has too many directories to see them all ({known} are known)"));
            break;
        }
        match examine(&directory) {
            Ok(Looked::Cluster(system_id)) => {
                seen.clusters.push(Cluster { place: format!("{device}:/{inside}"), system_id });
            }
            Ok(Looked::Directories(more)) => {
                known += more.len();
                todo.extend(more);
            }
            // The rest is looked at all the same.
            Err(error) => seen.unseen = left(&format!("/{inside} cannot be read ({error})")),
        }
    }
    seen
}

enum Looked {
    Cluster(u64),
    Directories(Vec<PathBuf>),
}

fn examine(directory: &Path) -> io::Result<Looked> {
    let mut more = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Asked only where there is one: most directories are none of PostgreSQL's.
        if entry.file_name() == "global"
            && let Some(system_id) = system_id(directory)?
        {
            return Ok(Looked::Cluster(system_id));
        }
        if entry.file_type()?.is_dir() {
            more.push(entry.path());
        }
    }
    Ok(Looked::Directories(more))
}

/// The first field of `global/pg_control` (PostgreSQL, `src/include/catalog/pg_control.h`).
fn system_id(directory: &Path) -> io::Result<Option<u64>> {
    let mut file = match fs::File::open(directory.join("global/pg_control")) {
        Ok(file) => file,
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes)?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_at(disk: &Disk) -> Contents {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        runtime.block_on(look(disk, scratch.path(), BRIEFLY)).unwrap()
    }

    #[test]
    fn zeros_are_blank_and_a_single_byte_at_either_end_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = 8 << 20;
        file.as_file().set_len(size).unwrap();
        let disk = Disk::of(file.path(), size, "S1");
        assert_eq!(look_at(&disk), Contents::Blank);
        for at in [1000, size - 1] {
            file.as_file().write_all_at(b"x", at).unwrap();
            let Contents::Holds { what, .. } = look_at(&disk) else { panic!("byte {at} is not seen") };
            assert!(what.contains("data of a kind nobody knows"), "{what}");
            file.as_file().write_all_at(b"\0", at).unwrap();
        }
        // What an interrupted installation leaves: data, but neither table nor anything at the ends.
        file.as_file().write_all_at(b"hsqs", 4 << 20).unwrap();
        assert_eq!(look_at(&disk), Contents::Blank);
    }

    fn seen(root: &Path, most: usize) -> Seen {
        clusters(root, "/dev/vda", Instant::now() + THOROUGHLY, most)
    }

    fn cluster(root: &Path, place: &str, system_id: u64) -> Cluster {
        let global = root.join(place).join("global");
        fs::create_dir_all(&global).unwrap();
        fs::write(global.join("pg_control"), system_id.to_le_bytes()).unwrap();
        Cluster { place: format!("/dev/vda:/{place}"), system_id }
    }

    #[test]
    fn a_cluster_is_found_wherever_somebody_puts_it() {
        let places = [
            "",
            "17/main",
            "lib/postgresql/16/main",
            "var/lib/pgsql/15/data",
            "var/lib/docker/volumes/x/_data/pgdata",
            "a/b/c/d/e/f/g/h/i/j/k/l",
            "usr/global/global",
        ];
        for place in places {
            let root = tempfile::tempdir().unwrap();
            let expected = cluster(root.path(), place, 7_000);
            assert_eq!(seen(root.path(), 100), Seen { clusters: vec![expected], unseen: None });
        }
    }

    #[test]
    fn what_was_not_seen_is_said() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..200 {
            fs::create_dir_all(root.path().join(format!("etc/x/y/{n}"))).unwrap();
        }
        let near = cluster(root.path(), "17/main", 7_000);
        let far = cluster(root.path(), "a/b/c/d/e/f", 8_000);
        let all = seen(root.path(), 1_000);
        assert!(all.unseen.is_none() && all.clusters == [near.clone(), far]);
        let some = seen(root.path(), 100);
        assert_eq!(some.clusters, [near], "breadth first");
        assert!(some.unseen.unwrap().contains("/dev/vda: it has too many directories"));
        let none = clusters(root.path(), "/dev/vda", Instant::now(), 1_000);
        assert!(none.clusters.is_empty() && none.unseen.is_some(), "no time");
        // Damaged: nobody knows which it is.
        fs::write(root.path().join("17/main/global/pg_control"), "x").unwrap();
        let damaged = seen(root.path(), 1_000);
        assert_eq!(damaged.clusters.len(), 1);
        assert!(damaged.unseen.unwrap().contains("/17/main cannot be read"));
    }

    #[test]
    fn what_cannot_be_looked_into_may_hold_a_cluster() {
        let scratch = tempfile::tempdir().unwrap();
        let unseen = |kind: &str| look_inside(Path::new("/dev/null"), kind, scratch.path(), Instant::now()).unseen;
        for kind in ["LVM2_member", "linux_raid_member", "crypto_LUKS", "zfs_member", "f2fs", "ext4", "xfs"] {
            assert!(unseen(kind).unwrap().starts_with("/dev/null: "), "{kind}");
        }
        for kind in WITHOUT {
            assert_eq!(unseen(kind), None, "{kind}");
        }
    }
}
