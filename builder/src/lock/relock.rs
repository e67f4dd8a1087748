//! Resolving anew without touching the source tree: the lock goes to the cache, the drift is told.

use std::collections::BTreeMap;
use std::fmt;

use super::{Lock, Locked, Package, Recipe, resolve};
use crate::cache::Cache;
use crate::digest::Sha256;
use crate::fetch::{self, Event, FailureKind};

/// How one package differs between two locks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Drift {
    /// Package name.
    pub package: String,
    /// Version in the old lock; `None`: added.
    pub old: Option<String>,
    /// Version in the new lock; `None`: removed.
    pub new: Option<String>,
    /// Of an added package: what needs it, where that is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pulled_by: Vec<String>,
    /// Of a component that moved: what its changelog says since the old version.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changelog: Vec<String>,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) if old == new => write!(f, "{} {old} (same version, other content)", self.package),
            (Some(old), Some(new)) => write!(f, "{} {old} → {new}", self.package),
            (None, Some(new)) if self.pulled_by.is_empty() => write!(f, "{} added ({new})", self.package),
            (None, Some(new)) => write!(f, "{} added ({new}): {}", self.package, self.pulled_by.join(", ")),
            (Some(old), None) => write!(f, "{} removed ({old})", self.package),
            (None, None) => write!(f, "{}", self.package),
        }
    }
}

/// What differs in packages from `old` to `new`, by name.
pub fn drift(old: &Lock, new: &Lock) -> Vec<Drift> {
    let contents = |lock: &Lock| {
        let content = |package: &Package| (package.name.clone(), (package.version.clone(), package.sha256));
        lock.packages.iter().map(content).collect()
    };
    drift_of(&contents(old), &contents(new))
}

/// Version and content of packages by name.
pub type Contents = BTreeMap<String, (String, Sha256)>;

/// What differs between two sets of packages, by name.
pub fn drift_of(old: &Contents, new: &Contents) -> Vec<Drift> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let content = |of: &Contents, name: &String| of.get(name).map(|(_, sha256)| *sha256);
    let version = |of: &Contents, name: &String| of.get(name).map(|(version, _)| version.clone());
    (names.into_iter().filter(|name| content(old, name) != content(new, name)))
        .map(|name| Drift {
            package: name.clone(),
            old: version(old, name),
            new: version(new, name),
            pulled_by: Vec::new(),
            changelog: Vec::new(),
        })
        .collect()
}

/// A recipe ready to bake, and whether its lock is the tree's.
#[derive(Debug)]
pub struct Relocked {
    /// With all packages in the cache.
    pub recipe: Recipe<Locked>,
    /// Whether it was resolved anew.
    pub relocked: bool,
    /// What changed by that.
    pub drift: Vec<Drift>,
}

/// Resolves anew into the cache and fetches nothing yet.
pub fn relock(recipe: Recipe<Locked>, cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Relocked> {
    let new = resolve::resolve(recipe.image(), Some(recipe.lock()), &[], cache, report)?.lock;
    new.write_if_changed(&cache.relock_path(&recipe.image().name))?;
    replaced(recipe, new)
}

/// Fetches the packages; where the archive no longer has one, takes the newer lock of the cache or resolves anew into it,
/// and fetches those. For the demo and the tests, which must outlive a committed lock; everyone else decides for themselves.
pub fn fetch_or_relock(recipe: Recipe<Locked>, cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Relocked> {
    let fetch_all = |recipe: &Recipe<Locked>| fetch::fetch(&recipe.items(), cache, report);
    match fetch_all(&recipe) {
        Ok(_) => return Ok(Relocked { recipe, relocked: false, drift: Vec::new() }),
        Err(error) if !is_gone(&error) => return Err(error),
        Err(_) => {}
    }
    // An earlier run may have been here: the same bytes again are worth more than the newest ones.
    if let Some(earlier) = earlier(&recipe, cache)
        && fetch_all(&earlier.recipe).is_ok()
    {
        return Ok(earlier);
    }
    let again = relock(recipe, cache, report)?;
    fetch_all(&again.recipe)?;
    Ok(again)
}

/// The lock an earlier run left in the cache, if it is newer than the tree's and still satisfies the recipe.
fn earlier(recipe: &Recipe<Locked>, cache: &Cache) -> Option<Relocked> {
    let lock = Lock::load(&cache.relock_path(&recipe.image().name)).ok()??;
    if lock.source_date_epoch <= recipe.lock().source_date_epoch {
        return None;
    }
    replaced(recipe.clone(), lock).ok()
}

fn replaced(recipe: Recipe<Locked>, new: Lock) -> anyhow::Result<Relocked> {
    let drift = drift(recipe.lock(), &new);
    Ok(Relocked { recipe: recipe.unlock().with(new)?, relocked: true, drift })
}

/// Whether a fetch failed because the archive no longer has a file.
pub fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<fetch::Failure>().is_some_and(|failure| failure.kind == FailureKind::Gone)
}
