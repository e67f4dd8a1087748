//! Keeps etcd's leader off the machine of PostgreSQL's primary. Were both lost together, etcd would first elect, then
//! extend every lease by its full life, and only then would Patroni's leader key begin to run out: 3-7 s more.
//!
//! Only the primary's own agent acts, only after both have been here for a while, never during a membership change,
//! and only towards a voter that has caught up. etcd's own transfer takes less than a heartbeat and loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::etcd::{Client, Member, MemberStatus};
use crate::patroni::Patroni;
use crate::register::Keys;

/// Between looks.
const LOOK: Duration = Duration::from_secs(5);
/// How long both must have been here: a role that is still moving is left alone.
const SETTLED: Duration = Duration::from_secs(15);
/// How far a voter's log may be behind: a few heartbeats of a busy Patroni.
const BEHIND: u64 = 100;

/// Where the look goes.
#[derive(Debug, Clone)]
pub struct Mover {
    /// This slot.
    pub slot: String,
    /// etcd as `agent`.
    pub client: Arc<Client>,
    /// The agents' keys.
    pub keys: Keys,
    /// Patroni here.
    pub patroni: Patroni,
}

impl Mover {
    /// Looks until dropped.
    pub async fn run(&self) {
        let mut since: Option<Instant> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let both = self.both_here().await;
            since = since.or_else(|| both.then(Instant::now)).filter(|_| both);
            if since.is_none_or(|since| since.elapsed() < SETTLED) {
                continue;
            }
            match self.give_away().await {
                Ok(Some(to)) => tracing::info!("etcd's leader moved from the primary's machine to {to}"),
                Ok(None) => tracing::debug!("etcd's leader stays on the primary's machine for now"),
                Err(error) => tracing::info!("etcd's leader stays on the primary's machine: {error:#}"),
            }
            // Moved or not, the next try is as far away.
            since = None;
        }
    }

    async fn both_here(&self) -> bool {
        let etcd = self.client.status(&self.slot).await.is_ok_and(|status| status.is_leader());
        etcd && self.patroni.local().await.is_ok_and(|local| local.leads())
    }

    async fn give_away(&self) -> Result<Option<String>> {
        if self.client.get(&self.keys.membership()).await?.is_some() {
            return Ok(None);
        }
        let members = self.client.members().await?;
        let mut statuses = BTreeMap::new();
        for member in &members {
            if let Ok(status) = self.client.status(&member.name).await {
                statuses.insert(member.id, status);
            }
        }
        let Some(target) = target(&self.slot, &members, &statuses) else { return Ok(None) };
        self.client.move_leader(&self.slot, target.id).await?;
        Ok(Some(target.name.clone()))
    }
}

/// The first voter by name that follows this leader and has its log; none while any member is not as it should be.
fn target<'a>(own: &str, members: &'a [Member], statuses: &BTreeMap<u64, MemberStatus>) -> Option<&'a Member> {
    if members.iter().any(|member| member.learner || !member.has_started()) {
        return None;
    }
    let leader = members.iter().find(|member| member.name == own)?;
    let index = statuses.get(&leader.id)?.raft_index;
    let follows = |member: &&Member| {
        let status = statuses.get(&member.id);
        status.is_some_and(|status| status.leader == leader.id && status.raft_index + BEHIND >= index)
    };
    members.iter().filter(|member| member.id != leader.id).filter(follows).min_by_key(|member| &member.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn member(id: u64, name: &str, learner: bool) -> Member {
        Member { id, name: name.into(), peer_urls: vec!["p".into()], client_urls: vec!["c".into()], learner }
    }

    fn status(id: u64, leader: u64, index: u64) -> (u64, MemberStatus) {
        let text = json!({"header": {"cluster_id": "1", "member_id": id.to_string()}, "leader": leader.to_string(),
                          "raftIndex": index.to_string()});
        (id, serde_json::from_value(text).unwrap())
    }

    #[test]
    fn only_to_a_healthy_voter_that_has_caught_up() {
        let members = [member(1, "pg-1", false), member(2, "pg-2", false), member(3, "pg-3", false)];
        let to = |members: &[Member], statuses: &[(u64, MemberStatus)]| {
            target("pg-1", members, &statuses.iter().cloned().collect()).map(|member| member.name.clone())
        };
        let all = [status(1, 1, 1000), status(2, 1, 990), status(3, 1, 1000)];
        assert_eq!(to(&members, &all).as_deref(), Some("pg-2"));
        let behind = [status(1, 1, 1000), status(2, 1, 500), status(3, 1, 1000)];
        assert_eq!(to(&members, &behind).as_deref(), Some("pg-3"));
        let gone = [status(1, 1, 1000), status(3, 2, 1000)];
        assert_eq!(to(&members, &gone), None);
        let learner = [member(1, "pg-1", false), member(2, "pg-2", false), member(3, "pg-3", true)];
        assert_eq!(to(&learner, &all), None);
        assert_eq!(to(&members[..1], &all), None);
    }
}
