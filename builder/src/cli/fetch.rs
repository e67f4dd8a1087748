//! `pgkiln fetch`: download now, bake later (or without a network, or when the archive has moved on).

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Beside;
use crate::cache::Cache;
use crate::fetch::{self, Event};
use crate::image::Overrides;
use crate::lock::{Locked, Recipe, chain, moved};
use crate::problem::Problem;
use crate::progress::{Step, Ui, size};
use crate::store::Store;

/// Which images.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories of the images (images/debian-13)
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Also fill this store, for `pgkiln bake --from DIR`: packages of the images and of their tool tree, signed indexes, keys
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// With --to: recipe of the tool tree [default: tools, beside each image]
    #[arg(long, value_name = "DIR", requires = "to")]
    tools: Option<PathBuf>,
    #[command(flatten)]
    beside: Beside,
}

/// The result for machines.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    packages: usize,
    fetched: usize,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<Stored>,
}

/// What happened to a store.
#[derive(Debug, Default, Serialize)]
struct Stored {
    dir: PathBuf,
    added: usize,
    chain_checked: Vec<String>,
    chain_lost: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let mut dirs = args.images.clone();
    if args.to.is_some() {
        let tools = |image: &PathBuf| args.tools.clone().unwrap_or_else(|| image.with_file_name("tools"));
        dirs.extend(args.images.iter().map(tools));
        let mut seen = Vec::new();
        dirs.retain(|dir| {
            !seen.contains(dir) && {
                seen.push(dir.clone());
                true
            }
        });
    }
    let overrides: Overrides = args.beside.into();
    if overrides != Overrides::default() && args.images.len() > 1 {
        let what = "`--overlay`, `--lock`, `--variant` and `--arch` are about one image, several are named";
        return Err(Problem::new(what, "", "run the command once per image").into());
    }
    let load = |dir: &PathBuf| {
        // The tool tree has a lock and archives of its own.
        let beside = if args.images.contains(dir) { &overrides } else { &Overrides::default() };
        Recipe::load_with(dir, beside)?.locked()
    };
    let recipes = dirs.iter().map(load).collect::<anyhow::Result<Vec<_>>>()?;
    let cache = Cache::open(ui.cache_dir())?;
    let mut outcome = Outcome::default();
    let step = ui.step("fetch");
    for recipe in &recipes {
        let items = recipe.items();
        let report = |event: Event<'_>| super::lock::show(&step, &event);
        let fetched =
            fetch::fetch(&items, &cache, &report).map_err(|error| moved::explain(error, recipe, &cache, &report))?;
        outcome.packages += items.len();
        outcome.fetched += fetched.files;
        outcome.bytes += fetched.bytes;
    }
    step.done_with(format!("{} of {} packages, {}", outcome.fetched, outcome.packages, size(outcome.bytes)));
    if let Some(dir) = &args.to {
        let step = ui.step("store");
        let stored = fill(dir, &recipes, &cache, &step)?;
        step.done_with(format!("{} files added, {} suites checked", stored.added, stored.chain_checked.len()));
        for suite in &stored.chain_lost {
            ui.warn(format!(
                "the archive no longer serves the index of {suite} that was locked: its packages are in the store, their \
                 chain of trust cannot be shown again and rests on the lock"
            ));
        }
        ui.say(format!("{}: bake from it with `pgkiln bake IMAGE --from {}`", dir.display(), dir.display()));
        outcome.store = Some(stored);
    }
    ui.result(&outcome)
}

fn fill(dir: &Path, recipes: &[Recipe<Locked>], cache: &Cache, step: &Step<'_>) -> anyhow::Result<Stored> {
    let store = Store::create(dir)?;
    let mut stored = Stored { dir: dir.to_owned(), ..Stored::default() };
    for recipe in recipes {
        for package in &recipe.lock().packages {
            step.detail(&package.name);
            stored.added += usize::from(store.take(&package.sha256, package.size, cache)?);
        }
        let chain = chain::keep(recipe, cache, &store, &|event| super::lock::show(step, &event))?;
        stored.chain_checked.extend(chain.checked);
        stored.chain_lost.extend(chain.lost);
        recipe.lock().write_if_changed(&store.lock_path(&recipe.image().name))?;
    }
    Ok(stored)
}
