//! From recipe to lock: fetch and verify the indexes, let apt choose, look every choice up in what was verified.

use anyhow::Context;

use super::verify::{Archives, Verified};
use super::{Lock, Package, SCHEMA};
use crate::apt::packages::Index;
use crate::apt::release::Release;
use crate::apt::solver::{Solver, Source};
use crate::cache::Cache;
use crate::fetch::Event;
use crate::image::{Image, Wanted};
use crate::problem::{Problem, Problems};

/// Resolves the recipe against its archives as they are now. No archive may be older than `old`, the lock so far, saw it.
pub fn resolve(image: &Image, old: Option<&Lock>, cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Lock> {
    let work = cache.work_dir("lock.")?;
    let Archives { index, suites, seen } = Archives::verify(image, old, cache, work.path(), report)?;
    let wanted = image.wanted();
    check_wanted(image, &wanted, &index)?;

    let sources: Vec<Source<'_>> = suites.iter().map(|suite| source(image, suite)).collect();
    let solver = Solver::new(&work.path().join("apt"), &image.architecture, &sources)?;
    let essential = index.essential().into_iter().filter(|name| !wanted.iter().any(|w| w.package == *name));
    let names: Vec<String> = essential.map(str::to_owned).chain(wanted.iter().map(Wanted::spelling)).collect();
    let chosen = solver.solve(&names, &image.file.display().to_string())?;

    let packages = chosen.iter().map(|chosen| {
        let (archive, entry) = index
            .find(&chosen.name, &chosen.version, &chosen.arch)
            .with_context(|| format!("apt chose {} {}, which no verified index has", chosen.name, chosen.version))?;
        if let Some(other) = index.contradiction(archive, entry) {
            return Err(Problem::new(
                format!("{} {} is listed twice: {} and {}", entry.name, entry.version, entry.path, other.path),
                image.at(image.archives[archive].line),
                "their contents differ, so nobody can say which is meant; tell the archive's owner",
            )
            .into());
        }
        Ok(Package {
            name: entry.name.clone(),
            version: entry.version.clone(),
            arch: entry.arch.clone(),
            archive: image.archives[archive].id.clone(),
            path: entry.path.clone(),
            size: entry.size,
            sha256: entry.sha256,
        })
    });
    let packages = packages.collect::<anyhow::Result<Vec<Package>>>()?;
    seen.remember()?;
    let newest = suites.iter().map(|suite| suite.locked.date.as_second()).max().unwrap_or(0);
    let mut spellings: Vec<String> = wanted.iter().map(Wanted::spelling).collect();
    spellings.sort();
    Ok(Lock {
        schema: SCHEMA,
        image: image.name.clone(),
        architecture: image.architecture.clone(),
        recipe_sha256: image.resolution_digest(),
        wanted: spellings,
        source_date_epoch: u64::try_from(newest).unwrap_or(0),
        suites: suites.into_iter().map(|suite| suite.locked).collect(),
        packages,
    })
}

fn source<'a>(image: &'a Image, suite: &'a Verified) -> Source<'a> {
    let archive = &image.archives[suite.archive];
    let Release { origin, label, codename, .. } = &suite.release;
    // Without any of them the pin would match every package.
    let fields = [("o", origin), ("l", label), ("n", codename)];
    let fields: Vec<String> =
        fields.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key}={value}")).collect();
    let pin = archive
        .priority
        .filter(|_| !fields.is_empty())
        .map(|priority| (format!("release {}", fields.join(",")), priority));
    Source {
        mirror: &suite.mirror,
        suite: &suite.locked.suite,
        components: &suite.locked.components,
        keyring: &suite.keyring,
        pin,
    }
}

/// Every name and pin of the recipe must exist; all that do not are reported together.
fn check_wanted(image: &Image, wanted: &[Wanted], index: &Index) -> anyhow::Result<()> {
    let problem = |wanted: &Wanted| {
        let versions = index.versions(&wanted.package);
        if versions.is_empty() {
            let archives: Vec<&str> = image.archives.iter().map(|archive| archive.id.as_str()).collect();
            let remedy = match closest(&wanted.package, index.names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "correct the name, or add the archive that has it".to_owned(),
            };
            let what = format!("unknown package `{}`: not in {}", wanted.package, archives.join(", "));
            return Some(Problem::new(what, image.at(wanted.line), remedy));
        }
        let pin = wanted.pin.as_deref().filter(|pin| !versions.contains(pin))?;
        let what = format!("package `{}` has no version `{pin}`", wanted.package);
        let remedy = format!("available: {}; or write version = \"locked\"", versions.join(", "));
        Some(Problem::new(what, image.at(wanted.line), remedy))
    };
    let problems: Vec<Problem> = wanted.iter().filter_map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems).into()) }
}

/// The nearest of tens of thousands of names by spelling, if it is near enough to be meant.
fn closest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let scored = names.map(|name| (strsim::jaro_winkler(word, name), name));
    let (score, best) = scored.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))?;
    (score >= 0.85).then_some(best)
}
