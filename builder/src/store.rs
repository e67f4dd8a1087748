//! A directory that outlives archives: every file an image was locked to, by content, and what its chain of trust can be
//! checked with again. `pgkiln fetch IMAGE --to DIR` fills it, `pgkiln bake IMAGE --from DIR` needs nothing else.
//!
//! ```text
//! DIR/sha256/ab/ab12…      packages, InRelease files and package indexes by content
//! DIR/keys/<fingerprint>.gpg   the keys that signed
//! DIR/locks/<image>.lock   what it was filled for
//! ```

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cache::Cache;
use crate::digest::Sha256;
use crate::fetch::{self, Item};
use crate::problem::Problem;

/// How many missing files a refusal names.
const NAMED: usize = 5;

/// A store; other stores and caches may share its files' content but never its files.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Makes the directory where it is missing.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        for dir in ["sha256", "keys", "locks"] {
            fs_err::create_dir_all(root.join(dir)).map_err(|error| {
                Problem::new(
                    format!("the store cannot be written: {error}"),
                    root.display().to_string(),
                    "name another",
                )
            })?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// A store that must be there.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        if !root.join("sha256").is_dir() {
            let remedy = format!("fill one with `pgkiln fetch IMAGE --to {}`", root.display());
            return Err(Problem::new("there is no store here", root.display().to_string(), remedy).into());
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Where the file with this content is, or would be.
    pub fn path(&self, digest: &Sha256) -> PathBuf {
        let hex = digest.to_string();
        self.root.join("sha256").join(&hex[..2]).join(hex)
    }

    /// Where the key with this fingerprint is, or would be.
    pub fn key_path(&self, fingerprint: &str) -> PathBuf {
        self.root.join("keys").join(format!("{fingerprint}.gpg"))
    }

    /// Where the lock of this image is, or would be.
    pub fn lock_path(&self, image: &str) -> PathBuf {
        self.root.join("locks").join(format!("{image}.lock"))
    }

    /// Takes a file of the cache, unless the very content is there; true if it was not.
    pub fn take(&self, digest: &Sha256, size: u64, cache: &Cache) -> anyhow::Result<bool> {
        let to = self.path(digest);
        if to.is_file() && Sha256::of_file(&to)? == (*digest, size) {
            return Ok(false);
        }
        let from = cache.cas_path(digest);
        let dir = to.parent().context("a stored file is in a directory")?;
        fs_err::create_dir_all(dir)?;
        let mut temporary = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        // Copied, not linked: whoever damages the cache must not damage the store.
        std::io::copy(&mut fs_err::File::open(&from)?, &mut temporary)?;
        anyhow::ensure!(
            Sha256::of_file(temporary.path())?.0 == *digest,
            "{} changed while it was read",
            from.display()
        );
        temporary.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        temporary.as_file().sync_all()?;
        temporary.persist(&to).with_context(|| format!("writing {}", to.display()))?;
        Ok(true)
    }

    /// Has every item in the cache without any network; what the store lacks or has damaged is told by name.
    pub fn fetch(&self, items: &[Item], cache: &Cache) -> anyhow::Result<()> {
        let (mut missing, mut damaged) = (Vec::new(), Vec::new());
        for item in items {
            if cache.verified(&item.sha256, item.size)?.is_some() {
                continue;
            }
            let from = self.path(&item.sha256);
            if !from.is_file() {
                missing.push(item.name.as_str());
                continue;
            }
            match fetch::admit_copy(item, &from, cache)? {
                true => {}
                false => damaged.push(item.name.as_str()),
            }
        }
        for (found, what) in [(damaged, "damaged in the store"), (missing, "not in the store")] {
            if let Some(names) = some_of(&found) {
                return Err(Problem::new(
                    format!("{} of {} files are {what}: {names}", found.len(), items.len()),
                    self.root.display().to_string(),
                    format!("run `pgkiln fetch IMAGE --to {}` where there is a network", self.root.display()),
                )
                .into());
            }
        }
        Ok(())
    }
}

fn some_of(names: &[&str]) -> Option<String> {
    let more = names.len().checked_sub(NAMED).filter(|more| *more > 0);
    let shown = names[..names.len().min(NAMED)].join(", ");
    (!names.is_empty()).then(|| shown + &more.map_or(String::new(), |more| format!(" and {more} more")))
}
