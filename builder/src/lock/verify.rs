//! The first half of locking: every suite of the recipe fetched, its signature, dates and identity checked, its indexes
//! verified and laid out for apt. What fails here leaves nothing in the cache.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};

use super::seen::Seen;
use super::{Lock, Suite, keys};
use crate::apt::packages::Index;
use crate::apt::release::{Release, Wanted};
use crate::apt::{self, signature};
use crate::cache::Cache;
use crate::digest::Sha256;
use crate::fetch::{self, Event, Item};
use crate::image::{Archive, Image};
use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// Larger than any `InRelease` file.
pub(super) const INRELEASE_LIMIT: u64 = 16 << 20;
/// Larger than any index; only for those whose unpacked size the suite does not state.
const INDEX_LIMIT: u64 = 1 << 30;
/// How far a mirror's clock may be ahead of ours.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(24);

/// All archives of a recipe as they are now.
pub(super) struct Archives {
    pub(super) index: Index,
    pub(super) suites: Vec<Verified>,
    pub(super) seen: Seen,
}

/// A suite whose indexes are verified and laid out for apt.
pub(super) struct Verified {
    pub(super) locked: Suite,
    pub(super) release: Release,
    pub(super) archive: usize,
    pub(super) mirror: PathBuf,
    pub(super) keyring: PathBuf,
}

/// What every archive is verified with.
struct Verifier<'a> {
    image: &'a Image,
    cache: &'a Cache,
    work: &'a Path,
    report: &'a dyn Fn(Event<'_>),
}

impl Archives {
    /// Fetches and verifies them; `work` is a scratch directory.
    pub(super) fn verify(
        image: &Image,
        old: Option<&Lock>,
        cache: &Cache,
        work: &Path,
        report: &dyn Fn(Event<'_>),
    ) -> anyhow::Result<Self> {
        let verifier = Verifier { image, cache, work, report };
        let mut all = Self { index: Index::default(), suites: Vec::new(), seen: Seen::load(image, old, cache)? };
        for n in 0..image.archives.len() {
            verifier.archive(n, &mut all)?;
        }
        Ok(all)
    }
}

impl Verifier<'_> {
    /// Fetches and verifies all suites of one archive and adds their packages to the index.
    fn archive(&self, n: usize, all: &mut Archives) -> anyhow::Result<()> {
        let archive = &self.image.archives[n];
        let keyring = self.work.join(format!("{}.gpg", archive.id));
        let keys = keys::Source { image: self.image, cache: self.cache, report: self.report };
        fs_err::write(&keyring, keys::keyring(&keys, archive)?)?;
        let bases = apt::bases(self.image, archive);
        let mirror = self.work.join("mirrors").join(&archive.id);
        for suite in &archive.suites {
            let dists = format!("dists/{suite}");
            let path = format!("{dists}/InRelease");
            let (inrelease, base) = fetch::get(&bases.urls, &path, &format!("the suite `{suite}`"), INRELEASE_LIMIT)
                .map_err(|error| name_suite(self.image, archive, suite, error))?;
            let url = format!("{base}/{path}");
            let signed = signature::verify(&inrelease, &keyring, &archive.fingerprints, &url, self.work)?;
            let release = Release::parse(&signed.text, &url)?;
            check_dates(&release, &url, archive.url.snapshot(), bases.from_host)?;
            release.check_identity(&wanted(self.image, archive, suite), &url)?;
            all.seen.check(archive, suite, &release, &url)?;
            fs_err::create_dir_all(mirror.join(&dists))?;
            fs_err::write(mirror.join(&path), &inrelease)?;
            self.indexes(n, suite, &release, &base, &mirror, &mut all.index)?;
            let locked = Suite {
                archive: archive.id.clone(),
                suite: suite.clone(),
                components: archive.components.clone(),
                inrelease_sha256: Sha256::of(&inrelease),
                signer: signed.signer,
                date: release.date,
                valid_until: release.valid_until,
            };
            let (mirror, keyring) = (mirror.clone(), keyring.clone());
            all.suites.push(Verified { locked, release, archive: n, mirror, keyring });
        }
        Ok(())
    }

    fn indexes(
        &self,
        n: usize,
        suite: &str,
        release: &Release,
        base: &str,
        mirror: &Path,
        index: &mut Index,
    ) -> anyhow::Result<()> {
        let archive = &self.image.archives[n];
        for file in files(release, archive, &self.image.architecture, suite, &self.image.at(archive.line))? {
            let item = file.item(release, base, suite);
            let url = format!("{base}/{}", item.path);
            let packed = fetch::read(&item, self.cache, self.report)?;
            let local = mirror.join("dists").join(suite).join(&file.path);
            fs_err::create_dir_all(local.parent().context("an index is in a directory")?)?;
            fs_err::write(&local, &packed)?;
            let added = file.unpack(release, &packed, &url).and_then(|text| index.add(n, &text, &url));
            if let Err(problem) = added {
                self.cache.discard(&item.sha256)?;
                return Err(problem.into());
            }
        }
        Ok(())
    }
}

