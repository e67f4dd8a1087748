//! Host name and `/etc/hosts`. `/etc` is memory, so both are written at every boot.

use anyhow::{Context, Result};

use super::{File, Host};

pub(super) fn apply(host: &Host, name: &str, hosts: &str) -> Result<()> {
    File::public("/etc/hostname", format!("{name}\n")).write(&host.layout)?;
    File::public("/etc/hosts", hosts).write(&host.layout)?;
    if host.layout.is_live() {
        nix::unistd::sethostname(name).context("setting the host name")?;
    }
    Ok(())
}
