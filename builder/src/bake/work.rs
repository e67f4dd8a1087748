//! Scratch directories that leave nothing behind.
//!
//! Whatever is being made lies in a `bake-…` of the cache and only moves to its place when it is complete. A directory belongs
//! to the process that holds the lock on the file beside it; when that process is gone, however it went, the next one
//! sweeps the directory away before it starts.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, geteuid, setegid};

use crate::cache::Cache;

/// For what a dead process had started to end.
const ENDING: Duration = Duration::from_secs(10);
/// What our directories in `<cache>/work` start with.
const PREFIX: &str = "bake-";

/// A scratch directory, removed when dropped.
#[derive(Debug)]
pub(super) struct Work {
    dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Work {
    /// Removes what dead processes left and makes a new directory. From here on the caller's umask and group are ours: what is
    /// made below becomes part of an image, and its modes and owners must not depend on who bakes, nor on the directory that
    /// the cache lies in.
    pub(super) fn create(cache: &Cache) -> anyhow::Result<Self> {
        umask(Mode::from_bits_truncate(0o022));
        if geteuid().is_root() {
            setegid(Gid::from_raw(0)).context("taking root's group")?;
        }
        // Between making a lock file and locking it nobody may sweep.
        let _alone = cache.lock("work", || ())?;
        let parent = cache.root().join("work");
        sweep(&parent)?;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent)?.keep();
        inherit_nothing(&dir)?;
        let lock_path = dir.with_extension("lock");
        let lock = fs_err::File::create(&lock_path)?.into_parts().0;
        lock.lock().context("locking a scratch directory")?;
        Ok(Self { dir, lock_path, _lock: lock })
    }

    /// Makes an empty directory in it.
    pub(super) fn dir(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        fs_err::create_dir(&dir)?;
        Ok(dir)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Best effort: what remains is swept next time.
        let _ = fs_err::remove_dir_all(&self.dir);
        let _ = fs_err::remove_file(&self.lock_path);
    }
}

/// A new directory may have its parent's group, its set-group-id bit and its default ACL, and would hand them on.
fn inherit_nothing(dir: &Path) -> anyhow::Result<()> {
    if geteuid().is_root() {
        std::os::unix::fs::chown(dir, Some(0), Some(0)).with_context(|| format!("owner of {}", dir.display()))?;
    }
    for acl in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::removexattr(dir, acl) {
            // None there, or a file system that has none.
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => {}
            Err(errno) => return Err(errno).with_context(|| format!("removing {acl} of {}", dir.display())),
        }
    }
    Ok(fs_err::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?)
}

fn sweep(parent: &Path) -> anyhow::Result<()> {
    for entry in fs_err::read_dir(parent)? {
        let path = entry?.path();
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !ours || !path.is_dir() {
            continue;
        }
        let lock_path = path.with_extension("lock");
        let dead = match fs_err::File::open(&lock_path) {
            Ok(lock) => lock.into_parts().0.try_lock().is_ok(),
            Err(_) => true,
        };
        if dead {
            remove(&path)?;
            let _ = fs_err::remove_file(&lock_path);
        }
    }
    Ok(())
}

/// What a killed bake had started ends a moment after it, and may still write while its directory is removed.
fn remove(dir: &Path) -> std::io::Result<()> {
    let deadline = Instant::now() + ENDING;
    loop {
        match fs_err::remove_dir_all(dir) {
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_directory_stays_and_a_dead_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let live = Work::create(&cache).unwrap();
        let dead = dir.path().join("work/bake-dead");
        fs_err::create_dir_all(dead.join("root")).unwrap();
        fs_err::write(dir.path().join("work/bake-dead.lock"), "").unwrap();
        let second = Work::create(&cache).unwrap();
        assert!(live.path().is_dir() && second.path().is_dir() && !dead.exists());
        let gone = live.path().to_owned();
        drop(live);
        assert!(!gone.exists());
    }

    /// A cache that a group shares has this bit, and everything below would have it, image included.
    #[test]
    fn nothing_is_inherited_from_the_directory_of_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        fs_err::create_dir_all(dir.path().join("work")).unwrap();
        fs_err::set_permissions(dir.path().join("work"), std::fs::Permissions::from_mode(0o2775)).unwrap();
        let work = Work::create(&cache).unwrap();
        for made in [work.path().to_owned(), work.dir("root").unwrap()] {
            assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o755, "{}", made.display());
        }
    }
}
