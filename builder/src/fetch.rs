//! Downloads into the content-addressed cache: parallel, resumed where they stopped, checked before they are admitted.
//!
//! A file is collected in `partial/`, and enters `cas/` only if size and SHA-256 are those of the lock. Failures come in
//! kinds, because the way out differs: a mirror that cannot be reached, a file it no longer has, content that is wrong.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use crate::cache::Cache;
use crate::digest::Sha256;
use crate::problem::Problem;
use crate::progress;
use crate::unpack::deb::Identity;

mod http;
mod transfer;

pub use http::{Failure, FailureKind, get, get_key};
pub use transfer::admit_copy;

/// Downloads at a time: enough to hide a mirror's latency, few enough to be a polite client.
const CONNECTIONS: usize = 6;
/// Left free on the disk beyond what is downloaded.
const DISK_RESERVE: u64 = 64 << 20;

/// A file to have: what it is and where it may be had.
#[derive(Debug, Clone)]
pub struct Item {
    /// For people (`patroni 4.0.7-1`).
    pub name: String,
    /// Base URLs, tried in this order.
    pub bases: Vec<String>,
    /// Path below the base URL.
    pub path: String,
    /// Exact size in bytes.
    pub size: u64,
    /// Exact content.
    pub sha256: Sha256,
    /// What a package must say about itself; `None` for other files.
    pub identity: Option<Identity>,
}

/// What happens during a download, for whoever shows it.
#[derive(Debug)]
pub enum Event<'a> {
    /// Before the first byte: how much is to come; `cached` files are there already.
    Planned {
        /// Files to download.
        files: usize,
        /// Their bytes.
        bytes: u64,
        /// Files that need not be downloaded.
        cached: usize,
    },
    /// This many bytes arrived.
    Received(u64),
    /// A file is complete and right.
    Finished(&'a str),
    /// A transfer failed and is tried again.
    Retrying {
        /// The file.
        name: &'a str,
        /// Why.
        reason: &'a str,
    },
}

/// What a fetch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Files downloaded now.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
}

enum Message {
    Received(u64),
    Finished(usize),
    Retrying(usize, String),
}

/// Makes sure that the cache has every item with exactly its content: what is there is read and checked (half a second per
/// gigabyte and core), what is missing or altered is downloaded.
pub fn fetch(items: &[Item], cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Fetched> {
    let mut missing = unusable(items, cache)?;
    missing.sort_by_key(|n| std::cmp::Reverse(items[*n].size));
    let bytes: u64 = missing.iter().map(|n| items[*n].size).sum();
    report(Event::Planned { files: missing.len(), bytes, cached: items.len() - missing.len() });
    if missing.is_empty() {
        return Ok(Fetched { files: 0, bytes: 0 });
    }
    check_disk_space(bytes, cache)?;

    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    let first_error = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS.min(missing.len()))
            .map(|_| {
                let (sender, missing, next, stop) = (sender.clone(), &missing, &next, &stop);
                scope.spawn(move || work(items, missing, next, stop, cache, &sender))
            })
            .collect();
        drop(sender);
        for message in receiver {
            match message {
                Message::Received(bytes) => report(Event::Received(bytes)),
                Message::Finished(n) => report(Event::Finished(&items[n].name)),
                Message::Retrying(n, reason) => report(Event::Retrying { name: &items[n].name, reason: &reason }),
            }
        }
        let join = |worker: std::thread::ScopedJoinHandle<'_, anyhow::Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).err()
        };
        let errors: Vec<anyhow::Error> = workers.into_iter().filter_map(join).collect();
        errors.into_iter().next()
    });
    match first_error {
        Some(error) => Err(error),
        None => Ok(Fetched { files: missing.len(), bytes }),
    }
}

/// The items that the cache lacks; altered files are removed on the way.
fn unusable(items: &[Item], cache: &Cache) -> anyhow::Result<Vec<usize>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(CONNECTIONS);
    let next = AtomicUsize::new(0);
    let check = || {
        let mut unusable = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(n) else { return anyhow::Ok(unusable) };
            if cache.verified(&item.sha256, item.size)?.is_none() {
                unusable.push(n);
            }
        }
    };
    std::thread::scope(|scope| {
        let checks: Vec<_> = (0..workers).map(|_| scope.spawn(check)).collect();
        let mut all = Vec::new();
        for done in checks {
            all.extend(done.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    })
}

/// One worker: takes the next file until there is none or another worker failed.
fn work(
    items: &[Item],
    queue: &[usize],
    next: &AtomicUsize,
    stop: &AtomicBool,
    cache: &Cache,
    sender: &mpsc::Sender<Message>,
) -> anyhow::Result<()> {
    let connection = http::Connection::new()?;
    while !stop.load(Ordering::Relaxed)
        && let Some(&n) = queue.get(next.fetch_add(1, Ordering::Relaxed))
    {
        let tell = |message| drop(sender.send(message));
        let done = transfer::download(&connection, &items[n], cache, stop, &mut |event| match event {
            transfer::Event::Received(bytes) => tell(Message::Received(bytes)),
            transfer::Event::Retrying(reason) => tell(Message::Retrying(n, reason)),
        });
        if let Err(error) = done {
            stop.store(true, Ordering::Relaxed);
            return Err(error);
        }
        tell(Message::Finished(n));
    }
    Ok(())
}

/// The content of an item, from the cache or downloaded now; what is returned was checked.
pub fn read(item: &Item, cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Vec<u8>> {
    fetch(std::slice::from_ref(item), cache, report)?;
    let bytes = fs_err::read(cache.cas_path(&item.sha256))?;
    if Sha256::of(&bytes) == item.sha256 {
        return Ok(bytes);
    }
    let place = cache.cas_path(&item.sha256).display().to_string();
    let what = format!("`{}` reads differently from a moment ago", item.name);
    Err(Problem::new(what, place, "check the disk, or name a cache on another one with --cache DIR").into())
}

fn check_disk_space(needed: u64, cache: &Cache) -> anyhow::Result<()> {
    let free = cache.free_bytes()?;
    no_space(needed, free, cache.root()).map_or(Ok(()), |problem| Err(problem.into()))
}

fn no_space(needed: u64, free: u64, place: &Path) -> Option<Problem> {
    (free < needed.saturating_add(DISK_RESERVE)).then(|| {
        let (needed, free) = (progress::size(needed + DISK_RESERVE), progress::size(free));
        Problem::new(
            format!("not enough disk space for the packages: {needed} needed, {free} free"),
            place.display().to_string(),
            "free some space, or name a cache elsewhere with --cache DIR",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_space_is_told_with_both_sizes() {
        let problem = no_space(270_000_000, 100_000_000, Path::new("/cache")).unwrap();
        assert_eq!(problem.what, "not enough disk space for the packages: 337 MB needed, 100 MB free");
        assert_eq!(no_space(1, DISK_RESERVE + 1, Path::new("/cache")), None);
    }
}
