//! Which machine was brought the bundle with which token (`formed.toml`): a token is good for one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::files;

const FILE: &str = "formed.toml";

/// `formed.toml`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Formed {
    /// By slot.
    #[serde(default)]
    pub(super) slots: BTreeMap<String, Machine>,
}

/// A machine that was brought the bundle.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    /// Of the slot's token.
    pub(super) issue: u32,
    /// SHA-256 of the public key that it waited with.
    pub(super) key_sha256: String,
    /// When.
    pub(super) at: String,
}

impl Formed {
    /// Alone from loading it to storing it, for as long as the value lives: somebody else may form another part of the cluster
    /// at the same time.
    pub(super) fn lock(dir: &Path) -> anyhow::Result<File> {
        let lock = fs_err::File::open(dir)?.into_parts().0;
        match lock.lock() {
            // A file system that locks no directory (NFS).
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => Ok(lock),
            locked => locked.map(|()| lock).with_context(|| format!("locking {}", dir.display())),
        }
    }

    pub(super) fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        match fs_err::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn store(&self, dir: &Path) -> anyhow::Result<()> {
        let note = "# Which machines were brought the founding bundle (`pgkiln cluster form`).\n";
        files::replace_private_file(&dir.join(FILE), &format!("{note}{}", toml::to_string(self)?))
    }
}
