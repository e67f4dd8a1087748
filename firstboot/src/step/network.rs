//! Network: files for systemd-networkd, then the address itself, not a target that claims it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;

use super::{File, Host};
use crate::datasource::dhcp;
use crate::layout::Layout;
use crate::retry::{Failure, Policy, retry};
use crate::{facts, tool};

/// Between two ARP requests (arp(7)); the kernel's own value is a second.
const ARP_AGAIN_MS: &str = "250";
/// What networkd needs at most to take a link's leased address away; it does so at once.
const RECONFIGURED: Duration = Duration::from_millis(500);

pub(super) async fn apply(host: &Host, files: &[File], address: IpAddr) -> Result<()> {
    for file in files {
        file.write(&host.layout)?;
    }
    if !host.layout.is_live() {
        return Ok(());
    }
    // What DHCP gave while nobody knew better is not this node's network, even if the address is the same.
    let leased = !files.is_empty() && dhcp::forget(&host.layout)?;
    if leased || (!files.is_empty() && !facts::has_address(address)) {
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
    let mut settled = !leased;
    let attempt = async || {
        if facts::has_address(address) {
            if settled {
                return Ok(());
            }
            // It may be the leased one, which goes before it comes again.
            settled = true;
            tokio::time::sleep(RECONFIGURED).await;
            return Err(Failure::Again(anyhow::anyhow!("the address is configured anew")));
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
