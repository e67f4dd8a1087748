//! The node's specification: what the `pgkiln:` section of the user-data says this node must become.
//!
//! [`read`] turns text into [`NodeSpec`] and reports every problem at once, each with its line. The builder writes the
//! same types. Secrets print as `****` and are written only where a field says so.

mod backup;
mod check;
mod founding;
mod held;
mod members;
mod postgres;
mod read;
pub mod reader;
mod secret;
#[cfg(test)]
mod tests;
pub mod tree;
mod tweaks;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use backup::{Backup, Repository, is_calendar};
pub use check::{founding_fits, missing_secrets, pem_sha256};
pub use founding::{Founding, Intermediate, Joiner, Passwords};
pub use held::{Held, Password, Secrets};
pub use members::Member;
pub use postgres::{Database, Durability, PgRole, Postgres, Rto, is_plugin, is_preloaded};
pub use read::read;
pub use secret::Secret;
pub use tweaks::Tweaks;

/// Version of the `pgkiln:` section this agent reads and writes.
pub const SCHEMA: u32 = 1;

/// What one node must become.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// Version of the format.
    pub schema: u32,
    /// The cluster this node belongs to.
    pub cluster: Cluster,
    /// Stable name of this place in the cluster; survives re-imaging.
    pub slot: String,
    /// What the node does.
    pub role: Role,
    /// Own address with its prefix; without it the network is configured by other means and `seeds` names the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpNet>,
    /// The voters: slot to address; 1, 3 or 5.
    pub seeds: BTreeMap<String, IpAddr>,
    /// Every node with a fixed place; absent if all of them are seeds of the same role.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, Member>,
    /// Single-use token for joining an existing cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
    /// Virtual IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vip: Option<Vip>,
    /// Networks whose clients may log in (TLS and password).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub client_networks: Vec<IpNet>,
    /// PostgreSQL: durability, recovery time, parameters, databases, roles.
    #[serde(default)]
    pub postgres: Postgres,
    /// Backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// Connection pooler.
    #[serde(default, skip_serializing_if = "Pooler::is_none")]
    pub pooler: Pooler,
    /// Disks chosen by serial number.
    #[serde(default, skip_serializing_if = "Disks::is_empty")]
    pub disks: Disks,
    /// Switches of what is done beyond the components' own ways.
    #[serde(default, skip_serializing_if = "Tweaks::is_default")]
    pub tweaks: Tweaks,
    /// Founding bundle: only in the first seeds of the founding voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub founding: Option<Founding>,
}

impl NodeSpec {
    /// This node's address: its own entry in `seeds`, `address`, or its own entry in `members`.
    pub fn ip(&self) -> Option<IpAddr> {
        let seed = self.seeds.get(&self.slot).copied().or_else(|| self.address.map(|a| a.addr()));
        seed.or_else(|| self.members.get(&self.slot).map(|member| member.address))
    }

    /// The virtual IP that Keepalived moves, if there is one.
    pub fn lan_vip(&self) -> Option<IpNet> {
        self.vip.as_ref().filter(|vip| vip.mode == VipMode::Lan).map(|vip| vip.address)
    }

    /// Whether this node is one of the voters.
    pub fn is_voter(&self) -> bool {
        self.seeds.contains_key(&self.slot)
    }

    /// The specification without anything secret: what may be printed and compared between boots.
    pub fn without_secrets(&self) -> Self {
        Self { join: None, founding: None, ..self.clone() }
    }
}

/// Identity of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Name: Patroni's scope, and the host name clients verify.
    pub name: String,
    /// Identity; a new one is a new cluster.
    pub uuid: Uuid,
    /// SHA-256 of the root CA certificate (DER), in hexadecimal.
    pub ca_sha256: String,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// etcd, Patroni/PostgreSQL, HAProxy: the minimalist HA node.
    Node,
    /// Patroni/PostgreSQL; etcd too where it is a seed.
    Database,
    /// etcd only.
    Etcd,
    /// HAProxy only.
    Proxy,
    /// pgBackRest repository host.
    Backup,
    /// Autoscaled replica without a vote.
    Replica,
    /// Member of a standby cluster.
    Standby,
}

impl Role {
    /// Every role with its name.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("node", Self::Node),
        ("database", Self::Database),
        ("etcd", Self::Etcd),
        ("proxy", Self::Proxy),
        ("backup", Self::Backup),
        ("replica", Self::Replica),
        ("standby", Self::Standby),
    ];

    /// The name used in specifications and profile files.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, role)| *role == self).map_or("node", |(name, _)| name)
    }
}

/// Proof that a node may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// `<slot>.<random>`, single use.
    #[serde(serialize_with = "Secret::write")]
    pub token: Secret,
}

/// A virtual address for clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vip {
    /// Address with its prefix.
    pub address: IpNet,
    /// Who moves it.
    pub mode: VipMode,
}

/// Who moves the virtual address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VipMode {
    /// Keepalived, VRRP on the local network.
    Lan,
    /// The cloud's own load balancer or route.
    Cloud,
    /// Nobody.
    None,
}

/// Connection pooler in front of PostgreSQL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pooler {
    /// Which one.
    #[serde(default)]
    pub kind: PoolerKind,
}

impl Pooler {
    fn is_none(&self) -> bool {
        self.kind == PoolerKind::None
    }
}

/// Which connection pooler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolerKind {
    /// None: clients reach PostgreSQL through HAProxy.
    #[default]
    None,
    /// PgBouncer.
    Pgbouncer,
    /// Pgpool-II.
    Pgpool,
    /// pgagroal.
    Pgagroal,
}

/// Disks for data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disks {
    /// Disk of `/var/lib/postgresql`; without it the `/var` partition carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DiskMatch>,
    /// Disk of the `/var` of a live node; without it the one that is blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemDisk>,
}

impl Disks {
    fn is_empty(&self) -> bool {
        self.data.is_none() && self.system.is_none()
    }
}

/// The disk of a live node, named by one of its properties.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemDisk {
    /// Serial number as the kernel reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// World wide name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// A path: chooses among blank disks, and never allows to overwrite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What on it may be lost: system identifiers of PostgreSQL clusters, `unseen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overwrite: Option<String>,
}

/// How a disk is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskMatch {
    /// Serial number as the kernel reports it.
    pub serial: String,
}
