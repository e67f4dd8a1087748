//! A `cidata` volume: ISO 9660 with Rock Ridge and Joliet names, as every datasource called NoCloud reads it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// Writes the files of `dir` as the volume `cidata` into the new file `to` (0600).
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
    // The directory around both is private, so nobody sees the file before its mode is set.
    cmd.args(["-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"]).arg(to).arg(dir).run()?;
    let file = fs_err::File::open(to)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file.sync_all()?)
}
