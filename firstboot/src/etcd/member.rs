//! Membership and the state of single members.

use serde::Deserialize;
use serde_json::json;

use super::client::{Client, Error};
use super::wire::{self, Done};

/// One member of the etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its identity; a replacement has another one.
    #[serde(rename = "ID", deserialize_with = "wire::number")]
    pub id: u64,
    /// Its slot; empty until it has started.
    #[serde(default)]
    pub name: String,
    /// Where peers reach it.
    #[serde(rename = "peerURLs", default)]
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    #[serde(rename = "clientURLs", default)]
    pub client_urls: Vec<String>,
    /// Receives the log but has no vote yet.
    #[serde(rename = "isLearner", default)]
    pub learner: bool,
}

impl Member {
    /// Whether it has ever started: etcd 3.4 promotes members that have not.
    pub fn has_started(&self) -> bool {
        !self.name.is_empty() && !self.client_urls.is_empty()
    }
}

/// What one member says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemberStatus {
    header: Header,
    /// Version of etcd.
    #[serde(default)]
    pub version: String,
    /// The leader it follows; 0 if it knows none.
    #[serde(deserialize_with = "wire::number", default)]
    pub leader: u64,
    /// Last entry of its log.
    #[serde(rename = "raftIndex", deserialize_with = "wire::number", default)]
    pub raft_index: u64,
    /// Whether it has no vote.
    #[serde(rename = "isLearner", default)]
    pub learner: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Header {
    #[serde(deserialize_with = "wire::number")]
    cluster_id: u64,
    #[serde(deserialize_with = "wire::number")]
    member_id: u64,
}

impl MemberStatus {
    /// Identity of the etcd cluster it belongs to.
    pub fn cluster_id(&self) -> u64 {
        self.header.cluster_id
    }

    /// Its own identity.
    pub fn member_id(&self) -> u64 {
        self.header.member_id
    }

    /// Whether it leads.
    pub fn is_leader(&self) -> bool {
        self.leader == self.header.member_id
    }
}

#[derive(Deserialize)]
struct Members {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Added {
    member: Member,
}

impl Client {
    /// All members.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        let list: Members = self.call("cluster/member/list", &json!({})).await?;
        Ok(list.members)
    }

    /// Adds a member without a vote, asked of the member of `slot`; it must then be started with this list and promoted.
    pub async fn add_learner_at(&self, slot: &str, peer_url: &str) -> Result<Member, Error> {
        let body = json!({"peerURLs": [peer_url], "isLearner": true});
        let added: Added = self.call_at(slot, "cluster/member/add", &body).await?;
        Ok(added.member)
    }

    /// Gives a learner its vote, asked of the member that leads; refused until the learner has caught up.
    pub async fn promote_at(&self, leader: &str, id: u64) -> Result<(), Error> {
        self.call_at::<Done>(leader, "cluster/member/promote", &json!({"ID": id.to_string()})).await.map(drop)
    }

    /// Removes a member for good.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        self.call_once::<Done>("cluster/member/remove", &json!({"ID": id.to_string()})).await.map(drop)
    }

    /// What the member of `slot` says about itself; reads only that member, needs no quorum
    /// and no login (a learner could not check one).
    pub async fn status(&self, slot: &str) -> Result<MemberStatus, Error> {
        self.open_call_at(slot, "maintenance/status", &json!({})).await
    }

    /// Makes `target` the leader; `leader` must be the slot that leads now.
    pub async fn move_leader(&self, leader: &str, target: u64) -> Result<(), Error> {
        let body = json!({"targetID": target.to_string()});
        self.call_at::<Done>(leader, "maintenance/transfer-leadership", &body).await.map(drop)
    }
}
