//! The decision: which disk is written to, or why none is. Nothing has been written before it, and nothing is if it refuses.

use std::path::Path;

use anyhow::Result;

use super::contents::{self, Contents};
use super::disks::Disk;
use super::wanted::{Overwrite, Selector, Wanted};
use crate::problem::Problem;

/// A disk and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The disk.
    pub disk: Disk,
    /// What is on it.
    pub contents: Contents,
}

impl Examined {
    /// Whether it may be written to without being named.
    fn is_free(&self) -> bool {
        matches!(self.contents, Contents::Blank | Contents::Unfinished) && !self.disk.in_use()
    }
}

/// The disk to write to, or why there is none: reads, and writes nothing. File systems are mounted below `work` for a moment.
pub async fn decide(disks: Vec<Disk>, wanted: &Wanted, needed: u64, work: &Path) -> Result<Examined> {
    let mut examined = Vec::new();
    for disk in disks {
        let named = wanted.disk.as_ref().is_some_and(|selector| selector.matches(&disk));
        let limit = if named { contents::THOROUGHLY } else { contents::BRIEFLY };
        let contents = contents::look(&disk, &work.join("look"), limit).await?;
        examined.push(Examined { disk, contents });
    }
    Ok(choose(&examined, wanted, needed)?.clone())
}

/// Chooses one of `disks` with at least `needed` bytes.
pub fn choose<'a>(disks: &'a [Examined], wanted: &Wanted, needed: u64) -> Result<&'a Examined, Problem> {
    let chosen = match &wanted.disk {
        Some(selector) => named(disks, selector, &wanted.overwrite)?,
        None => the_blank_one(disks)?,
    };
    let disk = &chosen.disk;
    if disk.size < needed {
        let what = format!("{disk} is too small: at least {:.1} GiB are needed", needed as f64 / f64::from(1 << 30));
        return Err(Problem::new(what, "disks", "attach a larger disk"));
    }
    Ok(chosen)
}

fn named<'a>(disks: &'a [Examined], selector: &Selector, lost: &Overwrite) -> Result<&'a Examined, Problem> {
    let found: Vec<&Examined> = disks.iter().filter(|one| selector.matches(&one.disk)).collect();
    let chosen = match found[..] {
        [one] => one,
        [] => {
            let what = format!("there is no disk `{selector}`; there {}", listed(disks));
            return Err(Problem::new(what, "disks", "correct pgkiln.disk= or disks.system, or attach that disk"));
        }
        _ => {
            let what = format!("`{selector}` names several disks; there {}", listed(disks));
            return Err(Problem::new(what, "disks", "name one by what only it has"));
        }
    };
    let Contents::Holds { what, clusters, unseen } = &chosen.contents else { return Ok(chosen) };
    let refuse = |remedy: String| {
        let place = chosen.disk.path.display().to_string();
        Err(Problem::new(format!("{} is not blank: it holds {what}", chosen.disk), place, remedy))
    };
    if chosen.disk.in_use() {
        return refuse("it is in use here and now: unmount it, or take another disk".to_owned());
    }
    if !selector.is_exact() {
        let exact = chosen.disk.serial.as_ref().map(|serial| format!("pgkiln.disk=serial:{serial}"));
        let exact = exact.or(chosen.disk.wwn.as_ref().map(|wwn| format!("pgkiln.disk=wwn:{wwn}")));
        let exact = exact.unwrap_or_else(|| "its serial number, which it has none of: wipe it yourself".to_owned());
        return refuse(format!("a path may be another disk's next time; if all that may be lost, name it: {exact}"));
    }
    let word = Overwrite { clusters: clusters.iter().map(|one| one.system_id).collect(), unseen: !unseen.is_empty() };
    if !word.clusters.is_subset(&lost.clusters) {
        let which = if word.clusters.len() == 1 { "that one" } else { "all of them" };
        return refuse(format!(
            "a database is never overwritten by accident: if {which} may be lost, add pgkiln.overwrite={word}"
        ));
    }
    if word.unseen && !lost.unseen {
        let place = chosen.disk.path.display().to_string();
        let what = format!("there may be a database on {} that could not be seen: {}", chosen.disk, unseen.join("; "));
        let remedy = format!(
            "look at it with a system that can read it. If whatever is there may be lost, add pgkiln.overwrite={word}; or wipe \
             the disk yourself"
        );
        return Err(Problem::new(what, place, remedy));
    }
    Ok(chosen)
}

fn the_blank_one(disks: &[Examined]) -> Result<&Examined, Problem> {
    let blank: Vec<&Examined> = disks.iter().filter(|one| one.is_free()).collect();
    match blank[..] {
        [one] => Ok(one),
        [] => {
            let what = format!("no disk is blank; there {}", listed(disks));
            let remedy = "attach a blank disk, or name the one whose content may be lost: pgkiln.disk=serial:NUMBER";
            Err(Problem::new(what, "disks", remedy))
        }
        _ => {
            let what = format!("{} disks are blank, so the choice is yours; there {}", blank.len(), listed(disks));
            Err(Problem::new(what, "disks", "name one: pgkiln.disk=serial:NUMBER"))
        }
    }
}

