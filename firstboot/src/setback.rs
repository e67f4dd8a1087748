//! How often one step that needs nobody else has failed in a row. A failure ends the agent, which is started again: the count is a
//! file of this boot.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::layout::Layout;

#[derive(Debug, Serialize, Deserialize)]
struct Setback {
    step: String,
    times: u32,
}

fn path(layout: &Layout) -> PathBuf {
    layout.run().join("setback.json")
}

/// A step has failed once more; says how often it has now.
pub fn count(layout: &Layout, step: &str) -> Result<u32> {
    let before = durable::read_json::<Setback>(&path(layout)).ok().flatten().filter(|before| before.step == step);
    let times = before.map_or(0, |before| before.times).saturating_add(1);
    let text = serde_json::to_vec(&Setback { step: step.to_owned(), times })?;
    durable::write_volatile(&path(layout), &text, 0o644, None)?;
    Ok(times)
}

/// The step has not failed this time.
pub fn over(layout: &Layout, step: &str) -> Result<()> {
    match durable::read_json::<Setback>(&path(layout)) {
        Ok(Some(setback)) if setback.step != step => Ok(()),
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => durable::remove(&path(layout)),
    }
}

/// Whether the last attempt failed at such a step.
pub fn is_there(layout: &Layout) -> bool {
    path(layout).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_one_step_in_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let counted = ["haproxy", "haproxy", "pki", "haproxy"].map(|step| count(&layout, step).unwrap());
        assert_eq!(counted, [1, 2, 1, 1]);
        assert!(is_there(&layout));
        over(&layout, "pki").unwrap();
        assert!(is_there(&layout), "another one");
        over(&layout, "haproxy").unwrap();
        over(&layout, "haproxy").unwrap();
        assert!(!is_there(&layout));
        assert_eq!(count(&layout, "haproxy").unwrap(), 1);
    }
}
