//! The rule of founding, as a pure function of what this disk holds and what peers showed.

use std::collections::BTreeMap;

use super::record::{Disks, Record, Stage};
use crate::problem::Problem;

/// What this node has.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its record.
    pub record: &'a Record,
    /// Whether `born.json` exists.
    pub born: bool,
    /// Whether etcd has a member directory.
    pub etcd_data: bool,
    /// Whether PostgreSQL has a `global/pg_control`.
    pub pg_data: bool,
}

/// What a peer said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing, and why.
    Silent(String),
    /// Its record.
    Shows(Box<Record>),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing yet; why, one line per peer.
    Wait(Vec<String>),
    /// Store these disks as accepted.
    Accept(Disks),
    /// Store that the accepted disks are committed.
    Commit,
    /// Start etcd with `new`.
    StartNew,
    /// The cluster exists and this disk is part of it: start etcd with `existing`.
    Born,
    /// Start nothing.
    Refuse(Problem),
}

/// The rule. `seen` holds what other voters said; a missing one has not been asked yet.
pub fn decide(own: Own<'_>, seen: &BTreeMap<String, Seen>) -> Decision {
    if let Some(decision) = from_own_disk(own) {
        return decision;
    }
    let record = own.record;
    let mut waiting = Vec::new();
    let mut peers = Vec::new();
    for (slot, ip) in record.voters.seeds.iter().filter(|(slot, _)| **slot != record.slot) {
        match seen.get(slot) {
            None => waiting.push(format!("{slot} ({ip}:8443): not asked yet")),
            Some(Seen::Silent(why)) => waiting.push(format!("{slot} ({ip}:8443): {why}")),
            Some(Seen::Shows(peer)) if peer.digest != record.digest => waiting.push(format!(
                "{slot} ({ip}:8443) was seeded for other voters ({}; here: {}): give all nodes seeds from one \
                 `pgkiln cluster seed`",
                peer.voters.describe(),
                record.voters.describe()
            )),
            Some(Seen::Shows(peer)) => peers.push(&**peer),
        }
    }
    let complete = waiting.is_empty();
    match (record.stage, &record.disks) {
        (Stage::Intent, _) => from_intent(record, &peers, complete, waiting),
        (_, None) => Decision::Refuse(Problem::new(
            "this node's founding record is incomplete",
            "/var/lib/pgkiln/birth/intent.json",
            "the file was changed by hand; put back what was there",
        )),
        (Stage::Accepted, Some(disks)) => from_accepted(record, disks, &peers, complete, waiting),
        (Stage::Committed | Stage::Born, Some(disks)) => match peers.iter().find(|p| founded_otherwise(p, disks)) {
            Some(peer) => conflict(peer),
            None => Decision::StartNew,
        },
    }
}

/// What needs no peer: a born cluster, and data that should not be here.
fn from_own_disk(own: Own<'_>) -> Option<Decision> {
    let slot = &own.record.slot;
    match own {
        Own { born: true, etcd_data: true, .. } => Some(Decision::Born),
        Own { born: true, etcd_data: false, .. } => Some(Decision::Refuse(etcd_lost(own.record))),
        // Killed between etcd's first start and the marker: `new` is ignored by an etcd that has data.
        Own { etcd_data: true, record: Record { stage: Stage::Committed, .. }, .. } => Some(Decision::StartNew),
        Own { etcd_data: true, .. } => Some(Decision::Refuse(Problem::new(
            "there is an etcd data directory, but this disk took no part in founding this cluster",
            "/var/lib/etcd/default",
            format!(
                "it belongs to another cluster or node; nothing was touched. If `{slot}` really is to start \
                     without it, move it away: `mv /var/lib/etcd/default /var/lib/etcd/foreign`, then reboot"
            ),
        ))),
        // PostgreSQL is started only after the born marker is stored.
        Own { pg_data: true, .. } => Some(Decision::Refuse(Problem::new(
            "there is PostgreSQL data, but no trace of the etcd cluster it was part of: founding a new cluster \
                 over it could lose it",
            "/var/lib/postgresql",
            format!(
                "nothing was touched. If the other nodes still run: this disk is not the one of `{slot}` they \
                         know; attach the right one. If etcd was lost everywhere: keep these data directories, make a \
                         new cluster (`pgkiln cluster new`) on other disks and restore into it with pg_dump or \
                         pg_basebackup from a server started by hand on this directory (`pg_ctl -D … start`)"
            ),
        ))),
        _ => None,
    }
}

