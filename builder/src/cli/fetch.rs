//! `pgkiln fetch`: download now, bake later (or without a network).

use std::path::PathBuf;

use serde_json::json;

use crate::cache::Cache;
use crate::fetch;
use crate::lock::Recipe;
use crate::progress::{Ui, size};

/// Which images.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories of the images (images/debian-13)
    #[arg(required = true)]
    images: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let recipes = args.images.iter().map(|dir| Recipe::load(dir)?.locked()).collect::<anyhow::Result<Vec<_>>>()?;
    let items: Vec<fetch::Item> = recipes.iter().flat_map(Recipe::items).collect();
    let cache = Cache::open(ui.cache_dir())?;
    let step = ui.step("fetch");
    let fetched = fetch::fetch(&items, &cache, &|event| super::lock::show(&step, &event))?;
    step.done_with(format!("{} of {} packages, {}", fetched.files, items.len(), size(fetched.bytes)));
    ui.result(&json!({ "packages": items.len(), "fetched": fetched.files, "bytes": fetched.bytes }))
}
