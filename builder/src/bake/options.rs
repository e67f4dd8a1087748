//! What goes into a bake and what comes out of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::tree::RootTree;
use crate::digest::Sha256;
use crate::disk::secure_boot::Keys;
use crate::image::{Image, Overrides};
use crate::lock::{Locked, Recipe};
use crate::manifest::Manifest;
use crate::outputs::Format;

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
    /// What to make; `None`: what the recipe says.
    pub formats: Option<Vec<Format>>,
    /// Who signs for Secure Boot; nobody: the firmware must not ask for a signature.
    pub secure_boot: Option<Keys>,
    /// A store to take all packages from, without any network.
    pub from: Option<PathBuf>,
    /// Another lock of the image, other places for its archives.
    pub overrides: Overrides,
}

impl Options {
    /// Bakes the recipe in `image` into `out`, with the tools beside it, from the network, as the recipe says.
    pub fn new(image: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        let image = image.into();
        Self {
            tools: image.with_file_name("tools"),
            image,
            out: out.into(),
            agent: None,
            fresh: false,
            relock: false,
            formats: None,
            secure_boot: None,
            from: None,
            overrides: Overrides::default(),
        }
    }

    /// The image's recipe and the tools', each with its lock; refused if this machine cannot run what they install.
    pub(super) fn recipes(&self) -> anyhow::Result<[Recipe<Locked>; 2]> {
        let image = Recipe::load_with(&self.image, &self.overrides)?.locked()?;
        let recipes = [image, Recipe::load(&self.tools)?.locked()?];
        recipes.iter().try_for_each(|recipe| recipe.image().check_architecture())?;
        Ok(recipes)
    }

    /// The formats to make.
    pub(super) fn formats(&self, image: &Image) -> anyhow::Result<Vec<Format>> {
        Ok(self.formats.clone().map_or_else(|| Format::of_recipe(&image.outputs), Ok)?)
    }
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
    /// Every output's path.
    pub outputs: Vec<PathBuf>,
    /// The manifest.
    pub manifest: PathBuf,
    /// Version of the image.
    pub version: String,
    /// Whether the committed lock could not be used.
    pub relocked: bool,
    /// Archives that were believed by other keys than the recipe's.
    pub other_keys: Vec<String>,
    /// The root tree it was made from, still writable: for tests and benchmarks, and only to be read.
    pub tree: PathBuf,
    /// Whether that came from the cache.
    pub tree_cached: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl Baked {
    pub(super) fn new(
        out: &Path,
        manifest: &Manifest<'_>,
        image: &Image,
        relocked: bool,
        tree: RootTree,
        started: Instant,
    ) -> Self {
        let root = &manifest.outputs[0];
        Self {
            root: out.join(&root.name),
            root_sha256: root.sha256,
            root_bytes: root.bytes,
            outputs: manifest.outputs.iter().map(|output| out.join(&output.name)).collect(),
            manifest: out.join("manifest.json"),
            version: manifest.version.to_owned(),
            relocked,
            other_keys: image.other_keys().into_iter().map(str::to_owned).collect(),
            tree_cached: tree.cached,
            tree: tree.root,
            elapsed: started.elapsed(),
        }
    }
}