fn etcd_lost(record: &Record) -> Problem {
    let ip = record.voters.seeds.get(&record.slot).map(ToString::to_string).unwrap_or_default();
    let slot = &record.slot;
    Problem::new(
        "this node belongs to a born cluster, but its etcd data directory is gone; a new cluster is never founded in \
         its place",
        "/var/lib/etcd/default/member",
        format!(
            "if the other voters still have quorum, on one of them as root: `etcdctl member list`, `etcdctl member \
             remove <id of {slot}>`, `etcdctl member add {slot} --peer-urls=https://{ip}:2380`, then reboot this \
             node: it joins as that member and keeps its PostgreSQL data. If etcd was lost on a majority: restore \
             /var/lib/etcd from a copy or an `etcdctl snapshot save` on every voter, then reboot them"
        ),
    )
}

fn from_intent(record: &Record, peers: &[&Record], complete: bool, mut waiting: Vec<String>) -> Decision {
    for peer in peers {
        let Some(disks) = &peer.disks else { continue };
        if disks.get(&record.slot) == Some(&record.disk) {
            // Accepting is always safe: it only binds this disk. And it is what the others wait for.
            return Decision::Accept(disks.clone());
        }
        match peer.stage {
            Stage::Born | Stage::Committed => return Decision::Refuse(replaced(record, peer)),
            _ => waiting.push(counted_before(record, peer)),
        }
    }
    if !complete || !waiting.is_empty() {
        return Decision::Wait(waiting);
    }
    let everyone = peers.iter().copied().chain([record]);
    Decision::Accept(everyone.map(|r| (r.slot.clone(), r.disk)).collect())
}

fn from_accepted(
    record: &Record,
    disks: &Disks,
    peers: &[&Record],
    complete: bool,
    mut waiting: Vec<String>,
) -> Decision {
    if let Some(peer) = peers.iter().find(|p| founded_otherwise(p, disks)) {
        return conflict(peer);
    }
    if peers.iter().any(|p| p.stage >= Stage::Committed) {
        return Decision::Commit;
    }
    for peer in peers {
        let ip = record.voters.seeds[&peer.slot];
        let at = format!("{} ({ip}:8443)", peer.slot);
        if disks.get(&peer.slot) != Some(&peer.disk) {
            waiting.push(format!(
                "{at}: its disk was replaced while the cluster was being founded, and others count on the old one. \
                 Nothing was started; make a new cluster (`pgkiln cluster new`, new UUID) and seed all nodes from it"
            ));
        } else if peer.stage == Stage::Intent {
            waiting.push(format!("{at} to accept the same founders"));
        } else if peer.disks.as_ref() != Some(disks) {
            waiting.push(format!("{at}: accepted other founders; see the waiting lines of the other nodes"));
        }
    }
    if complete && waiting.is_empty() { Decision::Commit } else { Decision::Wait(waiting) }
}

fn founded_otherwise(peer: &Record, disks: &Disks) -> bool {
    peer.stage >= Stage::Committed && peer.disks.as_ref() != Some(disks)
}

fn conflict(peer: &Record) -> Decision {
    Decision::Refuse(Problem::new(
        format!("`{}` founded this cluster with other disks than this node knows", peer.slot),
        "/var/lib/pgkiln/birth/intent.json",
        "disks of an earlier attempt are mixed with new ones: use the disks that belong together, or make a new cluster \
         (`pgkiln cluster new`) and seed all nodes from it",
    ))
}

fn replaced(record: &Record, peer: &Record) -> Problem {
    let ip = record.voters.seeds.get(&record.slot).map(ToString::to_string).unwrap_or_default();
    let slot = &record.slot;
    Problem::new(
        format!("`{}` runs this cluster already, founded with another disk in place of this one", peer.slot),
        "/var/lib/pgkiln/birth/intent.json",
        format!(
            "this disk is a replacement. On a running voter as root: `etcdctl member list`, `etcdctl member remove <id \
             of {slot}>`, `etcdctl member add {slot} --peer-urls=https://{ip}:2380`, then reboot this node: it joins \
             as that member"
        ),
    )
}

fn counted_before(record: &Record, peer: &Record) -> String {
    format!(
        "{}: it counts on an earlier disk of {}. Put that disk back, or make a new cluster (`pgkiln cluster new`, new \
         UUID) and seed all nodes from it",
        peer.slot, record.slot
    )
}
