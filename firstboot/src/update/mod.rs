//! Another version of the image for this node: into the slot that does not run, then one file for the boot loader.
//!
//! ```text
//! set -> refused? -> fits the data? -> clear the other slot -> write, read back, root hash -> name it -> UKI with tries
//! ```
//!
//! Nothing is written before everything that can be known has been checked. The other slot has no name while it is written
//! and the boot loader no file that leads to it, so a crash at any moment leaves the running version as the next boot's
//! choice; only the last step, one rename, makes it the new one. Tried and never good, it is given up by the boot loader
//! (`loader`), which then starts the version that is running now.
//!
//! A whole cluster takes a version one node at a time: `roll`.

use std::cmp::Ordering;
use std::fs::TryLockError;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::durable;
use crate::image_info::ImageInfo;
use crate::layout::Layout;
use crate::problem::Problem;

pub mod fits;
pub mod gpt;
pub mod loader;
pub mod order;
pub mod set;
pub mod slots;
pub mod tries;
pub mod verity;

use fits::Misfit;
use loader::Entry;
use set::Set;
pub(crate) use set::public_tls;
use slots::Slots;

/// How often a new version is tried that was never good.
pub const TRIES: u32 = 3;

/// What the operator allows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allow {
    /// A version that is older than the running one.
    pub older: bool,
    /// Other collations under the data.
    pub collations: bool,
}

/// What an update did.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    /// What runs now.
    pub from: String,
    /// What the next boot starts.
    pub to: String,
    /// Its root hash.
    pub root_hash: String,
    /// Bytes of root and hash tree.
    pub bytes: u64,
    /// The boot loader's file.
    pub uki: String,
    /// How often it is tried before the boot loader goes back.
    pub tries: u32,
    /// Files of older versions that were removed.
    pub removed: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// How far an update is: what is being done, and the share of all bytes.
pub type Report<'a> = &'a dyn Fn(&str, Option<f64>);

/// Puts a set into the other slot and makes it the next boot's choice.
pub async fn apply(layout: &Layout, set: &Set, allow: Allow, tries: u32, report: Report<'_>) -> Result<Done> {
    let started = Instant::now();
    let image = ImageInfo::load(layout)?;
    refuse(set, &image, allow)?;
    fit(layout, set, allow).await?;
    let slots = Slots::find(layout)?;
    slots.check_room(set)?;
    put(layout, set, &image, &slots, tries, report, started)
}

/// Held while the other slot is written: an operator and a roll may want to at once. A lock of a process that is gone is free.
pub fn lock(layout: &Layout, wait: bool, report: Report<'_>) -> Result<std::fs::File> {
    let path = layout.run().join("update.lock");
    durable::create_dir(&layout.run(), 0o755)?;
    let file = fs_err::File::create(&path)?.into_parts().0;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) if wait => {
            report("waiting for another update of this node", None);
            file.lock().context("waiting for another update")?;
        }
        Err(TryLockError::WouldBlock) => {
            let remedy = "look at `firstboot update --status`, and begin again when it has ended; with `--wait` it is waited for";
            return Err(
                Problem::new("another update of this node is under way", path.display().to_string(), remedy).into()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).context("locking the other slot"),
    }
    Ok(file)
}

/// The part that writes.
fn put(
    layout: &Layout,
    set: &Set,
    image: &ImageInfo,
    slots: &Slots,
    tries: u32,
    report: Report<'_>,
    started: Instant,
) -> Result<Done> {
    let esp = layout.at(slots::ESP);
    let present = loader::entries(&esp)?;
    let running = running(&present, slots, image)?;
    let old: Vec<Entry> = present.iter().filter(|entry| **entry != running).cloned().collect();
    report("clearing the other slot", None);
    // Its file first: a boot loader must not choose a slot that is being written.
    loader::remove(&old)?;
    slots.clear()?;
    let all = 2 * set.root.bytes + set.hashes.bytes;
    let mut done = 0;
    report("writing and reading back", Some(0.0));
    slots.write(set, &mut |bytes| {
        done += bytes;
        report("writing and reading back", Some(done as f64 / all as f64));
    })?;
    slots.name(set)?;
    report("installing the kernel image", None);
    let id = loader::id_for(&set.uki.name, &set.image.version, std::slice::from_ref(&running))?;
    let uki = loader::install(&esp, &id, tries, &mut *set.source.open(&set.uki.name)?, &set.uki.sha256)?;
    let name = |path: &std::path::Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Done {
        from: image.version.clone(),
        to: set.image.version.clone(),
        root_hash: set.root_hash.clone(),
        bytes: set.root.bytes + set.hashes.bytes,
        uki: name(&uki),
        tries,
        removed: old.iter().map(|entry| name(&entry.path)).collect(),
        seconds: (started.elapsed().as_secs_f64() * 10.0).round() / 10.0,
    })
}

