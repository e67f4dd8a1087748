//! This node in the cluster's registry: the lease that says "slot pg-1 is alive, here", and what is known about it.
//!
//! The slot's lease keeps a clone out: whoever finds it held and renewed by another boot stops. A lease that is held
//! but not renewed belongs to this node's boot before a crash and runs out within its 15 seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::etcd::{Client, Error, KeyValue, LeaseId, Swap};
use crate::facts::Machine;
use crate::image_info::ImageInfo;
use crate::problem::Problem;
use crate::roll::Wish;
use crate::status::Board;
use crate::update::fits;

/// Lifetime of the slot's lease without renewal.
const TTL: u32 = 15;
/// Renewal; four may be missed.
const RENEWAL: Duration = Duration::from_secs(3);
/// A renewal by etcd itself (a new leader extends every lease) is possible; this many are somebody alive.
const RENEWALS_OF_THE_LIVING: u32 = 3;

/// `slots/<slot>`, on the slot's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotHolder {
    /// Boot that holds the slot.
    pub boot_id: String,
    /// Machine that holds it.
    pub machine: Machine,
    /// Since when (RFC 3339, UTC).
    pub since: String,
}

/// `nodes/<slot>`: stays until the node leaves for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Role of the node.
    pub role: String,
    /// Its address.
    pub address: String,
    /// Image it runs.
    pub image: Image,
    /// `running` or `leaving`; means something only while the slot is held.
    pub state: String,
    /// Since when (RFC 3339, UTC).
    pub since: String,
    /// Version of its pgBackRest: both ends of a backup must have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgbackrest: Option<String>,
    /// Why it did not take the version the cluster is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<crate::roll::Stopped>,
    /// What sorts where PostgreSQL runs: a copy of its data must be sorted the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collations: Option<fits::Collations>,
}

/// The image of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Name of the recipe.
    pub name: String,
    /// Its version.
    pub version: String,
    /// dm-verity root hash, if any.
    pub root_hash: Option<String>,
}

/// `cluster`: facts about the cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKey {
    /// Version of the format.
    pub schema: u32,
    /// Name of the cluster.
    pub name: String,
    /// PostgreSQL's system identifier, once there is a database.
    pub pg_system_id: Option<String>,
    /// When etcd was born (RFC 3339, UTC).
    pub born_at: String,
}

/// Names of the agents' keys.
#[derive(Debug, Clone, Copy)]
pub struct Keys(pub Uuid);

impl Keys {
    /// Everything of this cluster.
    pub fn prefix(self) -> String {
        format!("/pgkiln/{}/", self.0)
    }

    /// The cluster key.
    pub fn cluster(self) -> String {
        format!("/pgkiln/{}/cluster", self.0)
    }

    /// Who holds a slot.
    pub fn slot(self, slot: &str) -> String {
        format!("/pgkiln/{}/slots/{slot}", self.0)
    }

    /// What the cluster agreed about its backups.
    pub fn backup(self) -> String {
        format!("/pgkiln/{}/backup", self.0)
    }

    /// The version all nodes are to have.
    pub fn update(self) -> String {
        format!("/pgkiln/{}/update", self.0)
    }

    /// Lock of whoever makes the stanza.
    pub fn stanza(self) -> String {
        format!("/pgkiln/{}/lock/stanza", self.0)
    }

    /// Lock of membership changes.
    pub fn membership(self) -> String {
        format!("/pgkiln/{}/lock/membership", self.0)
    }

    /// Which key a slot without a vote is bound to.
    pub fn joined(self, slot: &str) -> String {
        format!("/pgkiln/{}/joined/{slot}", self.0)
    }

    /// A lock by its name.
    pub fn lock(self, name: &str) -> String {
        format!("/pgkiln/{}/lock/{name}", self.0)
    }

    /// A node.
    pub fn node(self, slot: &str) -> String {
        format!("/pgkiln/{}/nodes/{slot}", self.0)
    }
}

/// Now, as all keys write it.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The slot, held by this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    key: String,
    slot: String,
    holder: SlotHolder,
    lease: LeaseId,
}

