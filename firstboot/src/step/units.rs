//! Starting services.

use anyhow::Result;

use super::Host;
use crate::problem::Problem;
use crate::tool;

pub(super) async fn start(host: &Host, unit: &str) -> Result<()> {
    if !host.layout.is_live() {
        return Ok(());
    }
    // Forget failures of an earlier attempt: the start limit would refuse this one.
    let _ = tool::systemctl(&["reset-failed", unit]).run().await;
    tool::systemctl(&["start", unit]).run().await.map(drop).map_err(|error| {
        let remedy = format!("look at `journalctl -b -u {unit}`");
        Problem::new(format!("{unit} does not start: {error}"), unit, remedy).into()
    })
}
