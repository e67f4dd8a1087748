//! When an archive no longer has what was locked: which pin moved, to what, and what would come with it. Three different
//! things, with three different ways out.

use super::relock::drift;
use super::resolve::{self, Resolved};
use super::verify::Archives;
use super::{Locked, Package, Recipe};
use crate::apt::packages::Index;
use crate::cache::Cache;
use crate::fetch::{Event, Failure, FailureKind};
use crate::problem::{Problem, Problems};

/// How many packages are told one by one.
const TOLD: usize = 12;

/// Says what moved, where a fetch failed because of that; any other error stays as it is.
pub fn explain(
    error: anyhow::Error,
    recipe: &Recipe<Locked>,
    cache: &Cache,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Error {
    let moved = |failure: &Failure| matches!(failure.kind, FailureKind::Gone | FailureKind::Altered);
    if !error.downcast_ref::<Failure>().is_some_and(moved) {
        return error;
    }
    match moves(recipe, cache, report) {
        Ok(problems) if !problems.is_empty() => Problems(problems).into(),
        // The archive still promises what it does not deliver, or cannot be asked: the failure itself says most.
        _ => error,
    }
}

fn moves(recipe: &Recipe<Locked>, cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Vec<Problem>> {
    let (image, lock) = (recipe.image(), recipe.lock());
    let work = cache.work_dir("moved.")?;
    let index = Archives::verify(image, Some(lock), cache, work.path(), report)?.index;
    let place = image.lock_file().display().to_string();
    let dir = image.arguments();
    let mut problems: Vec<Problem> = Vec::new();
    for package in &lock.packages {
        problems.extend(gone(package, &index, &place, &dir).or_else(|| released_again(package, &index, &place, &dir)));
    }
    let more = problems.len().saturating_sub(TOLD);
    problems.truncate(TOLD);
    if more > 0 {
        problems.push(Problem::new(
            format!("{more} more packages moved"),
            &place,
            format!("`pgkiln lock --relock {dir}` shows them all and changes nothing"),
        ));
    }
    // A pin in the recipe may be what is gone: then nothing can be resolved, and that was told.
    if let Some(new) = resolve::resolve(image, Some(lock), &[], cache, report).ok().filter(|_| !problems.is_empty()) {
        problems.extend(newcomers(recipe, &new, &place));
    }
    Ok(problems)
}

fn gone(package: &Package, index: &Index, place: &str, dir: &dyn std::fmt::Display) -> Option<Problem> {
    let Package { name, version, archive, .. } = package;
    if index.find(name, version, &package.arch).is_some() {
        return None;
    }
    let there = match index.versions(name)[..] {
        [] => format!("the package is no longer in `{archive}`"),
        ref versions => format!("`{archive}` has {}", versions.join(", ")),
    };
    Some(Problem::new(
        format!("{name} {version} is gone: {there}"),
        place,
        format!(
            "take what is there with `pgkiln lock --update {dir} {name}`, give the archive a `snapshot`, or bake from a \
             store that has it (--from DIR)"
        ),
    ))
}

fn released_again(package: &Package, index: &Index, place: &str, dir: &dyn std::fmt::Display) -> Option<Problem> {
    let Package { name, version, sha256, .. } = package;
    let (_, entry) = index.find(name, version, &package.arch)?;
    (entry.sha256 != *sha256).then(|| {
        Problem::new(
            format!("{name} {version} was released again with other content: locked {sha256}, now {}", entry.sha256),
            place,
            format!(
                "bake the locked one from a store (`pgkiln fetch --to DIR` keeps it, `pgkiln bake --from DIR` takes it), \
                 or take the new one with `pgkiln lock --update {dir} {name}`"
            ),
        )
    })
}

/// Packages that nobody asked for and that a newer version of another one pulls in.
fn newcomers(recipe: &Recipe<Locked>, new: &Resolved, place: &str) -> Vec<Problem> {
    let added = drift(recipe.lock(), &new.lock).into_iter().filter(|drift| drift.old.is_none());
    added
        .map(|drift| {
            let by = new.pulled_by(&drift.package);
            Problem::new(
                format!(
                    "{} {} would be new in the image: {}",
                    drift.package,
                    drift.new.unwrap_or_default(),
                    if by.is_empty() { "nothing names it".to_owned() } else { by.join(", ") }
                ),
                place,
                "review it before `pgkiln lock --update`; if it is not wanted, keep the old version of what pulls it in",
            )
        })
        .collect()
}
