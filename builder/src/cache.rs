//! The one place on the host where pgkiln keeps what it can fetch or make again.
//!
//! ```text
//! <cache>/cas/sha256/ab/ab12…   files by content: packages, indexes, InRelease files, 0644, complete by construction
//! <cache>/partial/ab12…         downloads under way, resumed by the next run
//! <cache>/made/ab12…            what took long to make, by the digest of what it was made of
//! <cache>/relock/<image>.lock   locks resolved anew by --relock (the source tree is never edited)
//! <cache>/seen/<image>.json     how recent every archive was when it was last believed
//! <cache>/work                  scratch directories, removed when their command ends
//! <cache>/locks/…               locks between concurrent pgkiln processes
//! ```
//!
//! A file enters `cas` by a rename after its digest was checked, so its presence says that it *was* right. Disks and people
//! change files; hence whoever uses one checks size and digest again while reading it ([`Cache::verified`]).

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use fs_err as fs;
use nix::fcntl::{Flock, FlockArg};

use crate::digest::Sha256;
use crate::problem::Problem;

/// Keeps backup programs away; see the Cache Directory Tagging Specification.
const CACHEDIR_TAG: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Made by pgkiln; may be deleted at any time.\n";

/// How many things that were made are kept.
const MADE_KEPT: usize = 16;

/// A cache directory that exists and is writable.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Holds a named lock between processes; released when dropped or when the process dies.
#[derive(Debug)]
pub struct CacheLock {
    _file: Flock<std::fs::File>,
}

impl Cache {
    /// Opens the cache, making its directories where they are missing.
    pub fn open(root: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let root = std::path::absolute(root.into()).context("making the cache's path absolute")?;
        let made = (|| {
            for dir in ["cas/sha256", "partial", "made", "relock", "seen", "work", "locks"] {
                fs::create_dir_all(root.join(dir))?;
            }
            let tag = root.join("CACHEDIR.TAG");
            if tag.exists() { Ok(()) } else { fs::write(tag, CACHEDIR_TAG) }
        })();
        made.map_err(|error| {
            Problem::new(
                format!("the cache directory cannot be used: {error}"),
                root.display().to_string(),
                "name another one with --cache DIR",
            )
        })?;
        Ok(Self { root })
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the file with this content is, or would be.
    pub fn cas_path(&self, digest: &Sha256) -> PathBuf {
        let hex = digest.to_string();
        self.root.join("cas/sha256").join(&hex[..2]).join(hex)
    }

    /// Whether a file of this size is there; cheap, for planning only. Use [`Cache::verified`] before relying on content.
    pub fn has(&self, digest: &Sha256, size: u64) -> bool {
        self.cas_path(digest).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// The file if it is there with exactly this content. An altered or truncated one is removed: the answer is then `None`
    /// and the next fetch gets it again.
    pub fn verified(&self, digest: &Sha256, size: u64) -> anyhow::Result<Option<PathBuf>> {
        let path = self.cas_path(digest);
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let looked_at = file.metadata()?.ino();
        if Sha256::of_reader(file).with_context(|| format!("reading {}", path.display()))? == (*digest, size) {
            return Ok(Some(path));
        }
        // Another process may have put a good one there meanwhile.
        if path.symlink_metadata().is_ok_and(|meta| meta.ino() == looked_at) {
            self.discard(digest)?;
        }
        Ok(None)
    }

    /// Removes a file whose content turned out to be wrong; true if there was one.
    pub fn discard(&self, digest: &Sha256) -> anyhow::Result<bool> {
        match fs::remove_file(self.cas_path(digest)) {
            Ok(()) => {
                tracing::warn!(%digest, "removed an altered file from the cache");
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context("removing an altered file from the cache"),
        }
    }

    /// Where a download of this content is collected.
    pub(crate) fn partial_path(&self, digest: &Sha256) -> PathBuf {
        self.root.join("partial").join(digest.to_string())
    }

    /// Moves a complete, checked file into the store.
    pub(crate) fn admit(&self, digest: &Sha256, from: &Path) -> anyhow::Result<PathBuf> {
        let to = self.cas_path(digest);
        fs::create_dir_all(to.parent().context("a cached file has a parent")?)?;
        fs::set_permissions(from, std::fs::Permissions::from_mode(0o644))?;
        fs::rename(from, &to)?;
        Ok(to)
    }

    /// Takes a file that was checked before.
    pub(crate) fn put(&self, bytes: &[u8]) -> anyhow::Result<Sha256> {
        let digest = Sha256::of(bytes);
        let temporary = tempfile::NamedTempFile::new_in(self.root.join("work"))?;
        fs::write(temporary.path(), bytes)?;
        self.admit(&digest, &temporary.into_temp_path().keep().context("keeping a cached file")?)?;
        Ok(digest)
    }

    /// What was made of this before. Whoever asks must be able to tell a damaged answer from a right one.
    pub(crate) fn made(&self, of: &Sha256) -> Option<Vec<u8>> {
        fs::read(self.root.join("made").join(of.to_string())).ok()
    }

    /// Remembers what was made; the oldest is forgotten.
    pub(crate) fn remember(&self, of: &Sha256, bytes: &[u8]) -> anyhow::Result<()> {
        let dir = self.root.join("made");
        let temporary = tempfile::NamedTempFile::new_in(self.root.join("work"))?;
        fs::write(temporary.path(), bytes)?;
        temporary.persist(dir.join(of.to_string())).context("keeping what was made")?;
        let mut kept = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // Another process may have forgotten it meanwhile; the same below.
            if let Ok(modified) = entry.metadata().and_then(|meta| meta.modified()) {
                kept.push((modified, entry.path()));
            }
        }
        kept.sort();
        for (_, path) in kept.iter().rev().skip(MADE_KEPT) {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }

    /// Where the lock resolved anew for this image is kept.
    pub fn relock_path(&self, image: &str) -> PathBuf {
        self.root.join("relock").join(format!("{image}.lock"))
    }

    /// Where it is remembered how recent this image's archives were.
    pub(crate) fn seen_path(&self, image: &str) -> PathBuf {
        self.root.join("seen").join(format!("{image}.json"))
    }

    /// A scratch directory, removed when dropped.
    pub fn work_dir(&self, purpose: &str) -> anyhow::Result<tempfile::TempDir> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(purpose).tempdir_in(self.root.join("work")).context("making a scratch directory in the cache")
    }

    /// Waits for the lock called `name`; `waiting` is called once if another process holds it.
    pub fn lock(&self, name: &str, waiting: impl FnOnce()) -> anyhow::Result<CacheLock> {
        let path = self.root.join("locks").join(name);
        let open = || fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open()?.into_parts().0;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => return Ok(CacheLock { _file: file }),
            Err((file, _)) => file,
        };
        waiting();
        let locked = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        Ok(CacheLock { _file: locked.with_context(|| format!("waiting for the lock {}", path.display()))? })
    }

    /// Bytes that can still be written here.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        free_bytes(&self.root)
    }
}

