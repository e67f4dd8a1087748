//! Keepalived, once the virtual IP is known to be free. Nothing waits for it: a database does not start later because
//! somebody else has the address.

use anyhow::Result;

use super::Host;
use crate::plan::Desired;
use crate::vip::Keeper;

pub(super) fn apply(host: &Host, desired: &Desired, unit: &str) -> Result<()> {
    let Some(keeper) = Keeper::new(host, desired, unit)? else { return Ok(()) };
    if host.layout.is_live() {
        tokio::spawn(keeper.run());
    }
    Ok(())
}
