//! A node whose etcd data is gone comes back as a replacement of itself: its dead member is removed, it joins as a
//! learner and is promoted when it has caught up. One membership change at a time, only while the others hold quorum,
//! and a kill anywhere is continued by the next run.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::etcd::{Client, LeaseId, Member, Swap};
use crate::status::Board;

/// Lifetime of the membership lock without renewal; every pause below is shorter.
const LOCK_TTL: u32 = 30;
/// Between looks at a learner that is catching up, and at a lock somebody else holds.
const PAUSE: Duration = Duration::from_millis(250);

/// Where a member is to be replaced.
#[derive(Debug)]
pub struct Replacement<'a> {
    /// A client logged in as `agent`.
    pub client: &'a Client,
    /// This slot.
    pub slot: &'a str,
    /// URL other members reach this node's etcd at.
    pub peer_url: &'a str,
    /// `/pgkiln/<uuid>/lock/membership`.
    pub lock_key: String,
    /// Where waiting is said.
    pub board: &'a Board,
}

impl Replacement<'_> {
    /// Holds the membership lock. Lost with its lease if this process dies.
    pub async fn lock(&self) -> Result<LeaseId> {
        let value = serde_json::to_vec(&json!({"owner": self.slot, "purpose": "replace its member of etcd"}))?;
        loop {
            let lease = self.client.grant(LOCK_TTL).await?;
            match self.client.create(&self.lock_key, &value, Some(lease)).await? {
                Swap::Done => return Ok(lease),
                Swap::Lost(Some(held)) if held.lease == lease => return Ok(lease),
                Swap::Lost(_) => {
                    self.client.revoke(lease).await?;
                    self.board.waiting("another change of etcd's membership to finish");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Makes room for this node: afterwards the member list has it, without a vote and not started, and the members
    /// returned are the ones etcd must be started with.
    ///
    /// The caller holds the slot's lease and owns the address, so the old member is certainly not running.
    pub async fn enlist(&self) -> Result<Vec<Member>> {
        let members = self.client.members().await?;
        let own = members.iter().find(|m| m.name == self.slot || m.peer_urls.iter().any(|url| url == self.peer_url));
        if let Some(own) = own {
            if !own.has_started() {
                return Ok(members);
            }
            self.others_hold_quorum(&members).await?;
            tracing::warn!("removing the dead member {:x} of slot {}", own.id, self.slot);
            self.client.remove(own.id).await?;
        }
        // Each member judges by the connections it has itself (etcd, `isConnectedFullySince`), and one may take a peer for lost
        // long after that has come back: where one says no, another may say yes.
        let mut refused = None;
        for member in members.iter().filter(|member| member.has_started() && member.name != self.slot) {
            if let Err(error) = self.client.add_learner_at(&member.name, self.peer_url).await {
                refused = Some(error);
            }
            // An answer may be lost: the list tells. etcd takes the same URL only once.
            let members = self.client.members().await?;
            if members.iter().any(|m| !m.has_started() && m.peer_urls.iter().any(|url| url == self.peer_url)) {
                return Ok(members);
            }
        }
        match refused {
            Some(error) => Err(error).context("no member of etcd adds this node"),
            None => bail!("etcd did not add this node"),
        }
    }

    async fn others_hold_quorum(&self, members: &[Member]) -> Result<()> {
        let voters = members.iter().filter(|m| !m.learner).count();
        let mut healthy = 0;
        for member in members.iter().filter(|m| m.name != self.slot && !m.learner) {
            healthy += usize::from(self.client.status(&member.name).await.is_ok_and(|s| s.leader != 0));
        }
        if healthy <= voters / 2 {
            bail!("only {healthy} of {voters} voters are healthy: nothing is removed before a majority is");
        }
        Ok(())
    }

    /// Waits until this node's etcd runs and has caught up, and gives it its vote.
    pub async fn promote(&self, lock: LeaseId) -> Result<()> {
        loop {
            self.client.keep_alive(lock).await?;
            let members = self.client.members().await?;
            let why =
                match standing(&members, self.peer_url).context("etcd's members do not include this node any more")? {
                    Standing::Votes => return Ok(()),
                    Standing::NotStarted => "not started yet".to_owned(),
                    // etcd refuses below 90 % of the leader's log.
                    Standing::Learns(id) => match self.client.promote_at(&self.leader(&members).await?, id).await {
                        Ok(()) => return Ok(()),
                        Err(error) => error.to_string(),
                    },
                };
            self.board.waiting(format!("etcd here to catch up: {why}"));
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Slot of the leader: followers cannot pass a promotion on when authentication is on.
    async fn leader(&self, members: &[Member]) -> Result<String> {
        for member in members.iter().filter(|m| m.has_started()) {
            if self.client.status(&member.name).await.is_ok_and(|s| s.is_leader()) {
                return Ok(member.name.clone());
            }
        }
        bail!("etcd has no leader")
    }
}

/// Where a member stands on its way to a vote.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Votes,
    Learns(u64),
    NotStarted,
}

/// Of the member that others reach at `peer_url`. One that has never started must not be promoted, which etcd before 3.4.24
/// and 3.5.7 would do: a vote that nobody casts can end the quorum.
fn standing(members: &[Member], peer_url: &str) -> Option<Standing> {
    let own = members.iter().find(|member| member.peer_urls.iter().any(|url| url == peer_url))?;
    Some(match (own.has_started(), own.learner) {
        (false, _) => Standing::NotStarted,
        (true, true) => Standing::Learns(own.id),
        (true, false) => Standing::Votes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_learner_that_has_started_is_promoted() {
        let member = |name: &str, client_urls: &[&str], learner| Member {
            id: 7,
            name: name.to_owned(),
            peer_urls: vec!["https://10.0.0.12:2380".to_owned()],
            client_urls: client_urls.iter().map(ToString::to_string).collect(),
            learner,
        };
        let of = |member: Member| standing(&[member], "https://10.0.0.12:2380");
        let url = ["https://10.0.0.12:2379"];
        assert_eq!(of(member("pg-2", &url, true)), Some(Standing::Learns(7)));
        assert_eq!(of(member("pg-2", &url, false)), Some(Standing::Votes));
        // In the list, but never started: as `member add` leaves it, or half published.
        assert_eq!(of(member("", &[], true)), Some(Standing::NotStarted));
        assert_eq!(of(member("pg-2", &[], true)), Some(Standing::NotStarted));
        assert_eq!(of(member("", &url, false)), Some(Standing::NotStarted));
        assert_eq!(standing(&[member("pg-2", &url, true)], "https://10.0.0.13:2380"), None);
    }
}
