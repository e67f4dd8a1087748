//! machine-id: systemd makes one at the first boot of an image without it; kept with the data so that the journal of
//! all boots is one journal.

use anyhow::Result;
use fs_err as fs;

use super::{File, Host};
use crate::durable;

pub(super) fn apply(host: &Host) -> Result<()> {
    let kept = host.layout.lib().join("machine-id");
    let current = host.layout.at("/etc/machine-id");
    let read = |path: &std::path::Path| fs::read_to_string(path).ok().filter(|id| is_machine_id(id.trim()));
    match (read(&kept), read(&current)) {
        (None, Some(current)) => durable::write(&kept, current.as_bytes(), 0o444),
        (Some(kept), current_id) if current_id.as_ref() != Some(&kept) => {
            let written = File { mode: 0o444, ..File::public("/etc/machine-id", kept) }.write(&host.layout);
            // A container manager may have bound its own file there.
            written.or_else(|error| {
                tracing::info!("machine-id is set from outside: {error:#}");
                Ok(())
            })
        }
        _ => Ok(()),
    }
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.chars().all(|c| c.is_ascii_hexdigit())
}
