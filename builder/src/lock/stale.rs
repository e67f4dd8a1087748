//! Why a lock no longer satisfies its recipe. Answered offline: the network is for resolving only.

use std::fmt;

use super::Lock;
use crate::image::Image;
use crate::problem::Problem;

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// The lock is another image's.
    OtherImage(String),
    /// The recipe is for another architecture now.
    Architecture(String),
    /// The recipe asks for something the lock was not made for; with its line.
    Added(String, usize),
    /// The lock was made for something the recipe no longer asks for.
    Removed(String),
    /// Archive and suite that the lock does not know.
    SuiteAdded(String, String),
    /// Archive and suite that the recipe no longer has.
    SuiteRemoved(String, String),
    /// The components of a suite changed.
    Components(String, String),
    /// The key that signed this suite is no longer pinned.
    Signer(String, String),
    /// Something else about archives (priority, snapshot, keys) changed.
    Archives,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherImage(name) => write!(f, "it was made for the image `{name}`"),
            Self::Architecture(arch) => write!(f, "it was made for the architecture `{arch}`"),
            Self::Added(wanted, line) => write!(f, "package `{wanted}` was added in line {line} of image.toml"),
            Self::Removed(wanted) => write!(f, "package `{wanted}` was removed from image.toml"),
            Self::SuiteAdded(archive, suite) => write!(f, "suite `{suite}` was added to archive `{archive}`"),
            Self::SuiteRemoved(archive, suite) => write!(f, "suite `{suite}` was removed from archive `{archive}`"),
            Self::Components(archive, suite) => write!(f, "the components of `{suite}` in archive `{archive}` changed"),
            Self::Signer(suite, key) => write!(f, "the key {key} that signed `{suite}` is no longer pinned"),
            Self::Archives => write!(f, "priority, snapshot or keys of an archive changed"),
        }
    }
}

/// All reasons why `lock` does not satisfy `image`; none if it does.
pub fn reasons(image: &Image, lock: &Lock) -> Vec<Stale> {
    let mut reasons = Vec::new();
    if lock.image != image.name {
        reasons.push(Stale::OtherImage(lock.image.clone()));
    }
    if lock.architecture != image.architecture {
        reasons.push(Stale::Architecture(lock.architecture.clone()));
    }
    let wanted: Vec<(String, usize)> = image.wanted().iter().map(|wanted| (wanted.spelling(), wanted.line)).collect();
    for (spelling, line) in wanted.iter().filter(|(spelling, _)| !lock.wanted.contains(spelling)) {
        reasons.push(Stale::Added(spelling.clone(), *line));
    }
    for spelling in lock.wanted.iter().filter(|locked| !wanted.iter().any(|(spelling, _)| spelling == *locked)) {
        reasons.push(Stale::Removed(spelling.clone()));
    }
    for archive in &image.archives {
        for suite in &archive.suites {
            let names = || (archive.id.clone(), suite.clone());
            match lock.suites.iter().find(|locked| locked.archive == archive.id && locked.suite == *suite) {
                None => reasons.push(Stale::SuiteAdded(names().0, names().1)),
                Some(locked) if locked.components != archive.components => {
                    reasons.push(Stale::Components(names().0, names().1));
                }
                Some(locked) if !archive.fingerprints.contains(&locked.signer) => {
                    reasons.push(Stale::Signer(suite.clone(), locked.signer.clone()));
                }
                Some(_) => {}
            }
        }
    }
    for locked in &lock.suites {
        if !image.archive(&locked.archive).is_some_and(|archive| archive.suites.contains(&locked.suite)) {
            reasons.push(Stale::SuiteRemoved(locked.archive.clone(), locked.suite.clone()));
        }
    }
    if reasons.is_empty() && lock.recipe_sha256 != image.resolution_digest() {
        reasons.push(Stale::Archives);
    }
    reasons
}

/// The reasons as one problem with its way out.
pub fn problem(image: &Image, reasons: &[Stale]) -> Problem {
    let reasons: Vec<String> = reasons.iter().map(Stale::to_string).collect();
    Problem::new(
        format!("the lock is out of date: {}", reasons.join("; ")),
        image.lock_file().display().to_string(),
        format!("run `pgkiln lock --update {}` and review the difference", image.arguments()),
    )
}
