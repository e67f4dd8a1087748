//! A whole cluster takes another version of its image, one node at a time and without a controller: the wish stands in etcd, and
//! each node's agent takes its turn when it comes.
//!
//! ```text
//! wish in etcd -> my turn? -> lock -> other slot (`update`) -> still my turn? -> restart -> good again -> unlock
//! ```
//!
//! Replicas and nodes without data go first, the leader after them, so that leadership moves once at most and to a node that
//! has the new version. The repository host is the last: a primary that stops archives what it still has, to a pgBackRest of
//! the same version; the new primary keeps its own segments until the repository host has followed. The other way round
//! segments of the old primary would be missing in the archive for ever.
//!
//! The lock's lease outlives its owner's restart, and ends when the owner is gone for good. A node that does not come back
//! stops the roll all the same, because nobody goes on while a registered node is not good; `firstboot update --cancel`
//! gives up.

mod ask;
mod drive;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use ask::{Overview, cancel, overview, wish};
pub use drive::Roll;

use crate::etcd::Client;
use crate::register::{Keys, Node};
use crate::spec::Role;

/// Topic of what `firstboot status` notes.
const TOPIC: &str = "update";
/// Name of the lock.
const LOCK: &str = "update";

/// `update`: the version all nodes are to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Version of the format.
    pub schema: u32,
    /// Version of the image.
    pub version: String,
    /// Where every node finds the set: a directory of its own, or an address.
    pub source: String,
    /// SHA-256 of the set's `SHA256SUMS`: all nodes take the same bytes.
    pub sums_sha256: String,
    /// Whether the version may be older than the present one.
    #[serde(default)]
    pub older: bool,
    /// Whether collations may change under the data.
    #[serde(default)]
    pub collations: bool,
    /// Slot it was said on.
    pub by: String,
    /// When (RFC 3339, UTC, to the millisecond); tells a wish from an earlier one.
    pub since: String,
}

/// In `nodes/<slot>`: why a node did not take a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The wish, by its `since`.
    pub wish: String,
    /// Version it was about.
    pub version: String,
    /// Why.
    pub why: String,
}

/// `lock/update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    owner: String,
    purpose: String,
    since: String,
}

/// What is known of a node when turns are decided.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    slot: String,
    role: Role,
    version: String,
    stopped: Option<Stopped>,
    /// Why it is not good; `None`: it is.
    trouble: Option<String>,
}

/// What a node does now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    /// It has the version.
    Done,
    /// It is this node's turn.
    Mine,
    /// Not yet, or not at all; says why.
    Wait(String),
}

/// Whose turn it is: `leader` is the slot that leads, `holder` the one that has the lock.
fn turn(own: &str, wish: &Wish, nodes: &[Seen], leader: Option<&str>, holder: Option<&str>) -> Turn {
    if nodes.iter().any(|node| node.slot == own && node.version == wish.version) {
        return Turn::Done;
    }
    let stopped = |node: &Seen| node.stopped.as_ref().filter(|stopped| stopped.wish == wish.since).cloned();
    if let Some((node, stopped)) = nodes.iter().find_map(|node| Some((node, stopped(node)?))) {
        return Turn::Wait(format!("{} stopped at {}: {}", wish.version, node.slot, stopped.why));
    }
    if let Some(holder) = holder.filter(|holder| *holder != own) {
        return Turn::Wait(format!("{}: {holder} is at it", wish.version));
    }
    // This node's own trouble counts, too: it is what a bad version goes back to.
    if let Some((slot, why)) = nodes.iter().find_map(|node| Some((&node.slot, node.trouble.as_ref()?))) {
        return Turn::Wait(format!("{} goes on when {slot} is good: {why}", wish.version));
    }
    if leader.is_none() && nodes.iter().any(|node| node.role.stores_data()) {
        return Turn::Wait(format!("{} goes on when the cluster has a leader", wish.version));
    }
    let rank = |node: &Seen| match node.role {
        Role::Backup => 2,
        _ if Some(node.slot.as_str()) == leader => 1,
        _ => 0,
    };
    let left = nodes.iter().filter(|node| node.version != wish.version);
    match left.min_by_key(|node| (rank(node), node.slot.clone())) {
        Some(next) if next.slot == own => Turn::Mine,
        Some(next) => Turn::Wait(format!("{}: {} is next", wish.version, next.slot)),
        None => Turn::Done,
    }
}

/// Whether nodes are still to take what is wished, and none of them has stopped the others: their versions differ on purpose.
pub async fn under_way(client: &Client, keys: Keys) -> Result<bool> {
    let Some(wish) = client.get(&keys.update()).await? else { return Ok(false) };
    let wish: Wish = wish.json().context("reading the wished version")?;
    let nodes = client.list(&keys.node("")).await?;
    Ok(goes_on(&wish, nodes.iter().filter_map(|kv| kv.json().ok())))
}

