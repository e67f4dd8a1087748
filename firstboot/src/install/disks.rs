//! The disks of this machine, as lsblk sees them.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::tool::Tool;

const COLUMNS: &str = "PATH,TYPE,SIZE,RO,SERIAL,WWN,PARTLABEL,PARTUUID,LOG-SEC,MOUNTPOINT";
/// Block devices of the type `disk` that are nobody's disk: floppy drives, memory.
const NOT_DISKS: [&str; 4] = ["/dev/fd", "/dev/ram", "/dev/zram", "/dev/nbd"];

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// Device.
    pub path: PathBuf,
    /// `disk`, `part`, `rom`, `loop` and others.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// Whether it cannot be written to.
    #[serde(default)]
    pub ro: bool,
    /// Serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// World wide name.
    #[serde(default)]
    pub wwn: Option<String>,
    /// Name of the partition.
    #[serde(default)]
    pub partlabel: Option<String>,
    /// Identifier of the partition.
    #[serde(default)]
    pub partuuid: Option<String>,
    /// Bytes of a sector.
    #[serde(default)]
    pub log_sec: u64,
    /// Where it is mounted.
    #[serde(default)]
    pub mountpoint: Option<String>,
    /// Partitions and what lies on them.
    #[serde(default)]
    pub children: Vec<Disk>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    blockdevices: Vec<Disk>,
}

/// All disks that can be written to.
pub async fn list() -> Result<Vec<Disk>> {
    let lsblk = Tool::new("lsblk").args(["--json", "--bytes", "--tree", "--output", COLUMNS]);
    parse(&lsblk.run().await?)
}

fn parse(text: &str) -> Result<Vec<Disk>> {
    let Listed { blockdevices } = serde_json::from_str(text).context("reading lsblk's answer")?;
    let is_disk = |disk: &Disk| {
        let path = disk.path.to_string_lossy();
        disk.kind == "disk" && disk.size > 0 && !disk.ro && !NOT_DISKS.iter().any(|no| path.starts_with(no))
    };
    Ok(blockdevices.into_iter().filter(is_disk).collect())
}

/// The partition of a disk with a name.
pub(super) async fn partition(disk: &Path, label: &str) -> Result<Disk> {
    let disks = list().await?;
    let parts = disks.iter().filter(|one| one.path == disk).flat_map(Disk::all);
    let found = parts.into_iter().find(|part| part.partlabel.as_deref() == Some(label));
    found.cloned().with_context(|| format!("no partition `{label}` appears on {}", disk.display()))
}

impl Disk {
    /// A device or file of a size, as if lsblk had listed it.
    pub fn of(path: impl Into<PathBuf>, size: u64, serial: &str) -> Self {
        Self { path: path.into(), size, serial: Some(serial.to_owned()), log_sec: 512, ..Self::default() }
    }

    /// Itself and everything on it.
    pub fn all(&self) -> Vec<&Self> {
        std::iter::once(self).chain(self.children.iter().flat_map(Self::all)).collect()
    }

    /// Whether any of it is mounted or otherwise in use.
    pub fn in_use(&self) -> bool {
        self.all().iter().any(|one| one.mountpoint.is_some())
    }
}

/// `/dev/vda (20.0 GiB, serial DATA1)`.
impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:.1} GiB", self.path.display(), self.size as f64 / f64::from(1 << 30))?;
        match (&self.serial, &self.wwn) {
            (Some(serial), _) => write!(f, ", serial {serial})"),
            (None, Some(wwn)) => write!(f, ", wwn {wwn})"),
            (None, None) => write!(f, ")"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_that_can_be_written_to() {
        let text = r#"{"blockdevices": [
            {"path":"/dev/loop0","type":"loop","size":100,"ro":true,"log-sec":512},
            {"path":"/dev/sr0","type":"rom","size":1000,"ro":true,"log-sec":2048},
            {"path":"/dev/fd0","type":"disk","size":1000,"ro":false},
            {"path":"/dev/sdb","type":"disk","size":0,"ro":false},
            {"path":"/dev/vda","type":"disk","size":8589934592,"ro":false,"serial":"A1","wwn":null,"log-sec":4096,
             "children":[{"path":"/dev/vda1","type":"part","size":10,"ro":false,"partlabel":"var","mountpoint":"/mnt"}]}]}"#;
        let disks = parse(text).unwrap();
        assert_eq!(disks.len(), 1);
        assert_eq!(disks[0].to_string(), "/dev/vda (8.0 GiB, serial A1)");
        assert_eq!((disks[0].all().len(), disks[0].in_use(), disks[0].log_sec), (2, true, 4096));
    }
}
