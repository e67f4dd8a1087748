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

/// A new lock, and the indexes it was taken from.
#[derive(Debug)]
pub struct Resolved {
    /// The lock.
    pub lock: Lock,
    index: Index,
}

impl Resolved {
    /// Which packages of the lock need `name`, each with the relation that says so.
    pub fn pulled_by(&self, name: &str) -> Vec<String> {
        let entry = |package: &Package| self.index.find(&package.name, &package.version, &package.arch);
        let provides = self.lock.package(name).and_then(entry).map_or("", |(_, entry)| &entry.provides);
        let mut names: Vec<&str> = relations(provides).flatten().map(first_word).collect();
        names.push(name);
        let mut by = Vec::new();
        for package in &self.lock.packages {
            let depends = entry(package).map_or("", |(_, entry)| &entry.depends);
            let found = relations(depends).find(|group| group.iter().any(|one| names.contains(&first_word(one))));
            by.extend(found.map(|group| format!("{} {} needs {}", package.name, package.version, group.join(" | "))));
        }
        by
    }
}

/// The alternatives of each relation in a field.
fn relations(field: &str) -> impl Iterator<Item = Vec<&str>> {
    field.split(',').map(|group| group.split('|').map(str::trim).filter(|one| !one.is_empty()).collect())
}

/// The package of a relation like `libc6 (>= 2.38)` or `python3:any`.
fn first_word(relation: &str) -> &str {
    relation.split([' ', '(', ':']).next().unwrap_or_default()
}

/// Resolves the recipe against its archives as they are now. No archive may be older than `old`, the lock so far, saw it.
/// Where `moving` names packages, only these may differ from `old`, and what comes new with them.
pub fn resolve(
    image: &Image,
    old: Option<&Lock>,
    moving: &[String],
    cache: &Cache,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<Resolved> {
    let work = cache.work_dir("lock.")?;
    let Archives { index, suites, seen } = Archives::verify(image, old, cache, work.path(), report)?;
    let wanted = image.wanted();
    check_wanted(image, &wanted, &index)?;

    let sources: Vec<Source<'_>> = suites.iter().map(|suite| source(image, suite)).collect();
    let held = |package: &&Package| !moving.is_empty() && !moving.contains(&package.name);
    let held: Vec<&Package> = old.map_or(&[][..], |lock| &lock.packages).iter().filter(held).collect();
    let versions: Vec<(&str, &str)> = held.iter().map(|package| (&*package.name, &*package.version)).collect();
    let solver = Solver::new(&work.path().join("apt"), &image.architecture, &sources, &versions)?;
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
    check_held(image, &held, &packages, moving)?;
    seen.remember()?;
    // What the chain can be checked with again, as long as the cache lives.
    for suite in &suites {
        cache.put(&fs_err::read(suite.mirror.join("dists").join(&suite.locked.suite).join("InRelease"))?)?;
    }
    let newest = suites.iter().map(|suite| suite.locked.date.as_second()).max().unwrap_or(0);
    let mut spellings: Vec<String> = wanted.iter().map(Wanted::spelling).collect();
    spellings.sort();
    let lock = Lock {
        schema: SCHEMA,
        image: image.name.clone(),
        architecture: image.architecture.clone(),
        recipe_sha256: image.resolution_digest(),
        wanted: spellings,
        source_date_epoch: u64::try_from(newest).unwrap_or(0),
        suites: suites.into_iter().map(|suite| suite.locked).collect(),
        packages,
    };
    Ok(Resolved { lock, index })
}

/// What was to stay must be the same to the byte.
fn check_held(image: &Image, held: &[&Package], new: &[Package], moving: &[String]) -> Result<(), Problems> {
    let moved = held.iter().filter_map(|old| {
        let new = new.iter().find(|new| new.name == old.name)?;
        let what = match (new.version == old.version, new.sha256 == old.sha256) {
            (true, true) => return None,
            (true, false) => format!("{} {} was released again with other content", old.name, old.version),
            (false, _) => format!("{} {} cannot stay: the archive has {}", old.name, old.version, new.version),
        };
        let remedy =
            format!("name it too: `pgkiln lock --update {} {} {}`", image.arguments(), moving.join(" "), old.name);
        Some(Problem::new(what, image.lock_file().display().to_string(), remedy))
    });
    let problems: Vec<Problem> = moved.collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
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