fn listed(disks: &[Examined]) -> String {
    let one = |one: &Examined| match &one.contents {
        Contents::Blank => format!("{}: blank", one.disk),
        Contents::Unfinished => format!("{}: an unfinished installation", one.disk),
        Contents::Holds { what, .. } => format!("{}: holds {what}", one.disk),
    };
    match disks {
        [] => "is no disk at all".to_owned(),
        [_] => format!("is {}", one(&disks[0])),
        _ => format!("are {}", disks.iter().map(one).collect::<Vec<_>>().join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::contents::Cluster;

    const NEEDED: u64 = 2 << 30;

    fn blank(path: &str, serial: &str) -> Examined {
        Examined { disk: Disk::of(path, 8 << 30, serial), contents: Contents::Blank }
    }

    fn full(path: &str, serial: &str, clusters: &[u64]) -> Examined {
        let cluster = |id: &u64| Cluster { place: format!("{path}:/main"), system_id: *id };
        let clusters = clusters.iter().map(cluster).collect();
        let unseen = Vec::new();
        let contents = Contents::Holds { what: "a file system or volume of type ext4".into(), clusters, unseen };
        Examined { contents, ..blank(path, serial) }
    }

    fn unseen(mut disk: Examined) -> Examined {
        if let Contents::Holds { unseen, .. } = &mut disk.contents {
            unseen.push("/dev/vda: ext4 cannot be mounted here (EINVAL)".to_owned());
        }
        disk
    }

    fn wanted(disk: Option<Selector>, overwrite: &str) -> Wanted {
        Wanted { disk, overwrite: Overwrite::parse(overwrite).unwrap_or_default() }
    }

    fn refused(disks: &[Examined], wanted: &Wanted, expected: &[&str]) {
        let told = choose(disks, wanted, NEEDED).unwrap_err().to_string();
        expected.iter().for_each(|text| assert!(told.contains(text), "no `{text}` in: {told}"));
    }

    #[test]
    fn the_one_blank_disk_and_never_a_guess_between_two() {
        let nothing = Wanted::default();
        let disks = [full("/dev/vda", "A", &[]), blank("/dev/vdb", "B")];
        assert_eq!(choose(&disks, &nothing, NEEDED).unwrap().disk.path.to_str(), Some("/dev/vdb"));
        refused(&disks[..1], &nothing, &["no disk is blank", "/dev/vda (8.0 GiB, serial A): holds a file system"]);
        refused(&[], &nothing, &["no disk at all"]);
        refused(&[blank("/dev/vda", "A"), blank("/dev/vdb", "B")], &nothing, &["2 disks are blank", "serial B"]);
        let mut small = blank("/dev/vda", "A");
        small.disk.size = NEEDED - 1;
        refused(&[small], &nothing, &["too small", "2.0 GiB are needed"]);
    }

    #[test]
    fn what_holds_something_is_written_to_only_if_named_exactly() {
        let disks = [full("/dev/vda", "A", &[]), blank("/dev/vdb", "B")];
        let by = |selector: Selector| wanted(Some(selector), "");
        assert_eq!(choose(&disks, &by(Selector::Serial("A".into())), NEEDED).unwrap(), &disks[0]);
        refused(&disks, &by(Selector::Path("/dev/vda".into())), &["is not blank", "pgkiln.disk=serial:A"]);
        assert_eq!(choose(&disks, &by(Selector::Path("/dev/vdb".into())), NEEDED).unwrap(), &disks[1]);
        refused(&disks, &by(Selector::Serial("C".into())), &["no disk `serial:C`", "/dev/vdb"]);
        refused(&[disks[0].clone(), disks[0].clone()], &by(Selector::Serial("A".into())), &["several disks"]);
    }

    #[test]
    fn an_unfinished_installation_is_as_good_as_blank_and_no_better() {
        let unfinished = Examined { contents: Contents::Unfinished, ..blank("/dev/vdb", "B") };
        let disks = [full("/dev/vda", "A", &[]), unfinished.clone()];
        assert_eq!(choose(&disks, &Wanted::default(), NEEDED).unwrap(), &disks[1]);
        let two = [blank("/dev/vda", "A"), unfinished];
        refused(&two, &Wanted::default(), &["2 disks are blank", "/dev/vdb (8.0 GiB, serial B): an unfinished"]);
    }

    #[test]
    fn a_database_is_lost_only_by_its_own_name() {
        let disks = [full("/dev/vda", "A", &[7])];
        let by = |overwrite| wanted(Some(Selector::Serial("A".into())), overwrite);
        for not in ["", "8", "unseen"] {
            refused(&disks, &by(not), &["if that one may be lost, add pgkiln.overwrite=7"]);
        }
        assert!(choose(&disks, &by("7"), NEEDED).is_ok());
        let two = [full("/dev/vda", "A", &[7, 9])];
        refused(&two, &by("7"), &["if all of them may be lost, add pgkiln.overwrite=7,9"]);
        assert!(choose(&two, &by("9,7"), NEEDED).is_ok());
        refused(&disks, &wanted(None, "7"), &["no disk is blank"]);
    }

    #[test]
    fn a_disk_that_was_not_seen_completely_is_lost_only_by_a_word_of_its_own() {
        let by = |overwrite| wanted(Some(Selector::Serial("A".into())), overwrite);
        let disks = [unseen(full("/dev/vda", "A", &[]))];
        for not in ["", "7"] {
            refused(&disks, &by(not), &["may be a database", "cannot be mounted", "add pgkiln.overwrite=unseen"]);
        }
        assert!(choose(&disks, &by("unseen"), NEEDED).is_ok());
        // Neither word is the other.
        let both = [unseen(full("/dev/vda", "A", &[7]))];
        for not in ["unseen", "7"] {
            refused(&both, &by(not), &["pgkiln.overwrite=7,unseen"]);
        }
        assert!(choose(&both, &by("7,unseen"), NEEDED).is_ok());
        refused(&disks, &wanted(Some(Selector::Path("/dev/vda".into())), "unseen"), &["is not blank", "serial:A"]);
    }
}
