//! `image.toml`: the recipe of one image, as data.
//!
//! [`Image::parse`] takes text and reports every problem at once with its line; [`Image::load`] does the reading. Nothing
//! here names a distribution, except [`distribution`], the one table of official archives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::digest::Sha256;
use crate::problem::{Problem, Problems};

pub mod distribution;
mod document;
pub mod overlay;
mod parse;
mod parse_archive;
mod variant;

pub use variant::Kernels;

pub use distribution::Distribution;
pub use overlay::{Overlaid, Overrides, Place};

/// A value and the line of `image.toml` it stands in, for messages that come later (an unknown package, a wrong signature).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Line number, from 1.
    pub line: usize,
}

/// A checked recipe.
#[derive(Debug, Clone)]
pub struct Image {
    /// The `image.toml` it came from, as messages name it.
    pub file: PathBuf,
    /// Name of the image; equals its directory's.
    pub name: String,
    /// Row of the table of distributions.
    pub distribution: &'static Distribution,
    /// Main suite (`trixie`).
    pub suite: String,
    /// Debian architecture (`amd64`).
    pub architecture: String,
    /// Which machines it is for (`cloud`, `metal`); `None` for a tree that never boots.
    pub variant: Option<String>,
    /// Where packages come from, in the order of the file: the first one wins among equal versions.
    pub archives: Vec<Archive>,
    /// What the agent runs, by the field's name for it (`postgresql`, `etcd`, …).
    pub components: BTreeMap<String, Component>,
    /// Further packages.
    pub packages: Vec<Located<String>>,
    /// Extensions the server must be able to load, each with its package.
    pub extensions: BTreeMap<String, Located<String>>,
    /// Package of the kernel, if the image boots.
    pub kernel: Option<Located<String>>,
    /// Packages of kernels by variant, where the recipe has several.
    pub kernels: Kernels,
    /// The same for other architectures that the recipe is for.
    pub other_architectures: BTreeMap<String, Kernels>,
    /// Paths not unpacked, in dpkg's `path-exclude` patterns.
    pub path_excludes: Vec<String>,
    /// Exceptions from [`Image::path_excludes`].
    pub path_includes: Vec<String>,
    /// Which outputs are made when the command line names none.
    pub outputs: Vec<String>,
    /// Directories of files copied as they are, as the recipe names them; `None`: `tree`, which need not exist.
    pub trees: Option<Vec<Located<String>>>,
    /// What the command line says beside it.
    pub overrides: Overrides,
}

/// One archive: suites that share a base URL and the keys that sign them.
#[derive(Debug, Clone)]
pub struct Archive {
    /// Name within the recipe and the lock.
    pub id: String,
    /// Line of its table.
    pub line: usize,
    /// Where it is.
    pub url: Url,
    /// Suites used.
    pub suites: Vec<String>,
    /// Components used (`main`).
    pub components: Vec<String>,
    /// Where the signing keys are.
    pub key: Located<Key>,
    /// Primary keys, one of which must have signed; full fingerprints.
    pub fingerprints: Vec<String>,
    /// `Origin` its suites must state: tells archives apart that the same key signs.
    pub origin: Option<String>,
    /// `Label` its suites must state.
    pub label: Option<String>,
    /// apt pin priority of all its packages, if not the default of 500.
    pub priority: Option<i64>,
    /// What an overlay changed.
    pub overlaid: Option<Overlaid>,
}

/// Where the keys of an archive are; armoured or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A keyring on this host, of a keyring package or beside the recipe; it may have more keys than are pinned.
    File(PathBuf),
    /// An https address; what it serves must be the pinned keys and nothing else.
    Url(String),
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Where an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Url {
    /// The mirror the host itself uses for this archive, else the official server.
    Host,
    /// A base URL, the part before `/dists` and `/pool`.
    Base(String),
    /// The distribution's snapshot service at this time (`20261122T000000Z`).
    Snapshot(String),
}

/// Something the agent configures and runs.
#[derive(Debug, Clone)]
pub struct Component {
    /// Package it is in.
    pub package: Located<String>,
    /// Exact version, or `None` for whatever the lock says.
    pub pin: Option<Located<String>>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Programs and directories the agent needs, by name.
    pub paths: BTreeMap<String, String>,
}

/// A package the recipe asks for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Package name.
    pub package: String,
    /// Exact version, if pinned.
    pub pin: Option<String>,
    /// Line of `image.toml` that asks for it.
    pub line: usize,
}

impl Wanted {
    /// `name` or `name=version`, as apt and the lock write it.
    pub fn spelling(&self) -> String {
        match &self.pin {
            Some(pin) => format!("{}={pin}", self.package),
            None => self.package.clone(),
        }
    }
}

impl Image {
    /// Checks the text of an `image.toml`; `file` is what messages call it. All problems are reported together.
    pub fn parse(text: &str, file: &Path) -> Result<Self, Problems> {
        parse::parse(text, file)
    }

