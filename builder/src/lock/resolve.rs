//! From recipe to lock: fetch and verify the indexes, let apt choose, look every choice up in what was verified.

use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};

use super::{Lock, Package, SCHEMA, Suite};
use crate::apt::packages::Index;
use crate::apt::release::Release;
use crate::apt::solver::{Solver, Source};
use crate::apt::{self, signature};
use crate::cache::Cache;
use crate::digest::Sha256;
use crate::fetch::{self, Event, Item};
use crate::image::{Archive, Image, Wanted};
use crate::problem::{Problem, Problems};
use crate::tool::{Cmd, table};

/// Larger than any `InRelease` file.
const INRELEASE_LIMIT: u64 = 16 << 20;
/// How far a mirror's clock may be ahead of ours.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(24);

/// A suite whose indexes are verified and laid out for apt.
struct Verified {
    locked: Suite,
    release: Release,
    archive: usize,
    mirror: PathBuf,
    keyring: PathBuf,
}

/// Resolves the recipe against its archives as they are now.
pub fn resolve(image: &Image, cache: &Cache, report: &dyn Fn(Event<'_>)) -> anyhow::Result<Lock> {
    let work = cache.work_dir("lock.")?;
    let mut index = Index::default();
    let mut suites = Vec::new();
    for n in 0..image.archives.len() {
        suites.extend(verify_archive(image, n, cache, work.path(), &mut index, report)?);
    }
    let wanted = image.wanted();
    check_wanted(image, &wanted, &index)?;

    let sources: Vec<Source<'_>> = suites.iter().map(|suite| source(image, suite)).collect();
    let solver = Solver::new(&work.path().join("apt"), &image.architecture, &sources)?;
    let essential = index.essential().into_iter().filter(|name| !wanted.iter().any(|w| w.package == *name));
    let names: Vec<String> = essential.map(str::to_owned).chain(wanted.iter().map(Wanted::spelling)).collect();
    let chosen = solver.solve(&names, &image.file.display().to_string())?;

    let packages = chosen.iter().map(|chosen| {
        let (archive, entry) = index
            .find(&chosen.name, &chosen.version, &chosen.arch)
            .with_context(|| format!("apt chose {} {}, which no verified index has", chosen.name, chosen.version))?;
        Ok(Package {
            name: entry.name.clone(),
            version: entry.version.clone(),
            arch: entry.arch.clone(),
            archive: image.archives[archive].id.clone(),
            path: entry.path.clone(),
            size: entry.size,
            sha256: entry.sha256,
        })
    });
    let packages = packages.collect::<anyhow::Result<Vec<Package>>>()?;
    let newest = suites.iter().map(|suite| suite.locked.date.as_second()).max().unwrap_or(0);
    let mut spellings: Vec<String> = wanted.iter().map(Wanted::spelling).collect();
    spellings.sort();
    Ok(Lock {
        schema: SCHEMA,
        image: image.name.clone(),
        architecture: image.architecture.clone(),
        recipe_sha256: image.resolution_digest(),
        wanted: spellings,
        source_date_epoch: u64::try_from(newest).unwrap_or(0),
        suites: suites.into_iter().map(|suite| suite.locked).collect(),
        packages,
    })
}

fn source<'a>(image: &'a Image, suite: &'a Verified) -> Source<'a> {
    let archive = &image.archives[suite.archive];
    let Release { origin, label, codename, .. } = &suite.release;
    // Without any of them the pin would match every package.
    let fields = [("o", origin), ("l", label), ("n", codename)];
    let fields: Vec<String> =
        fields.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key}={value}")).collect();
    let pin = archive
        .priority
        .filter(|_| !fields.is_empty())
        .map(|priority| (format!("release {}", fields.join(",")), priority));
    Source {
        mirror: &suite.mirror,
        suite: &suite.locked.suite,
        components: &suite.locked.components,
        keyring: &suite.keyring,
        pin,
    }
}

