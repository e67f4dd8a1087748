//! `image.lock`: exactly which packages an image consists of, reviewed and committed like `Cargo.lock`.
//!
//! [`resolve`] is the only thing that resolves; everything after it takes a [`Recipe<Locked>`], which exists only if the
//! lock satisfies the recipe ([`stale`] says why it does not).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use serde::Deserialize;

use crate::apt;
use crate::digest::Sha256;
use crate::fetch::Item;
use crate::image::{Image, Overrides};
use crate::problem::Problem;
use crate::unpack::deb::Identity;

pub mod chain;
pub mod changelog;
pub mod keyring_package;
mod keys;
pub mod moved;
pub mod relock;
mod render;
pub mod resolve;
mod seen;
pub mod stale;
mod verify;

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// The content of an `image.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of the format.
    pub schema: u32,
    /// The image it belongs to.
    pub image: String,
    /// Debian architecture.
    pub architecture: String,
    /// Digest of what the recipe says about packages and archives.
    pub recipe_sha256: Sha256,
    /// What the recipe asked for (`name` or `name=version`), sorted; tells what changed since.
    pub wanted: Vec<String>,
    /// Time of the newest suite, in seconds: every time stamp in the image is at most this.
    pub source_date_epoch: u64,
    /// The signed suites the packages were resolved from, in the order of the recipe.
    #[serde(rename = "suite")]
    pub suites: Vec<Suite>,
    /// The packages, sorted by name.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

/// One suite as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Archive of the recipe.
    pub archive: String,
    /// Suite's name.
    pub suite: String,
    /// Components used.
    pub components: Vec<String>,
    /// Digest of the `InRelease` file.
    pub inrelease_sha256: Sha256,
    /// Primary key that signed it, full fingerprint.
    pub signer: String,
    /// When it was made.
    pub date: Timestamp,
    /// Until when it was valid.
    pub valid_until: Option<Timestamp>,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version with epoch.
    pub version: String,
    /// `amd64`, `all`, …
    pub arch: String,
    /// Archive of the recipe it comes from.
    pub archive: String,
    /// Path below the archive's base URL: a lock does not depend on a mirror.
    pub path: String,
    /// Size of the `.deb`.
    pub size: u64,
    /// Digest of the `.deb`.
    pub sha256: Sha256,
}

impl Package {
    /// What the package must say about itself.
    pub fn identity(&self) -> Identity {
        Identity { name: self.name.clone(), version: self.version.clone(), arch: self.arch.clone() }
    }
}

impl Lock {
    /// Reads the text of a lock; `file` is what messages call it.
    pub fn parse(text: &str, file: &Path) -> anyhow::Result<Self> {
        let lock: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Problem::new(
                format!("not a lock: {}", error.message()),
                format!("{}:{line}", file.display()),
                "the file is generated; make it again with `pgkiln lock --update`",
            )
        })?;
        if lock.schema != SCHEMA {
            let what = format!("the lock has format {}, this pgkiln reads {SCHEMA}", lock.schema);
            return Err(Problem::new(what, file.display().to_string(), "run `pgkiln lock --update`").into());
        }
        Ok(lock)
    }

    /// Reads a lock; `None` if there is none.
    pub fn load(file: &Path) -> anyhow::Result<Option<Self>> {
        match fs_err::read_to_string(file) {
            Ok(text) => Self::parse(&text, file).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("reading image.lock"),
        }
    }

    /// The text of the lock: the same for the same content, one block per package.
    pub fn render(&self) -> String {
        render::render(self)
    }

    /// Digest of the text; what a manifest quotes.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.render())
    }

    /// Writes the lock if it differs from what is there; true if it was written.
    pub fn write_if_changed(&self, file: &Path) -> anyhow::Result<bool> {
        let text = self.render();
        if fs_err::read_to_string(file).is_ok_and(|found| found == text) {
            return Ok(false);
        }
        let dir = file.parent().context("a lock is in a directory")?;
        fs_err::create_dir_all(dir)?;
        let mut temporary = tempfile::Builder::new().prefix(".image.lock.").tempfile_in(dir)?;
        std::io::Write::write_all(&mut temporary, text.as_bytes())?;
        let mode = std::fs::Permissions::from_mode(0o644);
        temporary.as_file().set_permissions(mode)?;
        temporary.as_file().sync_all()?;
        temporary.persist(file).with_context(|| format!("writing {}", file.display()))?;
        Ok(true)
    }

    /// The locked package called `name`.
    pub fn package(&self, name: &str) -> Option<&Package> {
        let at = self.packages.binary_search_by(|package| package.name.as_str().cmp(name)).ok()?;
        self.packages.get(at)
    }
}

/// A recipe whose lock nobody looked at.
#[derive(Debug, Clone, Copy)]
pub struct Unlocked;

/// A lock that satisfies its recipe.
#[derive(Debug, Clone)]
pub struct Locked(Lock);

/// An image's recipe and what is known about its lock.
#[derive(Debug, Clone)]
pub struct Recipe<S> {
    image: Image,
    state: S,
}

impl<S> Recipe<S> {
    /// The recipe.
    pub fn image(&self) -> &Image {
        &self.image
    }
}

impl Recipe<Unlocked> {
    /// Reads `image.toml` in `dir`.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { image: Image::load(dir)?, state: Unlocked })
    }

    /// The same with what the command line says beside it.
    pub fn load_with(dir: &Path, overrides: &Overrides) -> anyhow::Result<Self> {
        Ok(Self { image: Image::load_with(dir, overrides)?, state: Unlocked })
    }

    /// Takes the lock beside the recipe; a missing or stale one is a problem with its reasons and the way out.
    pub fn locked(self) -> anyhow::Result<Recipe<Locked>> {
        let file = self.image.lock_file();
        let Some(lock) = Lock::load(&file)? else {
            let remedy = format!("run `pgkiln lock {}`", self.image.arguments());
            return Err(Problem::new("there is no lock yet", file.display().to_string(), remedy).into());
        };
        self.with(lock)
    }

    /// Takes this lock, if it satisfies the recipe.
    pub fn with(self, lock: Lock) -> anyhow::Result<Recipe<Locked>> {
        let reasons = stale::reasons(&self.image, &lock);
        if reasons.is_empty() {
            return Ok(Recipe { image: self.image, state: Locked(lock) });
        }
        Err(stale::problem(&self.image, &reasons).into())
    }
}

impl Recipe<Locked> {
    /// The lock.
    pub fn lock(&self) -> &Lock {
        &self.state.0
    }

    /// Forgets the lock, for resolving anew.
    pub fn unlock(self) -> Recipe<Unlocked> {
        Recipe { image: self.image, state: Unlocked }
    }

    /// What to fetch, with today's addresses; in the order of the lock's packages.
    pub fn items(&self) -> Vec<Item> {
        let bases =
            |id: &str| self.image.archive(id).map_or(Vec::new(), |archive| apt::bases(&self.image, archive).urls);
        let archives: Vec<(&str, Vec<String>)> =
            self.image.archives.iter().map(|archive| (&*archive.id, bases(&archive.id))).collect();
        let item = |package: &Package| Item {
            name: format!("{} {}", package.name, package.version),
            bases: archives.iter().find(|(id, _)| *id == package.archive).map_or(Vec::new(), |(_, urls)| urls.clone()),
            path: package.path.clone(),
            size: package.size,
            sha256: package.sha256,
            identity: Some(package.identity()),
        };
        self.lock().packages.iter().map(item).collect()
    }
}
