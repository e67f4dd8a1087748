//! The builder's table of contents: `image.toml -> Image -> Lock -> fetch -> unpack -> configure -> assemble -> outputs +
//! manifest`. Every stage is a function of its own; nothing is decided here.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::assemble::{self, agent, layer};
use crate::cache::Cache;
use crate::configure::seal;
use crate::digest::Sha256;
use crate::lint;
use crate::lock::Recipe;
use crate::manifest::{self, Manifest};
use crate::progress::Ui;

pub mod outputs;
pub mod tree;
pub mod work;

/// What to bake and where to put it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the image.
    pub image: PathBuf,
    /// Directory of the tool tree's recipe.
    pub tools: PathBuf,
    /// Where the outputs go.
    pub out: PathBuf,
    /// A ready agent instead of building one.
    pub agent: Option<PathBuf>,
    /// Make the root trees again even if they are cached.
    pub fresh: bool,
    /// Where the archive lost a locked package, resolve anew into the cache and say so.
    pub relock: bool,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Baked {
    /// The read-only root image.
    pub root: PathBuf,
    /// Its digest.
    pub root_sha256: Sha256,
    /// Size of the root image in bytes.
    pub root_bytes: u64,
    /// The manifest.
    pub manifest: PathBuf,
    /// Version of the image.
    pub version: String,
    /// Whether the committed lock could not be used.
    pub relocked: bool,
    /// Whether the root tree came from the cache.
    pub tree_cached: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// Bakes an image.
pub fn bake(options: &Options, ui: &Ui) -> anyhow::Result<Baked> {
    let started = Instant::now();
    let steps = ui.steps(7);
    let recipe = Recipe::load(&options.image)?.locked()?;
    let tools = Recipe::load(&options.tools)?.locked()?;
    let cache = Cache::open(ui.cache_dir())?;
    let work = work::Work::create(&cache)?;

    let step = steps.start("fetch");
    let [recipe, tools] = outputs::fetch([recipe, tools], options.relock, &cache, &step)?;
    let relocked = recipe.relocked || tools.relocked;
    let (recipe, tools) = (recipe.recipe, tools.recipe);
    step.done();

    let step = steps.start("tools");
    let tools_tree = tree::root_tree(&tools, &cache, &work, false, &step)?;
    step.done_with(tree::remark(&tools_tree));

    let step = steps.start("unpack and configure");
    let base = tree::root_tree(&recipe, &cache, &work, options.fresh, &step)?;
    step.done_with(tree::remark(&base));

    let step = steps.start("agent");
    let agent = agent::agent(options.agent.as_deref(), &options.image, &cache)?;
    let (agent_sha256, _) = Sha256::of_file(&agent)?;
    step.done();

    let (image, lock) = (recipe.image(), recipe.lock());
    let epoch = lock.source_date_epoch;
    let version = manifest::version(lock, tools.lock(), Some(&agent_sha256))?;
    let upper = outputs::scratch(&work, "layer")?;
    let image_json = manifest::image_json(image, lock, &version)?;
    let profiles = agent::profiles(&options.image);
    let sources = layer::Sources { agent: &agent, profiles: &profiles, tree: &image.tree(), image_json: &image_json };
    layer::make(&sources, &base.root, &upper, epoch)?;
    let files = seal::merge(&base.files, seal::list(&upper, &|_| None)?);

    let step = steps.start("lint");
    lint::check(&lint::View::new(&[&upper, &base.root], &files))?;
    step.done();

    let step = steps.start("assemble");
    let out = outputs::scratch(&work, "out")?;
    let layers: [&Path; 2] = [&upper, &base.root];
    let root = assemble::squashfs(&layers, &tools_tree.root, &out, &format!("{}.root.squashfs", image.name), epoch)?;
    step.done();

    let step = steps.start("outputs");
    let root = outputs::describe(&root, "squashfs")?;
    let manifest = Manifest {
        schema: 1,
        image: &image.name,
        variant: image.variant.as_deref(),
        version: &version,
        source_date_epoch: epoch,
        lock_sha256: lock.digest(),
        tools_lock_sha256: tools.lock().digest(),
        agent_sha256: Some(agent_sha256),
        root_hash: None,
        packages: manifest::packages(lock),
        files: &files,
        outputs: vec![root.clone()],
    };
    let placed = outputs::publish(&out, &manifest, &options.out)?;
    step.done();
    Ok(Baked {
        root: placed.join(&root.name),
        root_sha256: root.sha256,
        root_bytes: root.bytes,
        manifest: placed.join("manifest.json"),
        version,
        relocked,
        tree_cached: base.cached,
        elapsed: started.elapsed(),
    })
}
