//! `raw`: the disk as it is.

use std::path::PathBuf;

use super::Inputs;
use crate::disk::Disk;

/// Moves nothing: other formats are made from the same file, so it gets a second name.
pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let path = inputs.path("raw");
    fs_err::hard_link(&disk.raw, &path)?;
    Ok(vec![path])
}
