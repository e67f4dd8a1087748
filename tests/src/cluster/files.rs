//! The files a node made, as digests, to be compared with those of a later moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context;

use super::TestCluster;

/// What legitimately changes while a node runs: the board shown by `firstboot status`, and records naming the boot.
const CHANGES: [&str; 2] = ["/run/pgkiln/status.json", "/var/lib/pgkiln/state.json"];

/// Path, mode, owner and digest of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests(pub BTreeMap<String, String>);

impl Digests {
    /// Files of `self` that are missing or different in `later`, one per line; empty if none.
    pub fn lost_or_changed(&self, later: &Self) -> String {
        let mut text = String::new();
        for (path, was) in &self.0 {
            match later.0.get(path) {
                Some(is) if is == was => {}
                Some(is) => drop(writeln!(text, "{path}: was {was}, is {is}")),
                None => drop(writeln!(text, "{path}: gone")),
            }
        }
        text
    }

    /// Only the files for which `keep` holds.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self(
            self.0.iter().filter(|(path, _)| keep(path)).map(|(path, digest)| (path.clone(), digest.clone())).collect(),
        )
    }
}

impl TestCluster {
    /// Everything the agent wrote on a node, except what tells the time.
    pub fn digest_tree(&self, slot: &str) -> anyhow::Result<Digests> {
        let list = "find /var/lib/pgkiln /run/pgkiln -type f -exec stat -c '%a %U %n' {} + -exec sha256sum {} +";
        let text = self.output(slot, &["sh", "-c", list])?;
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        for line in text.lines() {
            let (rest, path) = line.split_at(line.find('/').context("every line names a file")?);
            if !CHANGES.contains(&path) {
                let entry = files.entry(path.to_owned()).or_default();
                let _ = write!(entry, "{} ", rest.trim());
            }
        }
        Ok(Digests(files))
    }
}
