//! Network: files for systemd-networkd, then the address itself, not a target that claims it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{File, Host};
use crate::retry::{Failure, Policy, retry};
use crate::{facts, tool};

pub(super) async fn apply(host: &Host, files: &[File], address: IpAddr) -> Result<()> {
    for file in files {
        file.write(&host.layout)?;
    }
    if !host.layout.is_live() {
        return Ok(());
    }
    if !files.is_empty() && !facts::has_address(address) {
        // Starts it if it is not running yet, and makes it read the new files if it is.
        tool::systemctl(&["reload-or-restart", "systemd-networkd.service"]).run().await?;
    }
    let policy = Policy { first: Duration::from_millis(10), ..Policy::PROMPT }.within(Duration::from_secs(90));
    let waiting = |_: &anyhow::Error, since: Duration| {
        host.board.waiting(format!(
            "address {address} on this machine for {} s; check link and network-config",
            since.as_secs()
        ));
    };
    let attempt = async || {
        if facts::has_address(address) {
            return Ok(());
        }
        Err(Failure::Again(anyhow::anyhow!("address {address} is not configured")))
    };
    let result = retry(policy, waiting, attempt).await.context("waiting for the network");
    host.board.waited();
    result
}
