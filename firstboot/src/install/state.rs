//! A node whose root is in memory keeps its data (`/var`) on a disk: the one that has it already, else one that
//! is named or provably blank. Run before `/var` is mounted, so nothing here may want to write there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use super::contents::Contents;
use super::disks::{self, Disk};
use super::wanted::Wanted;
use super::{choose, cmdline, metadata_disk, say};
use crate::layout::Layout;
use crate::problem::Problem;
use crate::spec::SystemDisk;
use crate::tool::Tool;

/// Name of the partition. Not `var`: that is the one of an installed image, which this node is not.
const LABEL: &str = "pgkiln-state";
/// Room for a small database; systemd-repart wants at least as much.
const NEEDED: u64 = 1 << 30;
const DEFINITION: &str = "[Partition]\nType=linux-generic\nLabel=pgkiln-state\nFormat=ext4\nSizeMinBytes=512M\n";
const WORK: &str = "/run/pgkiln-state";

/// Finds or makes the partition, and has it called `/dev/disk/pgkiln/var`.
pub async fn run(layout: &Layout) -> Result<()> {
    let disks = disks::list().await?;
    let kept = kept(&disks);
    let wanted = wanted(&cmdline(layout)?, metadata_disk(layout), !kept.is_empty())?;
    let partition = match existing(&disks, &wanted)? {
        Some(partition) => {
            say(&format!("the data of this node (/var) is on {}", partition.path.display()));
            partition
        }
        None => make(disks, &wanted).await.map_err(|error| with_hint(error, &kept))?,
    };
    announce(&partition).await
}

/// Where earlier boots have left data.
fn kept(disks: &[Disk]) -> Vec<Disk> {
    disks.iter().flat_map(Disk::all).filter(|part| part.partlabel.as_deref() == Some(LABEL)).cloned().collect()
}

/// A named disk that is not there, or may not be taken, and data of earlier boots elsewhere: whose that is only a person knows.
fn with_hint(error: anyhow::Error, kept: &[Disk]) -> anyhow::Error {
    let Some(part) = kept.first() else { return error };
    match error.downcast::<Problem>() {
        Ok(problem) => {
            let remedy = format!(
                "{}; or, if the data of an earlier boot on {} is this node's, name that disk or none",
                problem.remedy,
                part.path.display()
            );
            Problem { remedy, ..problem }.into()
        }
        Err(error) => error,
    }
}

/// What is wanted. Metadata that is broken now must not keep a database from starting: what was accepted is on the disk, and
/// it counts once `/var` is there.
fn wanted(line: &str, metadata: Result<Option<SystemDisk>>, kept: bool) -> Result<Wanted> {
    let wanted = metadata.and_then(|disk| Ok(Wanted::read(line, disk.as_ref())?));
    let without = |error: anyhow::Error| {
        // What is wrong on the command line is wrong without metadata, too.
        let wanted = Wanted::read(line, None)?;
        say(&format!(
            "METADATA IGNORED, it is broken: {error:#}; this node runs what it has accepted before, from its disk"
        ));
        Ok(wanted)
    };
    if kept { wanted.or_else(without) } else { wanted }
}

/// The partition of earlier boots.
fn existing(disks: &[Disk], wanted: &Wanted) -> Result<Option<Disk>, Problem> {
    let ours = |disk: &Disk| wanted.disk.as_ref().is_none_or(|selector| selector.matches(disk));
    let parts = disks.iter().filter(|disk| ours(disk)).flat_map(Disk::all);
    let found: Vec<&Disk> = parts.filter(|part| part.partlabel.as_deref() == Some(LABEL)).collect();
    match found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        _ => {
            let names: Vec<_> = found.iter().map(|one| one.path.display().to_string()).collect();
            let what = format!("several partitions are called `{LABEL}`: {}", names.join(", "));
            Err(Problem::new(
                what,
                "disks",
                "detach the disk that is not this node's, or name it: pgkiln.disk=serial:NUMBER",
            ))
        }
    }
}

async fn make(disks: Vec<Disk>, wanted: &Wanted) -> Result<Disk> {
    let chosen = choose::decide(disks, wanted, NEEDED, Path::new(WORK)).await;
    let chosen = chosen.map_err(|error| match error.downcast::<Problem>() {
        Ok(problem) => {
            Problem { what: format!("no disk for the data of this node (/var): {}", problem.what), ..problem }.into()
        }
        Err(error) => error,
    })?;
    let device = &chosen.disk.path;
    say(&format!("the data of this node (/var) goes to {}, which becomes its own", chosen.disk));
    let definitions = Path::new(WORK).join("repart.d");
    fs::create_dir_all(&definitions)?;
    fs::write(definitions.join("10-state.conf"), DEFINITION)?;
    let empty = match chosen.contents {
        // A second look, by another program.
        Contents::Blank => "--empty=require",
        Contents::Unfinished | Contents::Holds { .. } => "--empty=force",
    };
    let repart = Tool::new("systemd-repart").args(["--dry-run=no", "--seed=random", empty]);
    let repart = repart.arg(format!("--definitions={}", definitions.display())).arg(device);
    repart.limit(super::PATIENCE).run().await.context("making the partition for /var")?;
    settle().await?;
    disks::partition(device, LABEL).await
}

