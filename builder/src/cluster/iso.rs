//! A `cidata` volume: ISO 9660 with Rock Ridge and Joliet names, as every datasource called NoCloud reads it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

use super::files;
use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// Writes the files of `dir` as the volume `cidata` into the file `to` (0600).
pub(super) fn write(dir: &Path, to: &Path) -> anyhow::Result<()> {
    let xorriso = table::XORRISO.find();
    let cmd = match (&xorriso, table::GENISOIMAGE.find()) {
        (Ok(_), _) => Cmd::new(&table::XORRISO).args(["-as", "mkisofs"]),
        (Err(_), Ok(_)) => Cmd::new(&table::GENISOIMAGE),
        (Err(problem), Err(_)) => {
            let remedy = format!("{}, or write --format dir", problem.remedy);
            return Err(Problem::new(problem.what.clone(), problem.place.clone(), remedy).into());
        }
    };
    // The tool makes its file for everybody to read: nobody else may come near before that is changed.
    let private = files::private_temporary_dir(to.parent().context("path of the volume")?)?;
    let made = private.path().join("cidata");
    cmd.args(["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"]).arg(&made).arg(dir).run()?;
    let file = fs_err::File::open(&made)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.sync_all()?;
    Ok(fs_err::rename(&made, to)?)
}
