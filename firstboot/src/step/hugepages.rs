//! Huge pages before PostgreSQL starts. Never a reason to fail: PostgreSQL runs without them.

use anyhow::Result;

use super::Host;
use crate::tune::hugepages::Question;

pub(super) async fn apply(host: &Host, question: &Question) -> Result<()> {
    if host.layout.is_live()
        && let Some(note) = question.reserve(&host.layout).await
    {
        tracing::warn!("{note}");
        host.board.note(note);
    }
    Ok(())
}
