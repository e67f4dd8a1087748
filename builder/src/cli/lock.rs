//! `pgkiln lock`: the only command that resolves.

use std::path::PathBuf;

use serde::Serialize;

use super::Beside;
use crate::cache::Cache;
use crate::fetch::Event;
use crate::image::{Image, overlay};
use crate::lock::changelog;
use crate::lock::relock::{self, Drift};
use crate::lock::resolve::{self, Resolved};
use crate::lock::stale::{self, Stale};
use crate::lock::{Lock, Recipe, Unlocked};
use crate::problem::Problem;
use crate::progress::{Step, Ui, size};
use crate::strict::suggestion;

/// What to lock, and where the result goes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the image (images/debian-13)
    image: PathBuf,
    /// With --update: only these components or packages may move [default: everything]
    #[arg(value_name = "COMPONENT", requires = "update")]
    components: Vec<String>,
    /// Resolve anew although the lock still satisfies the recipe, and show what changes
    #[arg(long, conflicts_with_all = ["check", "relock"])]
    update: bool,
    /// Only say whether the lock satisfies the recipe; change nothing, use no network
    #[arg(long, conflicts_with = "relock")]
    check: bool,
    /// Resolve anew into the cache and show what would change; the tree is not edited
    #[arg(long)]
    relock: bool,
    #[command(flatten)]
    beside: Beside,
}

/// Of one package; a terminal has few more.
const CHANGELOG_LINES: usize = 20;

/// The result for machines.
#[derive(Serialize)]
struct Outcome<'a> {
    image: &'a str,
    lock: String,
    lock_sha256: String,
    packages: usize,
    bytes: u64,
    written: bool,
    relocked: bool,
    drift: &'a [Drift],
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let recipe = Recipe::load_with(&args.image, &args.beside.into())?;
    if !args.check && !args.relock {
        overlay::check_lock_place(recipe.image())?;
    }
    let file = recipe.image().lock_file();
    let name = recipe.image().name.clone();
    let outcome = |lock: &Lock, place: &PathBuf, written, relocked, drift: &[Drift]| -> anyhow::Result<()> {
        let bytes = lock.packages.iter().map(|package| package.size).sum();
        let (packages, lock_sha256) = (lock.packages.len(), lock.digest().to_string());
        ui.say(format!("{}: {packages} packages, {}", place.display(), size(bytes)));
        let lock = place.display().to_string();
        ui.result(&Outcome { image: &name, lock, lock_sha256, packages, bytes, written, relocked, drift })
    };
    if args.check {
        let locked = recipe.locked()?;
        return outcome(locked.lock(), &file, false, false, &[]);
    }
    let old = Lock::load(&file)?;
    if let Some(old) = old.as_ref().filter(|_| !args.update && !args.relock)
        && stale::reasons(recipe.image(), old).is_empty()
    {
        ui.say("the lock satisfies the recipe; `--update` takes newer packages");
        return outcome(old, &file, false, false, &[]);
    }

    let cache = Cache::open(ui.cache_dir())?;
    let moving = moving(recipe.image(), old.as_ref(), &args.components)?;
    let resolved = resolve_shown(&recipe, old.as_ref(), &moving, &cache, ui)?;
    let mut drift = old.as_ref().map_or(Vec::new(), |old| relock::drift(old, &resolved.lock));
    for added in drift.iter_mut().filter(|drift| drift.old.is_none()) {
        added.pulled_by = resolved.pulled_by(&added.package);
    }
    let new = resolved.lock;
    let told = |drift: &Drift| moving.contains(&drift.package) || recipe.image().is_component(&drift.package);
    if args.update && drift.iter().any(told) {
        let locked = recipe.clone().with(new.clone())?;
        let step = ui.step("changelogs");
        for moved in drift.iter_mut().filter(|drift| told(drift)) {
            let Some(old) = &moved.old else { continue };
            moved.changelog = changelog::since(old, &moved.package, &locked, &cache, &|event| show(&step, &event))?;
        }
        step.done();
    }
    for drift in &drift {
        ui.say(format!("  {drift}"));
        drift.changelog.iter().take(CHANGELOG_LINES).for_each(|line| ui.say(format!("      {line}")));
        if let Some(left) = drift.changelog.len().checked_sub(CHANGELOG_LINES).filter(|left| *left > 0) {
            ui.say(format!("      … {left} lines more with --json"));
        }
    }
    let place = if args.relock { cache.relock_path(&name) } else { file };
    let written = new.write_if_changed(&place)?;
    outcome(&new, &place, written, args.relock, &drift)
}

/// The packages that may move: a component stands for its package.
fn moving(image: &Image, old: Option<&Lock>, names: &[String]) -> anyhow::Result<Vec<String>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let file = image.lock_file().display().to_string();
    let Some(old) = old else {
        let remedy = format!("run `pgkiln lock {}` first", image.arguments());
        return Err(Problem::new("there is no lock yet in which something could move alone", file, remedy).into());
    };
    // A suite that was added takes nothing away from what is to stay: a component may come from it alone.
    let mut reasons = stale::reasons(image, old);
    reasons.retain(|reason| !matches!(reason, Stale::SuiteAdded(..)));
    if !reasons.is_empty() {
        let mut problem = stale::problem(image, &reasons);
        problem.remedy = format!("run `pgkiln lock --update {}` without components first", image.arguments());
        return Err(problem.into());
    }
    let package = |name: &String| {
        let component = image.components.get(name).map(|component| component.package.value.clone());
        component.or_else(|| old.package(name).map(|package| package.name.clone())).ok_or_else(|| {
            let known: Vec<&str> = image.components.keys().map(String::as_str).collect();
            let remedy = suggestion(name, &known, "component");
            Problem::new(format!("`{name}` is neither a component nor a locked package"), &file, remedy).into()
        })
    };
    names.iter().map(package).collect()
}

fn resolve_shown(
    recipe: &Recipe<Unlocked>,
    old: Option<&Lock>,
    moving: &[String],
    cache: &Cache,
    ui: &Ui,
) -> anyhow::Result<Resolved> {
    let _alone = cache.lock(&format!("lock-{}", recipe.image().name), || ui.note("waiting for another pgkiln …"))?;
    let step = ui.step(format!("lock {}", recipe.image().name));
    let resolved = resolve::resolve(recipe.image(), old, moving, cache, &|event| show(&step, &event))?;
    step.done_with(format!("{} packages", resolved.lock.packages.len()));
    Ok(resolved)
}

/// Shows a download in a step.
pub fn show(step: &Step<'_>, event: &Event<'_>) {
    match event {
        Event::Planned { files: 0, .. } => {}
        Event::Planned { bytes, .. } => step.expect_bytes(*bytes),
        Event::Received(bytes) => step.advance(*bytes),
        Event::Finished(name) => step.detail(name),
        Event::Retrying { name, reason } => step.detail(format!("{name}: again, {reason}")),
    }
}
