//! What every archive looked like when it was last believed, so that an old state, correctly signed, is not taken for news.
//! The lock beside the recipe remembers, and so does the cache: a lock may have been deleted.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Lock;
use crate::apt::release::Release;
use crate::cache::Cache;
use crate::image::{Archive, Image, Url};
use crate::problem::Problem;

/// One suite when it was last believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    date: Timestamp,
    origin: String,
    label: String,
}

/// What is remembered of an image's suites.
#[derive(Debug)]
pub(super) struct Seen {
    file: PathBuf,
    known: BTreeMap<String, State>,
    /// Date of each suite in the lock so far, and the lock's name for messages.
    locked: Vec<(String, String, Timestamp)>,
    lock_file: String,
    new: BTreeMap<String, State>,
}

impl Seen {
    /// Reads what the cache and the lock so far know.
    pub(super) fn load(image: &Image, old: Option<&Lock>, cache: &Cache) -> anyhow::Result<Self> {
        let file = cache.seen_path(&image.name);
        let known = match fs_err::read(&file) {
            // A file cut off by a crash remembers nothing; the lock still does.
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).context("reading what was seen of the archives"),
        };
        let suites = old.map_or(&[][..], |lock| &lock.suites);
        let locked = suites.iter().map(|one| (one.archive.clone(), one.suite.clone(), one.date)).collect();
        let lock_file = image.lock_file().display().to_string();
        Ok(Self { file, known, locked, lock_file, new: BTreeMap::new() })
    }

    /// Refuses a suite that is older than when it was last believed, or says it is another archive.
    pub(super) fn check(
        &mut self,
        archive: &Archive,
        suite: &str,
        release: &Release,
        place: &str,
    ) -> Result<(), Problem> {
        // Whoever writes a snapshot's time into the recipe means that time.
        let key = match &archive.url {
            Url::Snapshot(_) => return Ok(()),
            // Its keys say which archive it is; where it is may differ every time.
            _ if archive.overlaid.is_some() => format!("{} {suite} of {}", archive.id, archive.fingerprints.join(" ")),
            Url::Host => format!("{} {suite} host", archive.id),
            Url::Base(url) => format!("{} {suite} {url}", archive.id),
        };
        let of_lock = self.locked.iter().find(|(id, name, _)| *id == archive.id && *name == suite);
        let known = self.known.get(&key);
        let cache = self.file.display().to_string();
        let times = of_lock.map(|(_, _, date)| (*date, &self.lock_file)).into_iter();
        let newest = times.chain(known.map(|state| (state.date, &cache))).max_by_key(|(date, _)| *date);
        if let Some((date, who)) = newest.filter(|(date, _)| release.date < *date) {
            return Err(Problem::new(
                format!("the archive went back in time: the suite is of {}, {who} saw it at {date}", release.date),
                place,
                format!(
                    "use a mirror that is up to date; if the old state is wanted, give the archive a `snapshot` in \
                     image.toml, or remove {who}"
                ),
            ));
        }
        if let Some(state) = known.filter(|state| state.origin != release.origin || state.label != release.label) {
            return Err(Problem::new(
                format!(
                    "the archive changed its name: it was `{}` (`{}`), now it is `{}` (`{}`)",
                    state.origin, state.label, release.origin, release.label
                ),
                place,
                format!("if that is what the archive's owner announced, remove {cache}; else use another mirror"),
            ));
        }
        let (origin, label) = (release.origin.clone(), release.label.clone());
        self.new.insert(key, State { date: release.date, origin, label });
        Ok(())
    }

    /// Keeps what was checked, once all of it is believed.
    pub(super) fn remember(self) -> anyhow::Result<()> {
        let all: BTreeMap<String, State> = self.known.into_iter().chain(self.new).collect();
        let dir = self.file.parent().context("a cache file is in a directory")?;
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut temporary, &all)?;
        temporary.persist(&self.file).context("remembering what was seen of the archives")?;
        Ok(())
    }
}
