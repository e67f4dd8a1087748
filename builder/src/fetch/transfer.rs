//! One file: collect, resume, check, admit.

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use reqwest::{StatusCode, header};

use super::Item;
use super::http::{self, Connection, Failure, FailureKind};
use crate::cache::Cache;
use crate::digest::{Hasher, Sha256};
use crate::problem::Problem;
use crate::unpack::deb::Deb;

/// How often a transfer is tried at one address.
pub(super) const ATTEMPTS: u32 = 4;

pub(super) enum Event {
    Received(u64),
    Retrying(String),
}

/// Backs off before every attempt but the first: 0.25 s, 0.5 s, 1 s.
pub(super) fn pause_before(attempt: u32) {
    if attempt > 0 {
        std::thread::sleep(Duration::from_millis(125 << attempt));
    }
}

/// Downloads `item` unless the cache has it by now.
pub(super) fn download(
    connection: &Connection,
    item: &Item,
    cache: &Cache,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event),
) -> anyhow::Result<()> {
    let partial = cache.partial_path(&item.sha256);
    let mut file = lock_partial(&partial)?;
    // Another process may have finished it while we waited for it.
    if cache.has(&item.sha256, item.size) {
        return Ok(());
    }
    let mut last = None;
    for base in &item.bases {
        let url = format!("{base}/{}", item.path);
        for attempt in 0..ATTEMPTS {
            pause_before(attempt);
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let tried = connection.runtime.block_on(transfer(&connection.client, &url, item, &mut file, stop, tell));
            match tried.context("writing to the cache")? {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    if let Err(error) = check_identity(item, &partial, &url) {
                        let _ = fs_err::remove_file(&partial);
                        return Err(error);
                    }
                    cache.admit(&item.sha256, &partial)?;
                    return Ok(());
                }
                Err(failure) => {
                    // A file may be wrong because it was resumed across an update of the mirror: once more from the start.
                    let again = match failure.kind {
                        FailureKind::Gone => false,
                        FailureKind::Unreachable => true,
                        FailureKind::Altered => attempt == 0,
                    };
                    if failure.kind == FailureKind::Altered {
                        file.set_len(0)?;
                    }
                    if again && attempt + 1 < ATTEMPTS {
                        tell(Event::Retrying(failure.problem.what.clone()));
                    }
                    last = Some(failure);
                    if !again {
                        break;
                    }
                }
            }
        }
    }
    if file.metadata()?.len() == 0 {
        let _ = fs_err::remove_file(&partial);
    }
    Err(last.with_context(|| format!("there is no address to fetch {} from", item.name))?.into())
}

/// Takes a file from elsewhere into the cache if it is exactly `item`; false if it is not.
pub fn admit_copy(item: &Item, from: &Path, cache: &Cache) -> anyhow::Result<bool> {
    let partial = cache.partial_path(&item.sha256);
    let mut file = lock_partial(&partial)?;
    file.set_len(0)?;
    std::io::copy(&mut fs_err::File::open(from)?, &mut *file)?;
    let same = Sha256::of_file(&partial)? == (item.sha256, item.size);
    if !same {
        fs_err::remove_file(&partial)?;
        return Ok(false);
    }
    if let Err(error) = check_identity(item, &partial, &from.display().to_string()) {
        fs_err::remove_file(&partial)?;
        return Err(error);
    }
    cache.admit(&item.sha256, &partial)?;
    Ok(true)
}

/// A package has the promised content; whether it is the promised package only it can say.
pub(super) fn check_identity(item: &Item, file: &Path, place: &str) -> anyhow::Result<()> {
    let Some(identity) = &item.identity else { return Ok(()) };
    let control = Deb::open(file, &item.sha256).and_then(|deb| deb.control()).map_err(|error| {
        let what = format!("{} is not a Debian package: {}", item.name, error.root_cause());
        Problem::new(what, place, "the file was not used; tell the archive's owner, or use another archive")
    })?;
    Ok(control.check_identity(identity, place)?)
}

/// Opens the collecting file, alone among processes.
fn lock_partial(path: &Path) -> anyhow::Result<Flock<std::fs::File>> {
    loop {
        let open = fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let file = Flock::lock(open.into_parts().0, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let file = file.with_context(|| format!("locking {}", path.display()))?;
        // Whoever held it may have moved or removed it: then it is not the one at this path any more.
        match path.symlink_metadata() {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("looking at a partial download"),
        }
    }
}

/// One request. The outer error is the disk's, the inner one the mirror's; false: stopped on request.
async fn transfer(
    client: &reqwest::Client,
    url: &str,
    item: &Item,
    file: &mut std::fs::File,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Event),
) -> std::io::Result<Result<bool, Failure>> {
    let mut hasher = Hasher::new();
    let mut have = resume_point(file, item.size, &mut hasher)?;
    let unreachable = |error: reqwest::Error| Failure::unreachable(&http::reason(&error), url);
    if have < item.size {
        let mut request = client.get(url);
        if have > 0 {
            request = request.header(header::RANGE, format!("bytes={have}-"));
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(Err(unreachable(error))),
        };
        if let Err(failure) = http::check_status(response.status(), &item.name, url) {
            return Ok(Err(failure));
        }
        if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            // The server does not resume: the whole file comes again.
            (have, hasher) = (0, Hasher::new());
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
        }
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => return Ok(Err(unreachable(error))),
            };
            have += chunk.len() as u64;
            if have > item.size {
                return Ok(Err(wrong_size(item, url, "more")));
            }
            file.write_all(&chunk)?;
            hasher.update(&chunk);
            tell(Event::Received(chunk.len() as u64));
            if stop.load(Ordering::Relaxed) {
                return Ok(Ok(false));
            }
        }
    }
    if have < item.size {
        return Ok(Err(wrong_size(item, url, &format!("only {have}"))));
    }
    let found = hasher.finish();
    if found != item.sha256 {
        let what = format!("{} is altered: its SHA-256 is {found}, expected {}", item.name, item.sha256);
        return Ok(Err(Failure::altered(&what, url)));
    }
    Ok(Ok(true))
}

/// Hashes what is there and positions the file behind it.
fn resume_point(file: &mut std::fs::File, size: u64, hasher: &mut Hasher) -> std::io::Result<u64> {
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 256 * 1024];
    let mut have = 0;
    loop {
        let n = std::io::Read::read(file, &mut buffer)?;
        if n == 0 {
            return Ok(have);
        }
        hasher.update(&buffer[..n]);
        have += n as u64;
    }
}

fn wrong_size(item: &Item, url: &str, found: &str) -> Failure {
    let what = format!("{} has the wrong size: {} bytes expected, {found} arrived", item.name, item.size);
    Failure::altered(&what, url)
}
