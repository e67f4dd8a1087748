//! Time zone and time service.

use anyhow::{Context, Result};
use fs_err as fs;

use super::{File, Host};
use crate::problem::Problem;
use crate::tool;

pub(super) async fn apply(host: &Host, zone: Option<&str>, sources: Option<&str>, unit: Option<&str>) -> Result<()> {
    if let Some(zone) = zone {
        let file = format!("/usr/share/zoneinfo/{zone}");
        if !host.layout.at(&file).is_file() {
            let what = format!("time zone `{zone}` is not in this image");
            return Err(Problem::new(what, "timezone", "write it like `Europe/Berlin`").into());
        }
        let link = host.layout.at("/etc/localtime");
        let new = host.layout.at("/etc/.localtime.new");
        let _ = fs::remove_file(&new);
        fs::os::unix::fs::symlink(&file, &new).context("setting the time zone")?;
        fs::rename(new, link)?;
    }
    if let Some(sources) = sources {
        File::public("/etc/chrony/sources.d/pgkiln.sources", sources).write(&host.layout)?;
    }
    if let Some(unit) = unit.filter(|_| host.layout.is_live()) {
        // Not waited for: a database does not start later because a time server is slow.
        tool::systemctl(&["start", "--no-block", unit]).run().await?;
    }
    Ok(())
}