/// The boot loader's file of what runs: it is what a bad new version falls back to, so it must have been good itself.
fn running(present: &[Entry], slots: &Slots, image: &ImageInfo) -> Result<Entry> {
    let of_running = |entry: &&Entry| match slots.running() {
        Some(hash) => entry.root_hash.as_deref() == Some(hash),
        None => entry.root_hash.is_none(),
    };
    let found = present.iter().find(of_running).cloned().ok_or_else(|| {
        let what = format!("the boot loader has no file for the running version {}", image.version);
        let remedy = "without one there is nothing to fall back to: boot the node from its own disk, then update";
        Problem::new(what, format!("{}/EFI/Linux", slots::ESP), remedy)
    })?;
    if found.left.is_some() {
        let what = format!("the running version {} has not been good yet", image.version);
        let remedy = "wait until `firstboot status` says good, or find out why it does not: an update now would leave nothing \
                      to fall back to";
        return Err(Problem::new(what, found.path.display().to_string(), remedy).into());
    }
    Ok(found)
}

/// Refuses what is not another version of this image.
pub fn refuse(set: &Set, image: &ImageInfo, allow: Allow) -> Result<(), Problem> {
    let place = set.source.place("manifest.json");
    let refuse = |what: String, remedy: &str| Err(Problem::new(what, place.clone(), remedy));
    let this = "bake the set from the recipe this node was made from";
    if set.image.name != image.name {
        return refuse(format!("the set is of image `{}`, this node runs `{}`", set.image.name, image.name), this);
    }
    if set.image.variant != image.variant {
        return refuse(format!("the set is of variant `{}`, this node `{}`", set.image.variant, image.variant), this);
    }
    let own = architecture();
    if set.architecture != own {
        return refuse(format!("the set is for {} machines, this one is {own}", set.architecture), this);
    }
    let (new, old) = (&set.image.version, &image.version);
    if new == old {
        return refuse(format!("version {new} runs here already"), "there is nothing to do");
    }
    // Two bakes of one day are neither older nor newer than each other.
    if order::compare(day(new), day(old)) == Ordering::Less && !allow.older {
        let what = format!("version {new} is older than the running {old}");
        return refuse(what, "with `--older` it is taken all the same; old versions have old faults");
    }
    Ok(())
}

/// Versions begin with the day their packages are from.
fn day(version: &str) -> &str {
    version.split('.').next().unwrap_or(version)
}

/// As Debian calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether the data here fits the set's image (safety rule 10), before anything is written.
async fn fit(layout: &Layout, set: &Set, allow: Allow) -> Result<()> {
    let problem = match fits::check_anew(layout, &set.image, set.catalog)? {
        Ok(()) => return Ok(()),
        Err(Misfit::Server(problem)) => return Err(problem.into()),
        Err(Misfit::Collation(problem)) => problem,
    };
    if !allow.collations
        && let Some(problem) = fits::with_indexes(problem).await
    {
        return Err(problem.into());
    }
    // Accepted, or no index depends on them: the next boot must know.
    fits::accept(layout, &set.image).context("remembering that other collations are accepted")
}

/// What `firstboot update --status` says of this node.
#[derive(Debug, Clone, Serialize)]
pub struct Present {
    /// Name of the image.
    pub image: String,
    /// The running version.
    pub running: String,
    /// Its root hash.
    pub root_hash: Option<String>,
    /// What the other slot is called; `null` if this machine has none.
    pub other_slot: Option<String>,
    /// The boot loader's files, the next boot's choice first.
    pub loader: Vec<Choice>,
}

/// One of the boot loader's files.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// Its name.
    pub file: String,
    /// Whether it is what runs.
    pub running: bool,
    /// Tries it has left; `null`: it was good.
    pub tries_left: Option<u32>,
}

/// Looks at this node.
pub fn present(layout: &Layout) -> Result<Present> {
    let image = ImageInfo::load(layout)?;
    let slots = Slots::find(layout).ok();
    let running = slots.as_ref().and_then(Slots::running).map(str::to_owned);
    let choice = |entry: Entry| Choice {
        file: entry.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        running: slots.is_some() && entry.root_hash == running,
        tries_left: entry.left,
    };
    Ok(Present {
        image: image.name,
        running: image.version,
        other_slot: slots.as_ref().and_then(|slots| slots.other().ok()),
        loader: loader::entries(&layout.at(slots::ESP))?.into_iter().map(choice).collect(),
        root_hash: running,
    })
}

#[cfg(test)]
pub(crate) mod tests;