/// Fetches and verifies all suites of one archive and adds their packages to `index`.
fn verify_archive(
    image: &Image,
    n: usize,
    cache: &Cache,
    work: &Path,
    index: &mut Index,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<Vec<Verified>> {
    let archive = &image.archives[n];
    let keyring = keyring(image, archive, work)?;
    let bases = apt::bases(image, archive);
    let mirror = work.join("mirrors").join(&archive.id);
    let mut suites = Vec::new();
    for suite in &archive.suites {
        let dists = format!("dists/{suite}");
        let path = format!("{dists}/InRelease");
        let (inrelease, base) = fetch::get(&bases.urls, &path, &format!("the suite `{suite}`"), INRELEASE_LIMIT)
            .map_err(|error| name_suite(image, archive, suite, error))?;
        let url = format!("{base}/{path}");
        let signed = signature::verify(&inrelease, &keyring, &archive.fingerprints, &url, work)?;
        let release = Release::parse(&signed.text).with_context(|| format!("reading {url}"))?;
        check_dates(&release, &url, archive.url.snapshot().is_some() || (bases.from_host && host_ignores_dates()))?;
        fs_err::create_dir_all(mirror.join(&dists))?;
        fs_err::write(mirror.join(&path), &inrelease)?;

        let mut architectures = vec![image.architecture.as_str()];
        architectures.extend(release.separate_all.then_some("all"));
        for component in &archive.components {
            for architecture in &architectures {
                let directory = format!("{component}/binary-{architecture}");
                let text = package_index(&release, &directory, &base, &dists, &mirror, cache, report)?;
                let Some(text) = text else {
                    if *architecture == "all" {
                        continue;
                    }
                    return Err(Problem::new(
                        format!("suite `{suite}` has no packages for component `{component}` and `{architecture}`"),
                        image.at(archive.line),
                        "correct `components` or `architecture` in image.toml",
                    )
                    .into());
                };
                index.add(n, &text).with_context(|| format!("reading the index {directory} of {url}"))?;
            }
        }
        let locked = Suite {
            archive: archive.id.clone(),
            suite: suite.clone(),
            components: archive.components.clone(),
            inrelease_sha256: Sha256::of(&inrelease),
            signer: signed.signer,
            date: release.date,
            valid_until: release.valid_until,
        };
        suites.push(Verified { locked, release, archive: n, mirror: mirror.clone(), keyring: keyring.clone() });
    }
    Ok(suites)
}

fn keyring(image: &Image, archive: &Archive, work: &Path) -> anyhow::Result<PathBuf> {
    let path = &archive.key.value;
    if !path.is_file() {
        let package = image.distribution.archives.iter().find(|official| Path::new(official.keyring) == path);
        let remedy = match package {
            Some(official) => format!("apt-get install {}", official.keyring_package),
            None => "correct `key` in image.toml".to_owned(),
        };
        let what = format!("the keyring `{}` of archive `{}` does not exist", path.display(), archive.id);
        return Err(Problem::new(what, image.at(archive.key.line), remedy).into());
    }
    let path = std::path::absolute(path).context("making the keyring's path absolute")?;
    signature::binary_keyring(&path, work)
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

fn check_dates(release: &Release, url: &str, excused: bool) -> anyhow::Result<()> {
    let now = Timestamp::now();
    if excused {
        return Ok(());
    }
    if let Some(until) = release.valid_until.filter(|until| *until < now) {
        return Err(Problem::new(
            format!("the mirror is out of date: its index was valid until {until}"),
            url,
            "use a mirror that is kept up to date, or give the archive a `snapshot` if the old state is wanted",
        )
        .into());
    }
    if release.date > now + CLOCK_SKEW {
        return Err(Problem::new(
            format!("the index was made in the future ({})", release.date),
            url,
            "set this host's clock",
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

/// One verified `Packages` index, also laid out for apt; `None` if the suite has none.
fn package_index(
    release: &Release,
    directory: &str,
    base: &str,
    dists: &str,
    mirror: &Path,
    cache: &Cache,
    report: &dyn Fn(Event<'_>),
) -> anyhow::Result<Option<String>> {
    let plain = format!("{directory}/Packages");
    for suffix in [".xz", ".gz", ""] {
        let file = format!("{plain}{suffix}");
        let Some((sha256, size)) = release.file(&file) else { continue };
        let place = if release.by_hash { format!("{directory}/by-hash/SHA256/{sha256}") } else { file.clone() };
        let item = Item {
            name: format!("index {file}"),
            bases: vec![base.to_owned()],
            path: format!("{dists}/{place}"),
            size,
            sha256,
        };
        let packed = fetch::read(&item, cache, report)?;
        let local = mirror.join(dists).join(&file);
        fs_err::create_dir_all(mirror.join(dists).join(directory))?;
        fs_err::write(&local, &packed)?;
        let text = unpack(&packed, suffix).with_context(|| format!("unpacking {dists}/{file}"))?;
        return Ok(Some(String::from_utf8(text).with_context(|| format!("reading {dists}/{file}"))?));
    }
    Ok(None)
}

fn unpack(packed: &[u8], suffix: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    match suffix {
        ".xz" => liblzma::read::XzDecoder::new_multi_decoder(packed).read_to_end(&mut text)?,
        ".gz" => flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut text)?,
        _ => {
            text.extend_from_slice(packed);
            text.len()
        }
    };
    Ok(text)
}

/// Every name and pin of the recipe must exist; all that do not are reported together.
fn check_wanted(image: &Image, wanted: &[Wanted], index: &Index) -> anyhow::Result<()> {
    let problem = |wanted: &Wanted| {
        let versions = index.versions(&wanted.package);
        if versions.is_empty() {
            let archives: Vec<&str> = image.archives.iter().map(|archive| archive.id.as_str()).collect();
            let remedy = match closest(&wanted.package, index.names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "correct the name, or add the archive that has it".to_owned(),
            };
            let what = format!("unknown package `{}`: not in {}", wanted.package, archives.join(", "));
            return Some(Problem::new(what, image.at(wanted.line), remedy));
        }
        let pin = wanted.pin.as_deref().filter(|pin| !versions.contains(pin))?;
        let what = format!("package `{}` has no version `{pin}`", wanted.package);
        let remedy = format!("available: {}; or write version = \"locked\"", versions.join(", "));
        Some(Problem::new(what, image.at(wanted.line), remedy))
    };
    let problems: Vec<Problem> = wanted.iter().filter_map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems).into()) }
}

/// The nearest of tens of thousands of names by spelling, if it is near enough to be meant.
fn closest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let scored = names.map(|name| (strsim::jaro_winkler(word, name), name));
    let (score, best) = scored.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))?;
    (score >= 0.85).then_some(best)
}
