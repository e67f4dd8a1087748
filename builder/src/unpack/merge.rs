//! From the stage into the tree, and what happens when two packages have the same file.

use std::collections::HashSet;
use std::os::fd::AsFd;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{readlinkat, renameat};

use super::Known;
use super::deb::Deb;
use super::dpkg_db::{Database, Diversion};
use super::extract::{Extracted, Placement, Rules, extract};
use super::tree::{Tree, is_dir, lstat_at, split, text};
use crate::problem::Problem;

/// Who keeps a file that two packages ship.
enum Verdict {
    Newcomer,
    Present,
}

/// dpkg's rule: `Replaces` decides; without it the newcomer is an error.
fn judge(newcomer: &Known, present: &Known, path: &str) -> Result<Verdict, Problem> {
    if newcomer.control.paragraph.mentions("Replaces", present.name()) {
        Ok(Verdict::Newcomer)
    } else if present.control.paragraph.mentions("Replaces", newcomer.name()) {
        Ok(Verdict::Present)
    } else {
        Err(Problem::new(
            format!("packages `{}` and `{}` both contain `{path}`", newcomer.name(), present.name()),
            "image.lock",
            "they cannot be installed together; remove one from image.toml and lock again",
        ))
    }
}

/// Moves the staged files of everyone but the diverting package out of the way.
pub(super) fn apply_diversions(
    stage: &Tree,
    wave: &[&Known],
    found: &[Extracted],
    database: &Database,
) -> anyhow::Result<()> {
    for Diversion { from, to, package } in database.diversions()? {
        let others = wave.iter().zip(found).filter(|(known, _)| known.name() != package);
        let present = others.filter(|(_, found)| found.list.contains(&from) && !found.clashes.contains(&from)).count();
        if present > 0 && stage.lstat(&from)?.is_some() {
            let ((from_dir, from_name), (to_dir, to_name)) = (split(&from), split(&to));
            let (from_dir, to_dir) = (stage.ensure_dir(from_dir)?, stage.ensure_dir(to_dir)?);
            renameat(from_dir.as_fd(), from_name, to_dir.as_fd(), to_name)
                .with_context(|| format!("diverting {from} to {to}"))?;
        }
    }
    Ok(())
}

/// Settles the clashes inside one wave: diverted files go their way, `Replaces` decides the others.
pub(super) fn settle(
    wave: &[&Known],
    found: &mut [Extracted],
    tree: &Tree,
    database: &Database,
    rules: &Rules,
) -> anyhow::Result<()> {
    let diversions = database.diversions()?;
    for index in 0..wave.len() {
        for path in std::mem::take(&mut found[index].clashes) {
            let diverted = diversions.iter().any(|one| one.from == path && one.package != wave[index].name());
            let present = (0..wave.len())
                .filter(|other| *other != index && found[*other].list.contains(&path))
                .find(|other| !diversions.iter().any(|one| one.from == path && one.package != wave[*other].name()));
            let verdict = match present {
                Some(other) if !diverted => judge(wave[index], wave[other], &path)?,
                _ => Verdict::Newcomer,
            };
            match (verdict, present) {
                (Verdict::Present, _) => found[index].list.retain(|one| *one != path),
                (Verdict::Newcomer, other) => {
                    if let Some(other) = other.filter(|_| !diverted) {
                        found[other].list.retain(|one| *one != path);
                    }
                    again(wave[index], &path, tree, &diversions, rules)?;
                }
            }
        }
    }
    Ok(())
}

/// Extracts one path of a package again, replacing what is there.
fn again(known: &Known, path: &str, tree: &Tree, diversions: &[Diversion], rules: &Rules) -> anyhow::Result<()> {
    let deb = Deb::open(&known.package.path, &known.package.sha256)?;
    let divert = |path: &str| {
        let diversion = diversions.iter().find(|one| one.from == path && one.package != known.name());
        diversion.map_or_else(|| path.to_owned(), |one| one.to.clone())
    };
    let only = HashSet::from([path.to_owned()]);
    let placement = Placement { conffiles: &known.conffiles, only: Some(&only), divert: &divert };
    extract(&deb, tree, rules, &placement).with_context(|| format!("unpacking {path} of `{}`", known.name()))?;
    Ok(())
}

/// Moves a stage into the tree. Whole directories move at once where the tree has none of that name.
pub(super) fn merge(
    stage: &Tree,
    tree: &Tree,
    wave: &[&Known],
    found: &mut [Extracted],
    database: &Database,
    rules: &Rules,
) -> anyhow::Result<()> {
    let mut clashes = Vec::new();
    move_dir(stage, tree, "", &mut clashes)?;
    if clashes.is_empty() {
        return Ok(());
    }
    let owners = database.owners()?;
    let diversions = database.diversions()?;
    for path in clashes {
        let place = path.strip_suffix(".dpkg-new").unwrap_or(&path);
        let spelt = spellings(place);
        let listed = (0..wave.len()).find_map(|index| {
            let listed = spelt.iter().find(|one| found[index].list.iter().any(|path| path == *one))?;
            Some((index, *listed))
        });
        let Some((index, listed)) = listed else { continue };
        if let Some((present, theirs)) = spelt.iter().find_map(|one| Some((owners.get(*one)?, *one))) {
            if !wave[index].control.paragraph.mentions("Replaces", present) {
                return Err(Problem::new(
                    format!("package `{}` would overwrite `{theirs}` of `{present}`", wave[index].name()),
                    "image.lock",
                    "they cannot be installed together; remove one from image.toml and lock again",
                )
                .into());
            }
            database.disown(present, theirs)?;
        }
        again(wave[index], listed, tree, &diversions, rules)?;
    }
    Ok(())
}

/// How packages may spell a place in a tree with a merged `/usr`: those from before the merge say `/lib` for `/usr/lib`.
fn spellings(place: &str) -> Vec<&str> {
    std::iter::once(place).chain(place.strip_prefix("/usr").filter(|rest| rest.starts_with('/'))).collect()
}

/// Moves the content of one directory; files for which the tree has something else already are reported.
fn move_dir(stage: &Tree, tree: &Tree, path: &str, clashes: &mut Vec<String>) -> anyhow::Result<()> {
    let from = stage.dir(path).with_context(|| format!("opening {path} of the stage"))?;
    let to = tree.dir(path).with_context(|| format!("opening {path} of the tree"))?;
    for entry in fs_err::read_dir(stage.path().join(path.trim_start_matches('/')))? {
        let entry = entry?;
        let file_name = entry.file_name();
        let name = text(&file_name)?;
        let below = format!("{path}/{name}");
        if entry.file_type()?.is_dir() {
            match tree.dir(&below) {
                Ok(_) => {
                    move_dir(stage, tree, &below, clashes)?;
                    continue;
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).with_context(|| format!("opening {below} of the tree")),
            }
        } else if let Some(there) = lstat_at(&to, name)? {
            let same_link = entry.file_type()?.is_symlink()
                && (is_dir(&there) || readlinkat(&to, name).ok() == readlinkat(&from, name).ok());
            if !same_link {
                clashes.push(below);
            }
            continue;
        }
        renameat(from.as_fd(), name, to.as_fd(), name).with_context(|| format!("moving {below} into the tree"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::spellings;

    #[test]
    fn a_place_below_usr_has_an_older_spelling() {
        assert_eq!(spellings("/usr/lib/systemd/x"), ["/usr/lib/systemd/x", "/lib/systemd/x"]);
        assert_eq!(spellings("/etc/x"), ["/etc/x"]);
        assert_eq!(spellings("/usrlocal"), ["/usrlocal"]);
    }
}
