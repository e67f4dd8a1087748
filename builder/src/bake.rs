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
use crate::disk;
use crate::lint;
use crate::manifest::{self, Manifest};
use crate::progress::Ui;

pub mod extensions;
mod options;
mod outputs;
mod space;
mod tools;
mod tree;
mod work;

pub use options::{Baked, Options};
pub use tools::tool_tree;
pub use tree::RootTree;

/// Bakes an image.
pub fn bake(options: &Options, ui: &Ui) -> anyhow::Result<Baked> {
    let (started, steps) = (Instant::now(), ui.steps(8));
    let recipes = options.recipes()?;
    let formats = options.formats(recipes[0].image())?;
    let cache = Cache::open(ui.cache_dir())?;
    let work = work::Work::create(&cache)?;
    space::check(&recipes, &formats, &cache, &options.out)?;

    let step = steps.start("fetch");
    let ([recipe, tools], relocked) = outputs::fetch(recipes, options, &cache, &step)?;
    let (image, lock, epoch) = (recipe.image(), recipe.lock(), recipe.lock().source_date_epoch);
    step.done();

    let step = steps.start("tools");
    let tools_tree = tree::root_tree(&tools, &cache, &work, false, &step)?;
    step.done_with(tree::remark(&tools_tree));

    let step = steps.start("unpack and configure");
    let base = tree::root_tree(&recipe, &cache, &work, options.fresh, &step)?;
    step.done_with(tree::remark(&base));

    let step = steps.start("agent");
    let programs = agent::Programs::find(options.agent.as_deref(), &options.image, &cache)?;
    let copied = layer::Files::collect(&agent::profiles(&options.image), &image.trees()?)?;
    let files_sha256 = copied.digest()?;
    let nameless = Sha256::of(manifest::image_json(image, lock, "")?);
    let made_by = vec![tree::key(&recipe), tree::key(&tools), assemble::code(), disk::code(image)?];
    let made_of = [programs.digests(), vec![files_sha256, nameless], made_by].concat();
    let version = manifest::version(lock, &made_of)?;
    let image_json = manifest::image_json(image, lock, &version)?;
    let sources = layer::Sources { agent: &programs.agent, files: &copied, image_json: &image_json };
    let layer = work.dir("layer")?;
    layer::make(&sources, &base.root, &layer, epoch)?;
    step.done();

    let step = steps.start("lint");
    let files = seal::merge(&base.files, seal::list(&layer, &|_| None)?);
    lint::check(&lint::View::new(&[&layer, &base.root], &files))?;
    step.done();

    let step = steps.start("assemble");
    let made = work.dir("out")?;
    let root = assemble::squashfs(&[&layer, &base.root], &tools_tree.root, &made, &image.full_name(), epoch)?;
    step.done();

    let step = steps.start("disk");
    let (tree, kit, keys) = (base.root.as_path(), tools_tree.root.as_path(), options.secure_boot.as_ref());
    let dir = &work.dir("disk")?;
    let (cache, fresh, version, root) = (&cache, options.fresh, version.as_str(), root.as_path());
    let parts = disk::Inputs { image, version, root, tree, tools: kit, keys, dir, cache, fresh };
    let disk = disk::make_for(&formats, &parts, epoch, &programs)?;
    step.done();

    let step = steps.start("outputs");
    let parts = parts.outputs(epoch, disk.as_ref(), &made);
    let done = crate::outputs::make(&formats, &parts)?;
    let manifest = Manifest {
        schema: 1,
        image: &image.name,
        variant: image.variant.as_deref(),
        version,
        about: manifest::About::new(image, &image_json, &base.root)?,
        source_date_epoch: epoch,
        lock_sha256: lock.digest(),
        tools_lock_sha256: tools.lock().digest(),
        agent_sha256: programs.agent_sha256,
        files_sha256,
        initrd_sha256: disk.as_ref().map(|disk| disk.program_sha256),
        root_hash: disk.as_ref().map(|disk| disk.root_hash.clone()),
        partitions: done.partitions,
        packages: manifest::packages(lock),
        files: &files,
        outputs: done.files,
    };
    let out = outputs::publish(&made, &manifest, &options.out)?;
    step.done();
    Ok(Baked::new(&out, &manifest, image, relocked, base, started))
}
