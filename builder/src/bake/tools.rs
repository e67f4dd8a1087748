//! The tool tree alone: for tests of what its programs do.

use std::path::Path;

use super::tree::{RootTree, root_tree};
use super::work::Work;
use crate::cache::Cache;
use crate::lock::Recipe;
use crate::lock::relock::fetch_or_relock;
use crate::progress::Ui;

/// The tree of the recipe in `tools`: cached, or made now.
pub fn tool_tree(tools: &Path, ui: &Ui) -> anyhow::Result<RootTree> {
    let cache = Cache::open(ui.cache_dir())?;
    let recipe = fetch_or_relock(Recipe::load(tools)?.locked()?, &cache, &|_| ())?.recipe;
    root_tree(&recipe, &cache, &Work::create(&cache)?, false, &ui.step("tools"))
}
