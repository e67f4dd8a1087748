//! Records of finished steps. Owner of every field: `apply`; everybody else reads.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// Which steps were finished, with what input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the format.
    pub schema: u32,
    /// Records by step.
    pub steps: BTreeMap<String, Record>,
}

/// One finished step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// SHA-256 of everything the step was given.
    pub input_digest: String,
    /// When it finished (RFC 3339, UTC).
    pub finished_at: String,
    /// Boot in which it finished: what lives in `/run` and `/etc` must be done once a boot.
    pub boot_id: String,
}

impl State {
    /// Reads the records; none on a first boot.
    pub fn load(layout: &Layout) -> Result<Self> {
        Ok(crate::durable::read_json(&layout.state())?.unwrap_or(Self { schema: 1, steps: BTreeMap::new() }))
    }

    /// Adds a record and writes all of them durably: a step that is not recorded has not happened.
    pub fn record(&mut self, layout: &Layout, id: &str, input_digest: &str, boot_id: &str) -> Result<()> {
        let finished_at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let record = Record { input_digest: input_digest.to_owned(), finished_at, boot_id: boot_id.to_owned() };
        self.steps.insert(id.to_owned(), record);
        crate::durable::write_json(&layout.state(), self, 0o600)
    }
}
