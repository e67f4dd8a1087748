//! Machines whose root is not on a disk of their own: live ones, which need a disk for their data (`state-disk`), and those that
//! write themselves to one (`install`).
//!
//! It is the one that is named, or the one that is provably blank; and nothing is written before the decision.

pub mod boot_entry;
pub mod choose;
pub mod contents;
pub mod disks;
pub mod machine;
pub mod mark;
pub mod seed;
pub mod source;
pub mod state;
pub mod wanted;
pub mod write;

#[cfg(test)]
mod signatures;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Result;

use crate::layout::Layout;
use crate::problem::Problem;
use crate::spec::SystemDisk;
use crate::{datasource, stored};

/// For programs that write file systems or wait for devices, on slow disks.
const PATIENCE: Duration = Duration::from_secs(600);

/// To the console, where somebody may be watching, and to the journal.
fn say(text: &str) {
    eprintln!("pgkiln: {text}");
}

fn cmdline(layout: &Layout) -> Result<String> {
    Ok(fs_err::read_to_string(layout.at("/proc/cmdline"))?)
}

/// The disk the metadata names, if a seed is attached.
fn metadata_disk(layout: &Layout) -> Result<Option<SystemDisk>> {
    let Some(seed) = datasource::find(layout)? else { return Ok(None) };
    let (accepted, _) = stored::read_seed(&seed).map_err(first)?;
    Ok(accepted.spec.disks.system)
}

/// One of several problems; there is always one.
fn first(problems: Vec<Problem>) -> anyhow::Error {
    problems.into_iter().next().map_or_else(|| anyhow::anyhow!("the seed is refused without a reason"), Into::into)
}