fn goes_on(wish: &Wish, nodes: impl Iterator<Item = Node>) -> bool {
    let nodes = Vec::from_iter(nodes);
    let stopped = |node: &Node| node.update.as_ref().is_some_and(|stopped| stopped.wish == wish.since);
    !nodes.iter().any(stopped) && nodes.iter().any(|node| node.image.version != wish.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "20261126.bbbbbbbb";

    fn wish() -> Wish {
        Wish {
            schema: 1,
            version: NEW.into(),
            source: "/set".into(),
            sums_sha256: "0".repeat(64),
            older: false,
            collations: false,
            by: "pg-1".into(),
            since: "2026-11-26T00:00:00.000Z".into(),
        }
    }

    fn nodes() -> Vec<Seen> {
        let roles = [("bkp-1", Role::Backup), ("pg-1", Role::Node), ("pg-2", Role::Node), ("pg-3", Role::Node)];
        let node = |(slot, role): (&str, Role)| Seen {
            slot: slot.into(),
            role,
            version: "20261125.aaaaaaaa".into(),
            stopped: None,
            trouble: None,
        };
        roles.into_iter().map(node).collect()
    }

    /// Every node in turn, as the lock would let them: replicas, the leader once, the repository host.
    #[test]
    fn replicas_then_the_leader_then_the_repository_host() {
        let (mut nodes, mut leader, mut order) = (nodes(), "pg-1", Vec::new());
        while nodes.iter().any(|node| node.version != NEW) {
            let mine = |node: &&Seen| turn(&node.slot, &wish(), &nodes, Some(leader), None) == Turn::Mine;
            let whose: Vec<String> = nodes.iter().filter(mine).map(|node| node.slot.clone()).collect();
            assert_eq!(whose.len(), 1, "one at a time: {whose:?}");
            if whose[0] == leader {
                leader = "pg-3";
            }
            nodes.iter_mut().find(|node| node.slot == whose[0]).unwrap().version = NEW.into();
            order.extend(whose);
        }
        assert_eq!(order, ["pg-2", "pg-3", "pg-1", "bkp-1"]);
        assert_eq!(turn("pg-1", &wish(), &nodes, Some(leader), None), Turn::Done);
    }

    #[test]
    fn nobody_goes_while_another_is_at_it_or_not_good_or_was_bad() {
        let says = |nodes: &[Seen], leader, holder| match turn("pg-2", &wish(), nodes, leader, holder) {
            Turn::Wait(why) => why,
            other => format!("{other:?}"),
        };
        let all = nodes();
        assert_eq!(says(&all, Some("pg-1"), None), "Mine");
        assert_eq!(says(&all, Some("pg-1"), Some("pg-2")), "Mine", "a holder that was restarted goes on");
        assert!(says(&all, Some("pg-1"), Some("pg-3")).contains("pg-3 is at it"));
        assert!(says(&all, None, None).contains("has a leader"));
        let mut ill = all.clone();
        ill[0].trouble = Some("does not answer".into());
        assert!(says(&ill, Some("pg-1"), None).contains("when bkp-1 is good: does not answer"));
        let mut bad = all.clone();
        let stopped =
            Stopped { wish: wish().since, version: NEW.into(), why: "it came back with the old version".into() };
        bad[3].stopped = Some(stopped.clone());
        assert!(says(&bad, Some("pg-1"), None).contains("stopped at pg-3: it came back"));
        bad[3].stopped = Some(Stopped { wish: "an earlier one".into(), ..stopped });
        assert_eq!(says(&bad, Some("pg-1"), None), "Mine");
    }

    /// Different versions are no fault while the roll goes on, and one as soon as it does not.
    #[test]
    fn it_is_under_way_until_all_have_it_or_one_has_stopped() {
        let stopped = Stopped { wish: wish().since, version: NEW.into(), why: "bad there".into() };
        let earlier = Stopped { wish: "an earlier one".into(), ..stopped.clone() };
        let node = |version: &str, update: Option<&Stopped>| Node {
            role: "node".into(),
            address: "10.0.0.1".into(),
            image: crate::register::Image { name: "x".into(), version: version.into(), root_hash: None },
            state: "running".into(),
            since: String::new(),
            pgbackrest: None,
            update: update.cloned(),
            collations: None,
        };
        let says = |nodes: [Node; 2]| goes_on(&wish(), nodes.into_iter());
        assert!(says([node(NEW, None), node("1", None)]) && says([node(NEW, None), node("1", Some(&earlier))]));
        assert!(!says([node(NEW, None), node(NEW, None)]) && !says([node(NEW, None), node("1", Some(&stopped))]));
    }
}
