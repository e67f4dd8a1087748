//! What a seed stores about the founding, and shows to its peers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::durable;
use crate::layout::Layout;

/// Slot to identity of the disk that founds there.
pub type Disks = BTreeMap<String, Uuid>;

/// Who founds which cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voters {
    /// The cluster.
    pub cluster: Uuid,
    /// Slot to address.
    pub seeds: BTreeMap<String, IpAddr>,
}

impl Voters {
    /// Short name of this list for comparison: equal lists, equal digests, on every version of the agent.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("pgkiln intent 1\n{}\n", self.cluster));
        for (slot, ip) in &self.seeds {
            hash.update(format!("{slot} {ip}\n"));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The list as people write it.
    pub fn describe(&self) -> String {
        self.seeds.iter().map(|(slot, ip)| format!("{slot} {ip}")).collect::<Vec<_>>().join(", ")
    }
}

/// How far a seed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Wants to found with these voters.
    Intent,
    /// Pinned the disks that found.
    Accepted,
    /// Saw that all of them did: may start etcd with `new`.
    Committed,
    /// etcd has served.
    Born,
}

/// One seed's record: `birth/intent.json` and the answer of `GET /v1/intent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub schema: u32,
    /// Slot of this seed.
    pub slot: String,
    /// Whom it wants to found with.
    #[serde(flatten)]
    pub voters: Voters,
    /// Digest of the voters.
    pub digest: String,
    /// Random identity of this disk.
    pub disk: Uuid,
    /// How far it is.
    pub stage: Stage,
    /// The disks that found, from `accepted` on.
    pub disks: Option<Disks>,
}

impl Record {
    /// A first intent, on a disk that has never had one.
    pub fn new(slot: &str, voters: Voters) -> Self {
        let digest = voters.digest();
        Self {
            schema: 1,
            slot: slot.to_owned(),
            voters,
            digest,
            disk: Uuid::new_v4(),
            stage: Stage::Intent,
            disks: None,
        }
    }

    /// The record on this disk, if it has one.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        durable::read_json(&layout.birth().join("intent.json"))
    }

    /// Stores the record; only then may it be shown.
    pub fn store(&self, layout: &Layout) -> Result<()> {
        durable::create_dir(&layout.birth(), 0o700)?;
        durable::write_json(&layout.birth().join("intent.json"), self, 0o600).context("storing the founding record")
    }
}

/// `birth/born.json`: this disk belongs to a cluster that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Born {
    /// Version of the format.
    pub schema: u32,
    /// The cluster.
    pub cluster: Uuid,
    /// Slot of this disk.
    pub slot: String,
    /// Identity of the etcd cluster.
    pub etcd_cluster: u64,
    /// When (RFC 3339, UTC).
    pub at: String,
}

impl Born {
    /// The marker on this disk, if it has one.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        durable::read_json(&layout.born())
    }

    /// Writes the marker once; an existing one is kept.
    pub fn store(layout: &Layout, cluster: Uuid, slot: &str, etcd_cluster: u64) -> Result<()> {
        if Self::load(layout)?.is_some() {
            return Ok(());
        }
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let born = Self { schema: 1, cluster, slot: slot.to_owned(), etcd_cluster, at };
        durable::create_dir(&layout.birth(), 0o700)?;
        durable::write_json(&layout.born(), &born, 0o600).context("storing the born marker")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_lists_apart_and_never_change() {
        let seeds = |ips: [&str; 3]| {
            let slots = ["pg-1", "pg-2", "pg-3"];
            slots.iter().zip(ips).map(|(s, ip)| ((*s).to_owned(), ip.parse().unwrap())).collect()
        };
        let one = Voters { cluster: Uuid::nil(), seeds: seeds(["10.0.0.11", "10.0.0.12", "10.0.0.13"]) };
        let two = Voters { cluster: Uuid::nil(), seeds: seeds(["10.0.0.12", "10.0.0.11", "10.0.0.13"]) };
        assert_ne!(one.digest(), two.digest());
        insta::assert_snapshot!(one.digest(), @"55ecb6d701ac84c7c616cfd619f78da83e8669a4f470ea5b709cdecadcc15e8d");
    }

    #[test]
    fn a_record_survives_storing_and_born_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let mut record = Record::new("pg-1", Voters { cluster: Uuid::new_v4(), seeds: BTreeMap::new() });
        record.disks = Some(Disks::from([("pg-1".to_owned(), record.disk)]));
        record.store(&layout).unwrap();
        assert_eq!(Record::load(&layout).unwrap(), Some(record.clone()));
        Born::store(&layout, record.voters.cluster, "pg-1", 7).unwrap();
        Born::store(&layout, record.voters.cluster, "pg-1", 8).unwrap();
        assert_eq!(Born::load(&layout).unwrap().unwrap().etcd_cluster, 7);
    }
}