/// Gives the partition the name that var.mount waits for: by its identifier, so that it is this one and no other.
async fn announce(partition: &Disk) -> Result<()> {
    let uuid = partition.partuuid.as_ref().context("a partition without identifier")?;
    let rule = format!("SUBSYSTEM==\"block\", ENV{{ID_PART_ENTRY_UUID}}==\"{uuid}\", SYMLINK+=\"disk/pgkiln/var\"\n");
    let rules = PathBuf::from("/run/udev/rules.d");
    fs::create_dir_all(&rules)?;
    fs::write(rules.join("61-pgkiln-disk.rules"), rule)?;
    Tool::new("udevadm").args(["control", "--reload"]).run().await?;
    let sysfs = Path::new("/sys/class/block").join(partition.path.file_name().context("path of a partition")?);
    Tool::new("udevadm").args(["trigger", "--action=change"]).arg(sysfs).run().await?;
    settle().await
}

/// Waits until udev has seen what is new.
pub(super) async fn settle() -> Result<()> {
    Tool::new("udevadm").args(["settle", "--timeout=60"]).limit(super::PATIENCE).run().await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::wanted::Selector;

    fn disk(path: &str, serial: &str, label: Option<&str>) -> Disk {
        let part = Disk { partlabel: label.map(str::to_owned), ..Disk::of(format!("{path}1"), 1 << 30, "") };
        Disk { children: vec![part], ..Disk::of(path, 2 << 30, serial) }
    }

    #[test]
    fn broken_metadata_stops_a_node_only_before_it_has_data() {
        let broken = || -> Result<_> { Err(Problem::new("unknown role `nod`", "user-data:7", "x").into()) };
        let nonsense = || Ok(Some(SystemDisk { overwrite: Some("all".into()), ..SystemDisk::default() }));
        let line = "ro pgkiln.disk=serial:A";
        for metadata in [broken as fn() -> Result<Option<SystemDisk>>, nonsense] {
            assert!(wanted(line, metadata(), false).is_err(), "a first boot fails closed");
            assert_eq!(wanted(line, metadata(), true).unwrap().disk, Some(Selector::Serial("A".into())));
            assert!(wanted("pgkiln.disk=vda", metadata(), true).is_err(), "the command line is no metadata");
        }
        let good = Ok(Some(SystemDisk { serial: Some("B".into()), ..SystemDisk::default() }));
        assert_eq!(wanted("ro", good, true).unwrap().disk, Some(Selector::Serial("B".into())));
        let disks = [disk("/dev/vda", "A", Some("var")), disk("/dev/vdb", "B", Some(LABEL))];
        assert_eq!((kept(&disks).len(), kept(&disks[..1]).len()), (1, 0));
    }

    #[test]
    fn data_of_an_earlier_boot_beside_a_disk_that_is_not_there_is_told() {
        let absent = || anyhow::Error::from(Problem::new("there is no disk `serial:C`", "disks", "attach that disk"));
        let disks = [disk("/dev/vda", "A", Some("var")), disk("/dev/vdb", "B", Some(LABEL))];
        let told = with_hint(absent(), &kept(&disks)).downcast::<Problem>().unwrap().remedy;
        assert!(told.starts_with("attach that disk; or") && told.contains("on /dev/vdb1 is this node's"), "{told}");
        let first_boot = with_hint(absent(), &kept(&disks[..1])).downcast::<Problem>().unwrap().remedy;
        assert_eq!(first_boot, "attach that disk");
    }

    #[test]
    fn the_partition_of_earlier_boots_is_found_again_and_two_are_refused() {
        let disks = [disk("/dev/vda", "A", Some("var")), disk("/dev/vdb", "B", Some(LABEL))];
        let found = |disks: &[Disk], wanted: &Wanted| existing(disks, wanted).map(|part| part.map(|part| part.path));
        let anything = Wanted::default();
        assert_eq!(found(&disks, &anything).unwrap(), Some("/dev/vdb1".into()));
        assert_eq!(found(&disks[..1], &anything).unwrap(), None);
        let both = [disk("/dev/vda", "A", Some(LABEL)), disk("/dev/vdb", "B", Some(LABEL))];
        assert!(found(&both, &anything).unwrap_err().what.contains("/dev/vda1, /dev/vdb1"));
        let named = Wanted { disk: Some(Selector::Serial("A".into())), ..Wanted::default() };
        assert_eq!(found(&both, &named).unwrap(), Some("/dev/vda1".into()));
    }
}
