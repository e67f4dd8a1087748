//! The founding bundle: what the first voters need before there is a cluster that could hand it out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Secret;

/// Certificates and first passwords, embedded in the seeds of the founding voters and wiped from them once accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Founding {
    /// Version of the bundle.
    pub schema: u32,
    /// Root CA certificate, PEM.
    pub ca: String,
    /// Intermediate that signs the nodes' certificates.
    pub intermediate: Intermediate,
    /// Passwords of the cluster's own users.
    pub passwords: Passwords,
    /// SCRAM verifiers of application roles: role to `SCRAM-SHA-256$…`. The password itself never reaches a node.
    #[serde(default)]
    pub roles: BTreeMap<String, String>,
    /// Nodes without a vote that may join: slot to what their token must be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub joiners: BTreeMap<String, Joiner>,
}

/// What a voter knows about a token; never the token itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joiner {
    /// SHA-256 of the token, in hexadecimal.
    pub token_sha256: String,
    /// How often a token was issued for the slot; a later one replaces the node that used an earlier one.
    pub issue: u32,
}

/// An intermediate CA with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intermediate {
    /// Certificate, PEM.
    pub cert: String,
    /// Private key, PEM (PKCS#8).
    #[serde(serialize_with = "Secret::write")]
    pub key: Secret,
}

/// Passwords of the cluster's own users: 32 random characters each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passwords {
    /// PostgreSQL superuser `postgres`.
    #[serde(serialize_with = "Secret::write")]
    pub superuser: Secret,
    /// PostgreSQL role `replicator`.
    #[serde(serialize_with = "Secret::write")]
    pub replication: Secret,
    /// PostgreSQL role `rewind`.
    #[serde(serialize_with = "Secret::write")]
    pub rewind: Secret,
    /// Unsafe methods of Patroni's REST interface.
    #[serde(serialize_with = "Secret::write")]
    pub patroni_rest: Secret,
    /// etcd user `root`.
    #[serde(serialize_with = "Secret::write")]
    pub etcd_root: Secret,
    /// etcd user of the agents.
    #[serde(serialize_with = "Secret::write")]
    pub etcd_agent: Secret,
    /// etcd user of Patroni.
    #[serde(serialize_with = "Secret::write")]
    pub etcd_patroni: Secret,
    /// etcd user of the proxies (read only).
    #[serde(serialize_with = "Secret::write")]
    pub etcd_proxy: Secret,
    /// Encryption of the backup repository.
    #[serde(serialize_with = "Secret::write")]
    pub repository: Secret,
}
