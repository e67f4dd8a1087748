//! The builder's table of contents: `image.toml -> Image -> Lock -> fetch -> unpack -> configure -> assemble -> outputs +
//! manifest`. Every stage is a function of its own; nothing is decided here.
//!
//! Packages and finished root trees are cached; the rest is made in a scratch directory and moved to its place when it is
//! complete, so an interrupted bake leaves nothing half-made.

use std::time::Instant;

use crate::assemble::{self, agent, layer};
use crate::cache::Cache;
use crate::configure::seal;
use crate::digest::Sha256;
use crate::lint;
use crate::lock::Recipe;
use crate::manifest::{self, Manifest};
use crate::progress::Ui;

pub mod extensions;
mod options;
mod outputs;
mod tree;
mod work;

pub use options::{Baked, Options};
pub use tree::RootTree;

/// Bakes an image.
pub fn bake(options: &Options, ui: &Ui) -> anyhow::Result<Baked> {
    let started = Instant::now();
    let steps = ui.steps(7);
    let recipes =
        [Recipe::load_with(&options.image, &options.overrides)?.locked()?, Recipe::load(&options.tools)?.locked()?];
    recipes.iter().try_for_each(|recipe| recipe.image().check_architecture())?;
    let cache = Cache::open(ui.cache_dir())?;
    let work = work::Work::create(&cache)?;

    let step = steps.start("fetch");
    let ([recipe, tools], relocked) = outputs::fetch(recipes, options, &cache, &step)?;
    let (image, lock) = (recipe.image(), recipe.lock());
    step.done();

    let step = steps.start("tools");
    let tools_tree = tree::root_tree(&tools, &cache, &work, false, &step)?;
    step.done_with(tree::remark(&tools_tree));

    let step = steps.start("unpack and configure");
    let base = tree::root_tree(&recipe, &cache, &work, options.fresh, &step)?;
    step.done_with(tree::remark(&base));

    let step = steps.start("agent");
    let agent = agent::agent(options.agent.as_deref(), &options.image, &cache)?;
    let agent_sha256 = Sha256::of_file(&agent)?.0;
    let copied = layer::Files::collect(&agent::profiles(&options.image), &image.trees()?)?;
    let files_sha256 = copied.digest()?;
    let version = manifest::version(lock, &[tools.lock().digest(), agent_sha256, files_sha256])?;
    let image_json = manifest::image_json(image, lock, &version)?;
    let sources = layer::Sources { agent: &agent, files: &copied, image_json: &image_json };
    let layer = work.dir("layer")?;
    layer::make(&sources, &base.root, &layer, lock.source_date_epoch)?;
    step.done();

    let step = steps.start("lint");
    let files = seal::merge(&base.files, seal::list(&layer, &|_| None)?);
    lint::check(&lint::View::new(&[&layer, &base.root], &files))?;
    step.done();

    let step = steps.start("assemble");
    let made = work.dir("out")?;
    let name = format!("{}.root.squashfs", image.full_name());
    let root = assemble::squashfs(&[&layer, &base.root], &tools_tree.root, &made, &name, lock.source_date_epoch)?;
    step.done();

    let step = steps.start("outputs");
    let root = outputs::describe(&root, "squashfs")?;
    let manifest = Manifest {
        schema: 1,
        image: &image.name,
        variant: image.variant.as_deref(),
        version: &version,
        source_date_epoch: lock.source_date_epoch,
        lock_sha256: lock.digest(),
        tools_lock_sha256: tools.lock().digest(),
        agent_sha256,
        files_sha256,
        root_hash: None,
        packages: manifest::packages(lock),
        files: &files,
        outputs: vec![root],
    };
    let out = outputs::publish(&made, &manifest, &options.out)?;
    step.done();
    Ok(Baked::new(&out, &manifest, image, relocked, base, started))
}