/// What `suite` must be to be the one the recipe means.
pub(super) fn wanted<'a>(image: &'a Image, archive: &'a Archive, suite: &'a str) -> Wanted<'a> {
    Wanted {
        suite,
        architecture: &image.architecture,
        components: &archive.components,
        origin: archive.origin.as_deref(),
        label: archive.label.as_deref(),
    }
}

/// One `Packages` index of a suite.
pub(super) struct IndexFile {
    plain: String,
    suffix: &'static str,
    pub(super) path: String,
    sha256: Sha256,
    size: u64,
}

/// The indexes of the recipe's components; `place` names the recipe for messages.
pub(super) fn files(
    release: &Release,
    archive: &Archive,
    architecture: &str,
    suite: &str,
    place: &str,
) -> Result<Vec<IndexFile>, Problem> {
    let mut files = Vec::new();
    for component in &archive.components {
        for arch in [Some(architecture), release.separate_all.then_some("all")].into_iter().flatten() {
            let plain = format!("{component}/binary-{arch}/Packages");
            let found = [".xz", ".gz", ""].into_iter().find_map(|suffix| {
                let path = format!("{plain}{suffix}");
                let (sha256, size) = release.file(&path)?;
                Some(IndexFile { plain: plain.clone(), suffix, path, sha256, size })
            });
            if found.is_none() && arch != "all" {
                return Err(Problem::new(
                    format!("suite `{suite}` has no packages for component `{component}` and `{arch}`"),
                    place,
                    "correct `components` or `architecture` in image.toml",
                ));
            }
            files.extend(found);
        }
    }
    Ok(files)
}

impl IndexFile {
    /// Where to have it from, below `base`.
    pub(super) fn item(&self, release: &Release, base: &str, suite: &str) -> Item {
        let directory = self.plain.trim_end_matches("/Packages");
        let place =
            if release.by_hash { format!("{directory}/by-hash/SHA256/{}", self.sha256) } else { self.path.clone() };
        Item {
            name: format!("index {}", self.path),
            bases: vec![base.to_owned()],
            path: format!("dists/{suite}/{place}"),
            size: self.size,
            sha256: self.sha256,
            identity: None,
        }
    }

    /// Its text. What it unpacks to is signed too, where the suite lists it, and bounds how much is unpacked.
    pub(super) fn unpack(&self, release: &Release, packed: &[u8], place: &str) -> Result<String, Problem> {
        let remedy = "the index was not used; use another mirror, or tell the archive's owner";
        let problem = |what: String| Problem::new(format!("index {} {what}", self.path), place, remedy);
        let stated = release.file(&self.plain);
        let limit = stated.map_or(INDEX_LIMIT, |(_, size)| size);
        let mut text = Vec::new();
        let mut reader: Box<dyn Read + '_> = match self.suffix {
            ".xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(packed)),
            ".gz" => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            _ => Box::new(packed),
        };
        let read = reader.by_ref().take(limit.saturating_add(1)).read_to_end(&mut text);
        read.map_err(|error| problem(format!("cannot be unpacked: {error}")))?;
        if text.len() as u64 > limit {
            return Err(problem(format!("unpacks to more than the {limit} bytes that are signed")));
        }
        if stated.is_some_and(|(sha256, _)| sha256 != Sha256::of(&text)) {
            return Err(problem("unpacks to something else than what is signed".to_owned()));
        }
        String::from_utf8(text).map_err(|_| problem("is not UTF-8 text".to_owned()))
    }
}

/// A suite that the mirror does not have is the recipe's mistake, not a package that moved on.
fn name_suite(image: &Image, archive: &Archive, suite: &str, error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<fetch::Failure>() {
        Some(failure) if failure.kind == fetch::FailureKind::Gone => Problem::new(
            format!("archive `{}` has no suite `{suite}` ({})", archive.id, failure.problem.place),
            image.at(archive.line),
            "correct `suites` or `url` in image.toml",
        )
        .into(),
        _ => error,
    }
}

/// Only `Valid-Until` has excuses: a dated snapshot, and an administrator who told apt that the host's mirror is frozen.
fn check_dates(release: &Release, url: &str, snapshot: Option<&str>, from_host: bool) -> anyhow::Result<()> {
    let now = Timestamp::now();
    if release.date > now + CLOCK_SKEW {
        return Err(Problem::new(
            format!("the index was made in the future ({})", release.date),
            url,
            "set this host's clock; if it is right, use another mirror",
        )
        .into());
    }
    let expired = release.valid_until.filter(|until| *until < now);
    if let Some(until) = expired.filter(|_| snapshot.is_none() && !(from_host && host_ignores_dates())) {
        return Err(Problem::new(
            format!("the mirror is out of date: its index was valid until {until}"),
            url,
            "use a mirror that is kept up to date, or give the archive a `snapshot` if the old state is wanted",
        )
        .into());
    }
    Ok(())
}

/// Whether the host's administrator told apt that its mirror is a frozen one.
fn host_ignores_dates() -> bool {
    let dump = Cmd::new(&table::APT_CONFIG).args(["dump", "Acquire::Check-Valid-Until"]).text().unwrap_or_default();
    ["\"false\"", "\"0\"", "\"no\""].iter().any(|value| dump.contains(value))
}
