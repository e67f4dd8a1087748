//! Network: files for systemd-networkd, then the address itself, not a target that claims it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;

use super::{File, Host};
use crate::layout::Layout;
use crate::retry::{Failure, Policy, retry};
use crate::{facts, tool};

/// Between two ARP requests (arp(7)); the kernel's own value is a second.
const ARP_AGAIN_MS: &str = "250";

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
    ask_again_soon(&host.layout);
    result
}

/// What the image's `sysctl.d` says about neighbours reaches interfaces only that appear later, and no container.
fn ask_again_soon(layout: &Layout) {
    let Ok(interfaces) = fs::read_dir(layout.at("/proc/sys/net/ipv4/neigh")) else { return };
    for interface in interfaces.filter_map(Result::ok).filter(|interface| interface.file_name() != "lo") {
        if let Err(error) = fs::write(interface.path().join("retrans_time_ms"), ARP_AGAIN_MS) {
            tracing::info!("unreachable machines are noticed later: {error}");
        }
    }
}