    /// Reads and checks `image.toml` in the directory of an image (or the file itself).
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let file = if path.is_dir() { path.join("image.toml") } else { path.to_owned() };
        let text = fs_err::read_to_string(&file).context("reading image.toml")?;
        Ok(Self::parse(&text, &file)?)
    }

    /// The image's directory: recipe, lock, perhaps a `tree/` of its own.
    pub fn dir(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    /// Where its lock is.
    pub fn lock_file(&self) -> PathBuf {
        let beside = || {
            let parts = ["image"].into_iter().chain(self.chosen()).chain(["lock"]);
            self.dir().join(parts.collect::<Vec<_>>().join("."))
        };
        self.overrides.lock.clone().unwrap_or_else(beside)
    }

    /// Directories of files copied as they are, one over the other: where two have a file, the later one's counts. What the
    /// recipe names must be there.
    pub fn trees(&self) -> Result<Vec<PathBuf>, Problems> {
        let Some(named) = &self.trees else {
            return Ok(Vec::from_iter(Some(self.dir().join("tree")).filter(|tree| tree.is_dir())));
        };
        let missing = named.iter().filter(|name| !self.dir().join(&name.value).is_dir());
        let problems: Vec<Problem> = missing
            .map(|name| {
                let what = format!("there is no directory `{}` beside the recipe", name.value);
                Problem::new(what, self.at(name.line), "correct the path: it is relative to the image's directory")
            })
            .collect();
        if problems.is_empty() {
            Ok(named.iter().map(|name| self.dir().join(&name.value)).collect())
        } else {
            Err(Problems(problems))
        }
    }

    /// `images/debian-13/image.toml:12`.
    pub fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.file.display())
    }

    /// Where it says which key an archive has, for messages.
    pub fn key_at(&self, archive: &Archive) -> String {
        let overlay = archive.overlaid.as_ref().and_then(|overlaid| overlaid.key_at.clone());
        overlay.unwrap_or_else(|| self.at(archive.key.line))
    }

    /// The archive called `id`.
    pub fn archive(&self, id: &str) -> Option<&Archive> {
        self.archives.iter().find(|archive| archive.id == id)
    }

    /// Whether a package is one of the components.
    pub fn is_component(&self, package: &str) -> bool {
        self.components.values().any(|component| component.package.value == package)
    }

    /// Every package the recipe names, sorted, each once (a pin wins).
    pub fn wanted(&self) -> Vec<Wanted> {
        let plain = |name: &Located<String>| Wanted { package: name.value.clone(), pin: None, line: name.line };
        let components = self.components.values().map(|component| Wanted {
            package: component.package.value.clone(),
            pin: component.pin.as_ref().map(|pin| pin.value.clone()),
            line: component.pin.as_ref().map_or(component.package.line, |pin| pin.line),
        });
        let mut all: Vec<Wanted> =
            (components.chain(self.kernel.iter().map(plain)).chain(self.extensions.values().map(plain)))
                .chain(self.packages.iter().map(plain))
                .collect();
        all.sort_by(|a, b| (&a.package, a.pin.is_none(), a.line).cmp(&(&b.package, b.pin.is_none(), b.line)));
        all.dedup_by(|later, first| later.package == first.package);
        all
    }

    /// Digest of everything that decides which packages are installed; comments, outputs and excluded paths do not.
    pub fn resolution_digest(&self) -> Sha256 {
        #[derive(Serialize)]
        struct Resolution<'a> {
            distribution: &'a str,
            suite: &'a str,
            architecture: &'a str,
            archives: Vec<Source<'a>>,
            packages: Vec<String>,
        }
        #[derive(Serialize)]
        struct Source<'a> {
            id: &'a str,
            suites: &'a [String],
            components: &'a [String],
            fingerprints: &'a [String],
            priority: Option<i64>,
            snapshot: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            origin: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            label: Option<&'a str>,
        }
        let archives = self.archives.iter().map(|archive| Source {
            id: &archive.id,
            suites: &archive.suites,
            components: &archive.components,
            fingerprints: &archive.fingerprints,
            priority: archive.priority,
            snapshot: archive.url.snapshot(),
            origin: archive.origin.as_deref(),
            label: archive.label.as_deref(),
        });
        let resolution = Resolution {
            distribution: self.distribution.id,
            suite: &self.suite,
            architecture: &self.architecture,
            archives: archives.collect(),
            packages: self.wanted().iter().map(Wanted::spelling).collect(),
        };
        Sha256::of(serde_json::to_string(&resolution).unwrap_or_default())
    }
}

impl Url {
    /// The time of a snapshot: it decides what is in the archive, while a mirror's address does not.
    pub fn snapshot(&self) -> Option<&str> {
        match self {
            Self::Snapshot(time) => Some(time),
            Self::Host | Self::Base(_) => None,
        }
    }
}