/// What `keep` can end with.
#[derive(Debug)]
enum Kept {
    Renewed,
    Lost,
}

impl Slot {
    /// Takes the slot: at once if it is free or held by this boot, after the lease has run out if it was held by a boot
    /// that is dead, never if somebody else is alive in it.
    pub async fn take(client: &Client, keys: Keys, slot: &str, holder: SlotHolder, board: &Board) -> Result<Self> {
        let key = keys.slot(slot);
        let value = serde_json::to_vec(&holder)?;
        let mut watched = Watched::default();
        loop {
            let held = match client.get(&key).await? {
                None => {
                    let lease = client.grant(TTL).await?;
                    match client.create(&key, &value, Some(lease)).await? {
                        Swap::Done => return Ok(Self { key, slot: slot.to_owned(), holder, lease }),
                        Swap::Lost(found) => {
                            client.revoke(lease).await?;
                            found
                        }
                    }
                }
                found => found,
            };
            let Some(held) = held else { continue };
            let by: Option<SlotHolder> = held.json().ok();
            if by.as_ref().is_some_and(|by| by.boot_id == holder.boot_id) {
                // This boot's earlier process, or the answer to our own call was lost.
                let lease = client.grant(TTL).await?;
                if client.replace(&key, &value, Some(lease), held.mod_revision).await? == Swap::Done {
                    client.revoke(held.lease).await?;
                    return Ok(Self { key, slot: slot.to_owned(), holder, lease });
                }
                client.revoke(lease).await?;
                continue;
            }
            let left = client.time_to_live(held.lease).await?;
            if watched.renewals(&held, left.unwrap_or(0)) >= RENEWALS_OF_THE_LIVING {
                return Err(clone(slot, by.as_ref()).into());
            }
            board.waiting(format!(
                "slot {slot}: its lease is held by another boot since {}; free in {} s unless somebody is alive there",
                by.map_or_else(|| "an unknown time".to_owned(), |by| by.since),
                left.unwrap_or(0)
            ));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Renews the lease for ever; takes the slot again if it was lost. Ends only when somebody else lives in it.
    pub async fn keep(mut self, client: &Client, keys: Keys, board: &Board, current: &LeaseCell) -> Result<()> {
        loop {
            tokio::time::sleep(RENEWAL).await;
            match self.renew(client).await {
                Ok(Kept::Renewed) => {}
                Ok(Kept::Lost) => {
                    tracing::warn!("the lease of slot {} ran out; taking it again", self.slot);
                    match Self::take(client, keys, &self.slot, self.holder.clone(), board).await {
                        Ok(taken) => self = taken,
                        Err(error) if is_transient(&error) => tracing::warn!("slot {}: {error:#}", self.slot),
                        Err(error) => return Err(error),
                    }
                    current.set(self.lease);
                }
                // No quorum: leases do not run out either. Nothing changes but the reader's knowledge.
                Err(error) => tracing::warn!("renewing the lease of slot {}: {error}", self.slot),
            }
        }
    }

    async fn renew(&self, client: &Client) -> Result<Kept, Error> {
        Ok(if client.keep_alive(self.lease).await? { Kept::Renewed } else { Kept::Lost })
    }

    /// The lease, to be given back at the end.
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// The key the slot is held under.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// The lease held now, shared between the task that keeps it and the one that gives it back.
#[derive(Debug, Default)]
pub struct LeaseCell(std::sync::atomic::AtomicI64);

impl LeaseCell {
    /// Remembers the lease.
    pub fn set(&self, lease: LeaseId) {
        self.0.store(lease, std::sync::atomic::Ordering::Relaxed);
    }

    /// The lease; 0 if none was ever held.
    pub fn get(&self) -> LeaseId {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Whether waiting may help against this error.
pub(crate) fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(Error::is_transient)
}

/// How often a foreign lease was seen renewed.
#[derive(Debug, Default)]
struct Watched {
    revision: i64,
    lowest: i64,
    renewals: u32,
}

impl Watched {
    fn renewals(&mut self, held: &KeyValue, left: i64) -> u32 {
        if self.revision != held.mod_revision {
            *self = Self { revision: held.mod_revision, lowest: left, renewals: 0 };
        } else if left > self.lowest + 1 {
            self.renewals += 1;
            self.lowest = left;
        }
        self.lowest = self.lowest.min(left);
        self.renewals
    }
}

fn clone(slot: &str, by: Option<&SlotHolder>) -> Problem {
    let since = by.map_or("an unknown time", |by| &by.since);
    Problem::new(
        format!(
            "another machine is alive in slot `{slot}` since {since}: this one is a copy of it, or both have its seed"
        ),
        format!("etcd key slots/{slot}"),
        "PostgreSQL was not started here. Switch off the machine that should not exist; if it is the other one, this \
         node takes the slot within 15 s of its end",
    )
}

/// The cluster key, created if nobody has yet.
pub async fn cluster_key(client: &Client, keys: Keys, name: &str) -> Result<(ClusterKey, i64)> {
    let fresh = ClusterKey { schema: 1, name: name.to_owned(), pg_system_id: None, born_at: now() };
    client.create(&keys.cluster(), &serde_json::to_vec(&fresh)?, None).await?;
    let found = client.get(&keys.cluster()).await?.context("the cluster key vanished")?;
    Ok((found.json().context("reading the cluster key")?, found.mod_revision))
}

/// PostgreSQL's system identifier as recorded; `None` while there is no database.
pub async fn pg_system_id(client: &Client, keys: Keys) -> Result<Option<String>> {
    let Some(found) = client.get(&keys.cluster()).await? else { return Ok(None) };
    let cluster: ClusterKey = found.json().context("reading the cluster key")?;
    Ok(cluster.pg_system_id)
}

/// Records PostgreSQL's system identifier once Patroni knows it; `false` while it does not.
pub async fn record_system_id(client: &Client, keys: Keys, name: &str) -> Result<bool> {
    let (cluster, revision) = cluster_key(client, keys, name).await?;
    if cluster.pg_system_id.is_some() {
        return Ok(true);
    }
    let initialize = client.get(&format!("/service/{name}/initialize")).await?;
    // Patroni also fills in `initialize` for a founding that was cut short; `config` comes at its end only.
    if client.get(&format!("/service/{name}/config")).await?.is_none() {
        return Ok(false);
    }
    let Some(id) = initialize.and_then(|kv| String::from_utf8(kv.value).ok()).filter(|id| !id.is_empty()) else {
        return Ok(false);
    };
    let known = ClusterKey { pg_system_id: Some(id), ..cluster };
    client.replace(&keys.cluster(), &serde_json::to_vec(&known)?, None, revision).await?;
    Ok(true)
}

/// Refuses a PostgreSQL directory of another database cluster: Patroni would claim the whole cluster with it.
pub fn check_system_id(local: Option<u64>, known: Option<&str>, place: &str) -> Result<(), Problem> {
    match (local, known) {
        (Some(local), Some(known)) if local.to_string() != known => Err(Problem::new(
            format!("the PostgreSQL data here has system identifier {local}, the cluster's is {known}"),
            place,
            "PostgreSQL was not started: this is data of another cluster. Attach this node's own disk, or move the \
             directory away (never delete it) and restart firstboot.service: the node is then rebuilt from the leader",
        )),
        _ => Ok(()),
    }
}

/// Refuses to have the cluster's data copied to a node whose image sorts differently (safety rule 10). `founded`: whether there is
/// a database; before, entries may be of nodes that were made anew since, and nobody would ever begin.
pub async fn check_collations(
    client: &Client,
    keys: Keys,
    scope: &str,
    image: &ImageInfo,
    founded: bool,
) -> Result<()> {
    let leader = client.get(&format!("/service/{scope}/leader")).await?;
    let leader = leader.and_then(|kv| String::from_utf8(kv.value).ok());
    if leader.is_none() && !founded {
        return Ok(());
    }
    let prefix = keys.node("");
    let mut nodes = BTreeMap::new();
    for found in client.list(&prefix).await? {
        let key = String::from_utf8_lossy(&found.key);
        let (Some(slot), Ok(node)) = (key.strip_prefix(&prefix), found.json::<Node>()) else { continue };
        nodes.extend(node.collations.map(|collations| (slot.to_owned(), collations)));
    }
    let wish = client.get(&keys.update()).await?.and_then(|kv| kv.json::<Wish>().ok());
    fits::check_copy(image, &nodes, leader.as_deref(), wish.as_ref()).map_err(|misfit| Problem::from(misfit).into())
}

/// System identifier of a data directory: the first eight bytes of `global/pg_control`.
pub fn system_id(pgdata: &std::path::Path) -> Option<u64> {
    let bytes = fs_err::read(pgdata.join("global/pg_control")).ok()?;
    Some(u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_renewed_leases_are_alive() {
        let held = |revision| KeyValue { key: Vec::new(), value: Vec::new(), mod_revision: revision, lease: 1 };
        let mut watched = Watched::default();
        for left in (0..15).rev() {
            assert_eq!(watched.renewals(&held(1), left), 0);
        }
        // A new etcd leader extends it once; then it runs down again.
        assert_eq!(watched.renewals(&held(1), 15), 1);
        assert_eq!(watched.renewals(&held(1), 9), 1);
        for expected in [2, 3] {
            watched.renewals(&held(1), 12);
            watched.renewals(&held(1), 9);
            assert!(watched.renewals(&held(1), 15) >= expected);
        }
    }

    #[test]
    #[ignore = "needs an etcd binary: PGKILN_TEST_ETCD=… cargo test -- --ignored"]
    fn a_node_copies_only_what_is_sorted_as_it_sorts() {
        use crate::etcd::tests::{Server, block_on, until_up};
        let server = Server::start();
        block_on(async {
            let etcd = server.client(None);
            until_up(&etcd).await;
            let keys = Keys(Uuid::from_u128(7));
            let mut image: ImageInfo = serde_json::from_str(crate::fixtures::IMAGE).unwrap();
            let entry = |image: &ImageInfo| Node {
                role: "node".into(),
                address: "10.0.0.11".into(),
                image: Image { name: "x".into(), version: "1".into(), root_hash: None },
                state: "running".into(),
                since: now(),
                pgbackrest: None,
                update: None,
                collations: fits::published(image),
            };
            image.glibc = Some("2.41-12".into());
            let theirs = serde_json::to_vec(&entry(&image)).unwrap();
            etcd.put(&keys.node("pg-1"), &theirs, None).await.unwrap();
            image.glibc = Some("2.42-1".into());
            let check = async |founded| check_collations(&etcd, keys, "orders", &image, founded).await;
            check(false).await.unwrap();
            let refused = check(true).await.unwrap_err();
            assert!(refused.is::<Problem>() && format!("{refused:#}").contains("pg-1 uses it with glibc 2.41"));
            etcd.put("/service/orders/leader", b"pg-1", None).await.unwrap();
            assert!(check(false).await.is_err(), "it is about to be copied");
            etcd.put("/service/orders/leader", b"pg-2", None).await.unwrap();
            check(true).await.unwrap();
        });
    }

    #[test]
    fn foreign_data_is_refused_and_own_is_not() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("global")).unwrap();
        let id = 7_532_100_000_000_000_001_u64;
        fs_err::write(dir.path().join("global/pg_control"), [&id.to_ne_bytes()[..], &[0; 100]].concat()).unwrap();
        let local = system_id(dir.path());
        assert_eq!(local, Some(id));
        assert!(check_system_id(local, Some(&id.to_string()), "x").is_ok());
        assert!(check_system_id(local, None, "x").is_ok());
        assert!(check_system_id(None, Some("1"), "x").is_ok());
        assert!(check_system_id(local, Some("1"), "x").unwrap_err().what.contains("7532100000000000001"));
    }
}
