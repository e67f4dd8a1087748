//! A network before anything says what the network is: DHCP on every wired interface, until the specification is known.

use anyhow::Result;
use fs_err as fs;

use crate::layout::Layout;
use crate::{durable, facts, tool};

/// Sorts after the files of the specification, so that theirs count as soon as they are there.
const FILE: &str = "/run/systemd/network/90-pgkiln-seed.network";
const TEXT: &str = "# Written by firstboot: the metadata comes over the network.\n[Match]\nType=ether\nKind=!*\n\n[Link]\n\
                    RequiredForOnline=no\n\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nLLDP=no\n\n\
                    # The default identifier comes from the machine-id, which this boot may not have yet.\n[DHCPv4]\n\
                    ClientIdentifier=mac\nUseHostname=no\n";

/// Asks for an address unless this machine has one: from its installed network, or from an earlier run of this boot.
pub(super) async fn ask(layout: &Layout) -> Result<()> {
    if !layout.is_live() || facts::is_on_a_network() || layout.at(FILE).exists() {
        return Ok(());
    }
    durable::write_volatile(&layout.at(FILE), TEXT.as_bytes(), 0o644, None)?;
    tool::systemctl(&["reload-or-restart", "systemd-networkd.service"]).run().await.map(drop)
}

/// Forgets that address was asked for: from now on the specification's network counts. `true` if it was.
pub fn forget(layout: &Layout) -> Result<bool> {
    match fs::remove_file(layout.at(FILE)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}
