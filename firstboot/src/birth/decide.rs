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
    /// The cluster exists, but this disk holds no member of it: join as a replacement; what to say if that cannot be.
    Replace(Problem),
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
        Own { born: true, etcd_data: false, .. } => Some(Decision::Replace(etcd_lost(own.record))),
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
            "there is PostgreSQL data, but no trace of the etcd cluster it was part of: founding a new cluster over it \
             could lose it",
            "/var/lib/postgresql",
            format!(
                "nothing was touched. If the other nodes still run, this disk is not the one of `{slot}` they know: \
                 attach the right one. {FOUND_ANEW}"
            ),
        ))),
        _ => None,
    }
}

/// What helps when etcd is gone from a majority: its contents can be made anew, PostgreSQL's cannot.
const FOUND_ANEW: &str = "If etcd is gone on a majority of the voters and there is no copy of /var/lib/etcd to put back: \
     on every voter as root `systemctl stop firstboot patroni etcd`, `mv /var/lib/postgresql/<major>/main \
     /var/lib/postgresql/<major>/kept`, `rm -r /var/lib/pgkiln/birth /var/lib/etcd/default`, then reboot all of them: \
     the cluster is founded anew and empty. Start the old data of the last leader by hand (`pg_ctl -D …/kept -o '-p \
     5433' start`) and copy it over with `pg_dumpall -p 5433 | psql`";

fn etcd_lost(record: &Record) -> Problem {
    let slot = &record.slot;
    Problem::new(
        format!(
            "`{slot}` belongs to a born cluster, but its etcd directory is gone; no new cluster is founded instead"
        ),
        "/var/lib/etcd/default/member",
        format!(
            "as soon as a majority of the other voters runs, this node rejoins by itself and keeps its PostgreSQL \
             data: start them. {FOUND_ANEW}"
        ),
    )
}

fn from_intent(record: &Record, peers: &[&Record], complete: bool, mut waiting: Vec<String>) -> Decision {
    for peer in peers {
        match (peer.stage, &peer.disks) {
            // Accepting is always safe: it only binds this disk. And it is what the others wait for.
            (_, Some(disks)) if disks.get(&record.slot) == Some(&record.disk) => {
                return Decision::Accept(disks.clone());
            }
            (Stage::Committed | Stage::Born, _) => return Decision::Replace(replaced(record, peer)),
            (Stage::Accepted, _) => waiting.push(counted_before(record, peer)),
            (Stage::Intent, _) => {}
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
    if peers.iter().any(|p| p.stage >= Stage::Committed && p.disks.is_some()) {
        return Decision::Commit;
    }
    // Only replacements live there now: the founders this disk accepted are gone, and it never started.
    if let Some(peer) = peers.iter().find(|p| p.stage == Stage::Born) {
        return Decision::Replace(replaced(record, peer));
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

/// A born peer without founders is a replacement: it says nothing about who founded.
fn founded_otherwise(peer: &Record, disks: &Disks) -> bool {
    peer.stage >= Stage::Committed && peer.disks.as_ref().is_some_and(|theirs| theirs != disks)
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
    let slot = &record.slot;
    Problem::new(
        format!("`{}` runs this cluster already, founded with another disk in slot `{slot}`", peer.slot),
        "/var/lib/pgkiln/birth/intent.json",
        "this disk joins as a replacement as soon as a majority of the other voters runs and the lease of the slot has \
         run out: start them",
    )
}

fn counted_before(record: &Record, peer: &Record) -> String {
    format!(
        "{}: it counts on an earlier disk of {}. Put that disk back, or make a new cluster (`pgkiln cluster new`, new \
         UUID) and seed all nodes from it",
        peer.slot, record.slot
    )
}
