//! Which labs are up: one directory per lab below `/run/pgkiln/lab`, locked by its warden for as long as the lab exists.
//!
//! The lock, not the directory, says that a name is in use: a directory left by a killed warden is taken over.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use super::config::Options;
use crate::problem::Problem;

const ROOT: &str = "/run/pgkiln/lab";

/// The directory of lab `name`.
pub(super) fn dir(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

/// The control socket of lab `name`.
pub(super) fn socket(name: &str) -> PathBuf {
    dir(name).join("control.sock")
}

/// The options the lab was started with.
pub(super) fn load(name: &str) -> anyhow::Result<Options> {
    let text = fs_err::read_to_string(dir(name).join("lab.json"))?;
    serde_json::from_str(&text).context("reading lab.json")
}

/// Stores the options for the other stages and for clients.
pub(super) fn store(options: &Options) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(options)?;
    fs_err::create_dir_all(dir(&options.name))?;
    Ok(fs_err::write(dir(&options.name).join("lab.json"), text)?)
}

/// A name held by this process until dropped or until the process ends.
#[derive(Debug)]
pub(super) struct Held {
    name: String,
    _lock: Flock<std::fs::File>,
}

impl Held {
    /// Forgets the lab: its directory goes, then the name is free.
    pub(super) fn release(self) {
        let _ = fs_err::remove_dir_all(dir(&self.name));
        // Go when they are empty; another lab may be using them.
        let _ = fs_err::remove_dir(ROOT);
        let _ = fs_err::remove_dir("/run/pgkiln");
    }
}

/// Takes the name; `None` if another process holds it.
pub(super) fn hold(name: &str) -> anyhow::Result<Option<Held>> {
    let dir = dir(name);
    for _ in 0..50 {
        match fs_err::create_dir_all(&dir) {
            // Its parent was removed by the last lab to go.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        }
        match lock(&dir)? {
            Attempt::Locked(lock) => return Ok(Some(Held { name: name.to_owned(), _lock: lock })),
            Attempt::InUse => return Ok(None),
            Attempt::Vanished => {}
        }
    }
    anyhow::bail!("locking {} again and again found it removed", dir.display())
}

/// Whether a lab of this name exists.
pub(super) fn in_use(name: &str) -> anyhow::Result<bool> {
    Ok(matches!(lock(&dir(name))?, Attempt::InUse))
}

/// Names of the labs that are up.
pub fn names() -> anyhow::Result<Vec<String>> {
    let Ok(entries) = fs_err::read_dir(ROOT) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if in_use(&name)? {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// That there is no such lab, and which there are.
pub(super) fn not_up(name: &str) -> Problem {
    let up = names().unwrap_or_default();
    let remedy = match up.as_slice() {
        [] => "no lab is up; start one with `pgkiln lab up`".to_owned(),
        names => format!("these are up: {}", names.join(", ")),
    };
    Problem::new(format!("lab `{name}` is not up"), "", remedy)
}

enum Attempt {
    Locked(Flock<std::fs::File>),
    InUse,
    Vanished,
}

fn lock(dir: &Path) -> anyhow::Result<Attempt> {
    let Ok(file) = fs_err::File::open(dir) else { return Ok(Attempt::Vanished) };
    let (file, _) = file.into_parts();
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            // Between our open and our lock its holder may have removed the directory.
            let same = fs_err::metadata(dir).is_ok_and(|now| lock.metadata().is_ok_and(|ours| ours.ino() == now.ino()));
            Ok(if same { Attempt::Locked(lock) } else { Attempt::Vanished })
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(Attempt::InUse),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", dir.display())),
    }
}
