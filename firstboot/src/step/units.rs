//! Starting services. Their drop-ins lift the start limit: an earlier attempt's failures need not be forgotten first.

use anyhow::Result;

use super::Host;
use crate::problem::Problem;
use crate::tool;

pub(super) async fn start(host: &Host, unit: &str) -> Result<()> {
    if !host.layout.is_live() {
        return Ok(());
    }
    tool::systemctl(&["start", unit]).run().await.map(drop).map_err(|error| {
        let remedy = format!("look at `journalctl -b -u {unit}`");
        Problem::new(format!("{unit} does not start: {error}"), unit, remedy).into()
    })
}
