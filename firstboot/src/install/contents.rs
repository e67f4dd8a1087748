//! What is on a disk. Only what is provably blank may be written to without being named: no signature libblkid knows (file
//! systems, partition tables, LVM, mdraid, ZFS, swap, LUKS, anywhere on it), and nothing but zeros at both ends, where everything
//! else that uses whole disks leaves its mark.

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::Deserialize;

use super::disks::Disk;
use super::mark;
use crate::tool::Tool;

/// At both ends: a partition table and its copy take this much.
pub const ENDS: u64 = 1 << 20;
/// A cluster lies no deeper: `var/lib/postgresql/17/main/global/pg_control`.
const DEPTH: usize = 6;
/// What libblkid calls the partition table of an installation, and the sector before it.
const TABLES: [&str; 2] = ["gpt", "PMBR"];
const MAX_DIRECTORIES: usize = 20_000;

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

/// Looks at a disk and changes nothing. `scratch`: where file systems are mounted, read-only, for a moment.
pub async fn look(disk: &Disk, scratch: &Path) -> Result<Contents> {
    let mut what = Vec::new();
    let mut clusters = Vec::new();
    let mut foreign = false;
    for device in disk.all() {
        for signature in signatures(&device.path).await? {
            clusters.extend(look_inside(&device.path, &signature.kind, scratch));
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
    Ok(Contents::Holds { what: what.join(", "), clusters })
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

/// Clusters in a file system that can be mounted without changing it: not even its journal is replayed.
fn look_inside(device: &Path, kind: &str, scratch: &Path) -> Vec<Cluster> {
    let options = match kind {
        "ext3" | "ext4" => "noload",
        "xfs" => "norecovery",
        // Its log is replayed even when it is mounted read-only.
        "btrfs" => "rescue=nologreplay",
        "ext2" => "",
        _ => return Vec::new(),
    };
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if fs::create_dir_all(scratch).is_err() || mount(Some(device), scratch, Some(kind), flags, Some(options)).is_err() {
        return Vec::new();
    }
    let found = clusters(scratch, &device.display().to_string());
    if let Err(error) = umount2(scratch, MntFlags::MNT_DETACH) {
        tracing::warn!("unmounting {}: {error}", scratch.display());
    }
    found
}

fn clusters(root: &Path, device: &str) -> Vec<Cluster> {
    let mut found = Vec::new();
    let mut todo: Vec<(PathBuf, usize)> = vec![(root.to_owned(), 0)];
    let mut looked = 0;
    while let Some((directory, depth)) = todo.pop() {
        looked += 1;
        if let Some(system_id) = system_id(&directory) {
            let inside = directory.strip_prefix(root).unwrap_or(&directory).display();
            found.push(Cluster { place: format!("{device}:/{inside}"), system_id });
        } else if depth < DEPTH && looked < MAX_DIRECTORIES {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            todo.extend(directories.map(|entry| (entry.path(), depth + 1)));
        }
    }
    found
}

/// The first field of `global/pg_control` (PostgreSQL, `src/include/catalog/pg_control.h`).
fn system_id(directory: &Path) -> Option<u64> {
    let mut bytes = [0; 8];
    fs::File::open(directory.join("global/pg_control")).ok()?.read_exact(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_at(disk: &Disk) -> Contents {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        runtime.block_on(look(disk, scratch.path())).unwrap()
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

    #[test]
    fn a_cluster_is_found_wherever_distributions_put_it() {
        let root = tempfile::tempdir().unwrap();
        for (n, place) in ["", "17/main", "lib/postgresql/16/main", "var/lib/pgsql/15/data"].iter().enumerate() {
            let global = root.path().join(n.to_string()).join(place).join("global");
            fs::create_dir_all(&global).unwrap();
            fs::write(global.join("pg_control"), (7_000 + n as u64).to_le_bytes()).unwrap();
            let found = clusters(&root.path().join(n.to_string()), "/dev/vda");
            assert_eq!(found, [Cluster { place: format!("/dev/vda:/{place}"), system_id: 7_000 + n as u64 }]);
        }
    }
}
