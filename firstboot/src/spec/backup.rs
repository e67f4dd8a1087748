//! Where and when backups are made. Read and checked; carried out by nodes that have a repository.

use serde::{Deserialize, Serialize};

/// Backups of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Where they are kept.
    pub repository: Repository,
    /// When full backups are made (systemd calendar expression).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// How many full backups are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_full: Option<u32>,
}

/// A place for backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// `host`: a repository host over TLS.
    #[serde(rename = "type")]
    pub kind: String,
    /// Name or address of the repository host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}
