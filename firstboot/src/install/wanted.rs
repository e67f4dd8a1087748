//! Which disk somebody wants: on the kernel's command line, or in the metadata.
//!
//! `pgkiln.disk=serial:…`, `wwn:…` or a path; `pgkiln.overwrite=` the system identifiers of the PostgreSQL clusters that may
//! be lost, and `unseen` for a disk that could not be seen completely: `7412345678901234567,unseen`.
//! The metadata has the same under `disks: {system: …}`; the command line wins.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::disks::Disk;
use crate::problem::Problem;
use crate::spec::SystemDisk;

/// How a disk is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Its serial number.
    Serial(String),
    /// Its world wide name.
    Wwn(String),
    /// A path, which may be another disk's after the next restart: it chooses, but never allows to overwrite.
    Path(PathBuf),
}

impl Selector {
    /// From `serial:…`, `wwn:…`, `path:…` or a path.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.split_once(':') {
            Some(("serial", serial)) if !serial.is_empty() => Some(Self::Serial(serial.to_owned())),
            Some(("wwn", wwn)) if !wwn.is_empty() => Some(Self::Wwn(wwn.to_owned())),
            Some(("path", path)) if path.starts_with('/') => Some(Self::Path(path.into())),
            _ if text.starts_with("/dev/") => Some(Self::Path(text.into())),
            _ => None,
        }
    }

    /// Whether it names this disk and will never name another one.
    pub fn is_exact(&self) -> bool {
        !matches!(self, Self::Path(_))
    }

    /// Whether it names `disk`.
    pub fn matches(&self, disk: &Disk) -> bool {
        let same = |wanted: &str, found: &Option<String>| found.as_deref().is_some_and(|found| found.trim() == wanted);
        match self {
            Self::Serial(serial) => same(serial, &disk.serial),
            Self::Wwn(wwn) => same(wwn, &disk.wwn),
            Self::Path(path) => real(path) == real(&disk.path),
        }
    }
}

fn real(path: &Path) -> PathBuf {
    fs_err::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial:{serial}"),
            Self::Wwn(wwn) => write!(f, "wwn:{wwn}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The disk, if one is named.
    pub disk: Option<Selector>,
    /// What may be overwritten.
    pub overwrite: Overwrite,
}

/// What may be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overwrite {
    /// PostgreSQL clusters, by their system identifiers.
    pub clusters: BTreeSet<u64>,
    /// Also what could not be looked at.
    pub unseen: bool,
}

impl Overwrite {
    /// From `7412345678901234567`, `unseen`, or several with commas between them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut overwrite = Self::default();
        for word in text.split(',').map(str::trim) {
            match word {
                UNSEEN => overwrite.unseen = true,
                number => drop(overwrite.clusters.insert(number.parse().ok()?)),
            }
        }
        Some(overwrite)
    }
}

/// As [`Overwrite::parse`] reads it.
impl fmt::Display for Overwrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unseen = self.unseen.then(|| UNSEEN.to_owned());
        let words: Vec<_> = self.clusters.iter().map(u64::to_string).chain(unseen).collect();
        write!(f, "{}", words.join(","))
    }
}

const UNSEEN: &str = "unseen";

impl Wanted {
    /// From the kernel's command line, else from the metadata.
    pub fn read(cmdline: &str, metadata: Option<&SystemDisk>) -> Result<Self, Problem> {
        let word = |name: &str| cmdline.split_whitespace().filter_map(|word| word.strip_prefix(name)).next_back();
        let remedy = "write `pgkiln.disk=serial:NUMBER`, `pgkiln.disk=wwn:NAME` or `pgkiln.disk=/dev/…`";
        let bad = |text: &str| Problem::new(format!("`{text}` names no disk"), "kernel command line", remedy);
        let given = word("pgkiln.disk=").map(|text| Selector::parse(text).ok_or_else(|| bad(text))).transpose()?;
        let lost = |text: &str, place: &str| {
            let remedy = "write the number that pg_controldata calls `Database system identifier`, `unseen`, or several of them \
                          with commas between them";
            let bad = || Problem::new(format!("`{text}` names no database that may be lost"), place, remedy);
            Overwrite::parse(text).ok_or_else(bad)
        };
        let overwrite = word("pgkiln.overwrite=").map(|text| lost(text, "kernel command line")).transpose()?;
        let theirs = metadata.and_then(|disk| {
            let serial = disk.serial.clone().map(Selector::Serial);
            serial.or(disk.wwn.clone().map(Selector::Wwn)).or(disk.path.clone().map(|path| Selector::Path(path.into())))
        });
        let told = metadata.and_then(|disk| disk.overwrite.as_deref());
        let told = told.map(|text| lost(text, "pgkiln.disks.system.overwrite")).transpose()?;
        Ok(Self { disk: given.or(theirs), overwrite: overwrite.or(told).unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_and_nonsense_is_refused() {
        let metadata = SystemDisk { serial: Some("B".into()), ..SystemDisk::default() };
        let read = |line: &str| Wanted::read(line, Some(&metadata));
        assert_eq!(read("ro").unwrap().disk, Some(Selector::Serial("B".into())));
        assert_eq!(read("pgkiln.disk=wwn:0x5").unwrap().disk, Some(Selector::Wwn("0x5".into())));
        let wanted = read("pgkiln.disk=/dev/vdb pgkiln.overwrite=7 x").unwrap();
        let seven = Overwrite { clusters: [7].into(), unseen: false };
        assert_eq!((wanted.disk, wanted.overwrite), (Some(Selector::Path("/dev/vdb".into())), seven.clone()));
        let both = read("pgkiln.overwrite=unseen,7").unwrap().overwrite;
        assert_eq!((both.to_string().as_str(), &both), ("7,unseen", &Overwrite { unseen: true, ..seven }));
        for wrong in [
            "pgkiln.disk=",
            "pgkiln.disk=serial:",
            "pgkiln.disk=vda",
            "pgkiln.overwrite=all",
            "pgkiln.overwrite=",
            "pgkiln.overwrite=7,",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
