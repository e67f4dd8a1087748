//! `pgkiln show`: what an image consists of, where it comes from and what vouches for it.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Beside;
use crate::advisory::{self, Warning};
use crate::apt;
use crate::image::Image;
use crate::lock::{Lock, keyring_package, stale};
use crate::progress::{Ui, size};

/// Which image.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the image (images/debian-13)
    image: PathBuf,
    /// List every package
    #[arg(long)]
    packages: bool,
    #[command(flatten)]
    beside: Beside,
}

#[derive(Debug, Serialize)]
struct Shown {
    image: String,
    distribution: &'static str,
    suite: String,
    architecture: String,
    variant: Option<String>,
    variants: Vec<String>,
    other_architectures: Vec<String>,
    bakes_here: bool,
    extensions: Vec<ShownExtension>,
    components: Vec<ShownComponent>,
    archives: Vec<ShownArchive>,
    warnings: Vec<Warning>,
    lock: Option<ShownLock>,
}

#[derive(Debug, Serialize)]
struct ShownComponent {
    name: String,
    package: String,
    pinned: Option<String>,
    locked: Option<String>,
    unit: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownExtension {
    name: String,
    package: String,
    locked: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownArchive {
    id: String,
    urls: Vec<String>,
    from_host: bool,
    overlaid: bool,
    suites: Vec<String>,
    components: Vec<String>,
    key: String,
    fingerprints: Vec<String>,
    priority: Option<i64>,
    snapshot: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownLock {
    file: String,
    sha256: String,
    date: String,
    satisfied: bool,
    stale: Vec<String>,
    packages: usize,
    bytes: u64,
    suites: Vec<ShownSuite>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    list: Vec<ShownPackage>,
}

#[derive(Debug, Serialize)]
struct ShownSuite {
    archive: String,
    suite: String,
    signer: String,
    date: String,
    inrelease_sha256: String,
}

#[derive(Debug, Serialize)]
struct ShownPackage {
    name: String,
    version: String,
    arch: String,
    archive: String,
    size: u64,
    sha256: String,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let image = Image::load_with(&args.image, &args.beside.into())?;
    let lock = Lock::load(&image.lock_file())?;
    let shown = look(&image, lock.as_ref(), args.packages);
    ui.say(text(&shown).trim_end());
    ui.result(&shown)
}

fn look(image: &Image, lock: Option<&Lock>, packages: bool) -> Shown {
    let components = image.components.iter().map(|(name, component)| ShownComponent {
        name: name.clone(),
        package: component.package.value.clone(),
        pinned: component.pin.as_ref().map(|pin| pin.value.clone()),
        locked: lock.and_then(|lock| lock.package(&component.package.value)).map(|package| package.version.clone()),
        unit: component.unit.clone(),
    });
    let extensions = image.extensions.iter().map(|(name, package)| ShownExtension {
        name: name.clone(),
        package: package.value.clone(),
        locked: lock.and_then(|lock| lock.package(&package.value)).map(|package| package.version.clone()),
    });
    let archives = image.archives.iter().map(|archive| {
        let bases = apt::bases(image, archive);
        ShownArchive {
            id: archive.id.clone(),
            urls: bases.urls,
            from_host: bases.from_host,
            overlaid: archive.overlaid.is_some(),
            suites: archive.suites.clone(),
            components: archive.components.clone(),
            key: archive.key.value.to_string(),
            fingerprints: archive.fingerprints.clone(),
            priority: archive.priority,
            snapshot: archive.url.snapshot().map(str::to_owned),
        }
    });
    Shown {
        image: image.name.clone(),
        distribution: image.distribution.id,
        suite: image.suite.clone(),
        architecture: image.architecture.clone(),
        variant: image.variant.clone(),
        variants: image.kernels.keys().cloned().collect(),
        other_architectures: image.other_architectures.keys().cloned().collect(),
        bakes_here: image.check_architecture().is_ok(),
        extensions: extensions.collect(),
        components: components.collect(),
        archives: archives.collect(),
        warnings: lock.map_or_else(Vec::new, |lock| advisory::warnings(image, lock)),
        lock: lock.map(|lock| look_at_lock(image, lock, packages)),
    }
}

fn look_at_lock(image: &Image, lock: &Lock, packages: bool) -> ShownLock {
    let reasons: Vec<String> = stale::reasons(image, lock).iter().map(ToString::to_string).collect();
    let newest = lock.suites.iter().map(|suite| suite.date).max();
    let suites = lock.suites.iter().map(|suite| ShownSuite {
        archive: suite.archive.clone(),
        suite: suite.suite.clone(),
        signer: suite.signer.clone(),
        date: suite.date.to_string(),
        inrelease_sha256: suite.inrelease_sha256.to_string(),
    });
    let list = lock.packages.iter().filter(|_| packages).map(|package| ShownPackage {
        name: package.name.clone(),
        version: package.version.clone(),
        arch: package.arch.clone(),
        archive: package.archive.clone(),
        size: package.size,
        sha256: package.sha256.to_string(),
    });
    ShownLock {
        file: image.lock_file().display().to_string(),
        sha256: lock.digest().to_string(),
        date: newest.map_or_else(String::new, |date| date.to_string()),
        satisfied: reasons.is_empty(),
        stale: reasons,
        packages: lock.packages.len(),
        bytes: lock.packages.iter().map(|package| package.size).sum(),
        suites: suites.collect(),
        list: list.collect(),
    }
}

/// By upstream's numbers; whoever reads it must know that they are not the whole story.
fn warnings(warnings: &[Warning]) -> String {
    let mut out = String::new();
    if !warnings.is_empty() {
        out.push_str(
            "\nknown problems of these versions (unless the distribution mended them under the same number)\n",
        );
    }
    for one in warnings {
        out.push_str(&format!(
            "  {} {}: {}, fixed in {}\n",
            one.component,
            one.version,
            one.name,
            one.fixed.join(", ")
        ));
        out.push_str(&format!("    {}\n    source: {}\n", one.meaning, one.source));
    }
    out
}

fn text(shown: &Shown) -> String {
    let variant = shown.variant.as_deref().map_or(String::new(), |variant| format!(", {variant}"));
    let mut out =
        format!("{} ({} {}, {}{variant})\n", shown.image, shown.distribution, shown.suite, shown.architecture);
    if !shown.bakes_here {
        out.push_str(&format!(
            "baked on a machine with {} processors only: maintainer scripts run then; this one can lock and fetch it\n",
            shown.architecture
        ));
    }
    if !shown.variants.is_empty() {
        out.push_str(&format!("kernels for: {} (--variant)\n", shown.variants.join(", ")));
    }
    if !shown.other_architectures.is_empty() {
        out.push_str(&format!("also for: {} (--arch)\n", shown.other_architectures.join(", ")));
    }
    if !shown.components.is_empty() {
        out.push_str("\ncomponents\n");
    }
    for component in &shown.components {
        let version = match (&component.locked, &component.pinned) {
            (Some(locked), None) => locked.clone(),
            (Some(locked), Some(_)) => format!("{locked} (pinned)"),
            (None, Some(pinned)) => format!("{pinned} (pinned, not locked)"),
            (None, None) => "not locked".to_owned(),
        };
        out.push_str(&format!("  {:<12} {:<22} {version}\n", component.name, component.package));
    }
    if !shown.extensions.is_empty() {
        out.push_str("\nextensions (each is created on a throw-away server when baked)\n");
    }
    for extension in &shown.extensions {
        let version = extension.locked.as_deref().unwrap_or("not locked");
        out.push_str(&format!("  {:<18} {:<30} {version}\n", extension.name, extension.package));
    }
    out.push_str(&warnings(&shown.warnings));
    out.push_str("\narchives\n");
    for archive in &shown.archives {
        let origin = match (archive.overlaid, archive.from_host) {
            (true, _) => "as the overlay says",
            (false, true) => "this host's mirror",
            (false, false) => "as the recipe says",
        };
        out.push_str(&format!("  {:<16} {} ({origin})\n", archive.id, archive.urls.join(", ")));
        out.push_str(&format!("  {:<16} {}; {}\n", "", archive.suites.join(" "), archive.components.join(" ")));
        let time = archive.snapshot.as_ref().map(|time| format!("as it was at {time}"));
        let priority = archive.priority.map(|priority| format!("priority {priority}"));
        let more: Vec<String> = time.into_iter().chain(priority).collect();
        if !more.is_empty() {
            out.push_str(&format!("  {:<16} {}\n", "", more.join("; ")));
        }
        for fingerprint in &archive.fingerprints {
            out.push_str(&format!("  {:<16} key {fingerprint}\n", ""));
        }
        let vouches = match keyring_package::package_of(Path::new(&archive.key)) {
            _ if archive.key.starts_with("https://") => "only its fingerprint counts".to_owned(),
            Some(package) => format!("the tool tree's `{package}`, or this host's"),
            None => "this host's file".to_owned(),
        };
        out.push_str(&format!("  {:<16} from {} ({vouches})\n", "", archive.key));
    }
    let Some(lock) = &shown.lock else {
        return out
            + "\nno lock: run `pgkiln lock`\n\
               verified: nothing yet; pins are what the recipe asks for, whether the archives have them shows when it is locked\n"
            + NOT_VERIFIED;
    };
    out.push_str(&format!("\nlock {} of {}: {} packages, {}\n", lock.file, lock.date, lock.packages, size(lock.bytes)));
    for suite in &lock.suites {
        out.push_str(&format!("  {:<20} {} signed by {}\n", suite.suite, suite.date, suite.signer));
    }
    for reason in &lock.stale {
        out.push_str(&format!("  out of date: {reason}\n"));
    }
    for package in &lock.list {
        out.push_str(&format!("  {:<40} {:<36} {}\n", package.name, package.version, size(package.size)));
    }
    out + "verified: key → InRelease → index → package when locked; SHA-256 of every package when fetched and when baked\n"
        + NOT_VERIFIED
}

/// What no chain of signatures can say.
const NOT_VERIFIED: &str = "not verified: that the fingerprints in the recipe are the archives' own (compare them with what the \
                            owners publish)\n";