/// Bytes that can still be written at `path`.
pub(crate) fn free_bytes(path: &Path) -> anyhow::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path).with_context(|| format!("free disk space of {}", path.display()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("c")).unwrap();
        (dir, cache)
    }

    #[test]
    fn an_altered_file_is_removed_not_used() {
        let (_dir, cache) = cache();
        let digest = Sha256::of("good");
        let partial = cache.partial_path(&digest);
        fs::write(&partial, "good").unwrap();
        let path = cache.admit(&digest, &partial).unwrap();
        assert_eq!(cache.verified(&digest, 4).unwrap(), Some(path.clone()));

        fs::write(&path, "goof").unwrap();
        assert!(cache.has(&digest, 4), "same size: only the digest can tell");
        assert_eq!(cache.verified(&digest, 4).unwrap(), None);
        assert!(!path.exists());
    }

    #[test]
    fn what_was_made_is_remembered_and_the_oldest_forgotten() {
        let (_dir, cache) = cache();
        let key = |number: usize| Sha256::of(number.to_string());
        assert_eq!(cache.made(&key(0)), None);
        for number in 0..MADE_KEPT + 2 {
            cache.remember(&key(number), &[number as u8]).unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            let file = fs::File::open(cache.root().join("made").join(key(number).to_string())).unwrap();
            file.into_parts().0.set_modified(time).unwrap();
        }
        let there = (0..MADE_KEPT + 2).filter(|number| cache.made(&key(*number)).is_some());
        assert_eq!(there.collect::<Vec<_>>(), (2..MADE_KEPT + 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_lock_excludes_a_second_holder_until_dropped() {
        let (_dir, cache) = cache();
        let held = cache.lock("x", || ()).unwrap();
        let second = cache.clone();
        let waiter = std::thread::spawn(move || {
            let mut waited = false;
            let _lock = second.lock("x", || waited = true).unwrap();
            waited
        });
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiter.is_finished());
        drop(held);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn an_unusable_directory_is_a_problem_with_a_way_out() {
        let error = Cache::open("/proc/nothing-can-be-made-here").unwrap_err();
        assert_eq!(error.downcast_ref::<Problem>().unwrap().remedy, "name another one with --cache DIR");
    }
}
