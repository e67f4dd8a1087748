//! Questions to a node, asked with the commands its administrator would type.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use firstboot::image_info::ImageInfo;
use serde::Deserialize;
use serde_json::Value;

use super::TestCluster;

/// A member of etcd that has lost its leader asks for another one after a few seconds.
const LEADER: std::time::Duration = std::time::Duration::from_secs(30);

/// One line of `patronictl list`.
#[derive(Debug, Clone, Deserialize)]
pub struct PatroniMember {
    /// Slot.
    #[serde(rename = "Member")]
    pub member: String,
    /// `Leader`, `Replica`, `Quorum Standby` …
    #[serde(rename = "Role")]
    pub role: String,
    /// `running`, `streaming` …
    #[serde(rename = "State")]
    pub state: String,
    /// Timeline.
    #[serde(rename = "TL", default)]
    pub timeline: Value,
}

impl PatroniMember {
    /// Whether it is the leader.
    pub fn is_leader(&self) -> bool {
        self.role == "Leader"
    }
}

/// One member of etcd.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EtcdMember {
    /// Name; a slot.
    pub name: String,
    /// Identity within the cluster.
    pub id: String,
    /// Whether it votes.
    pub learner: bool,
}

impl TestCluster {
    /// What `firstboot status --json` prints on a node.
    pub fn status(&self, slot: &str) -> anyhow::Result<firstboot::status::Status> {
        // Exit code 1 means "not good"; the object is there all the same.
        let done = self.run(slot, &["firstboot", "status", "--json"])?;
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        serde_json::from_slice(&done.stdout).with_context(|| format!("status of {slot}: {said}"))
    }

    /// One SQL statement as root of a node, without flags for host, user or database.
    pub fn psql(&self, slot: &str, sql: &str) -> anyhow::Result<String> {
        self.output(slot, &["psql", "-XAtqc", sql])
    }

    /// The same in another database than `postgres`.
    pub fn psql_in(&self, slot: &str, database: &str, sql: &str) -> anyhow::Result<String> {
        self.output(slot, &["psql", "-XAtq", "-d", database, "-c", sql])
    }

    /// Patroni's view, asked on `slot`.
    pub fn patroni_members(&self, slot: &str) -> anyhow::Result<Vec<PatroniMember>> {
        let text = self.output(slot, &["patronictl", "list", "-f", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("reading patronictl's list: {text}"))
    }

    /// Slots that receive WAL, as PostgreSQL on `leader` has it. `patronictl list` says so from Patroni 3.0.4 on only.
    pub fn streaming_from(&self, leader: &str) -> anyhow::Result<BTreeSet<String>> {
        let sql = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'";
        Ok(self.psql(leader, sql)?.lines().map(str::to_owned).collect())
    }

    /// What the image on `slot` says about itself.
    pub fn image_info(&self, slot: &str) -> anyhow::Result<ImageInfo> {
        let text = self.output(slot, &["cat", "/usr/lib/pgkiln/image.json"])?;
        serde_json::from_str(&text).context("reading image.json")
    }

    /// Slots in Patroni's `/sync` key, asked on `slot`: those that may take over without losing anything.
    pub fn successors(&self, slot: &str) -> anyhow::Result<Vec<String>> {
        let key = format!("/service/{}/sync", self.cluster.definition.name);
        let text = self.output(slot, &["etcdctl", "get", "--print-value-only", &key])?;
        let sync: Value = serde_json::from_str(&text).with_context(|| format!("reading {key}: {text}"))?;
        let names = sync["sync_standby"].as_str().unwrap_or_default().split(',');
        Ok(names.filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// The leader's slot, asked on `slot`.
    pub fn leader_seen_by(&self, slot: &str) -> anyhow::Result<String> {
        let leaders = self.patroni_members(slot)?.into_iter().filter(PatroniMember::is_leader);
        let leaders: Vec<String> = leaders.map(|member| member.member).collect();
        ensure!(leaders.len() == 1, "{slot} sees leaders {leaders:?}");
        Ok(leaders.concat())
    }

    /// The leader's slot, asked on the first node that answers.
    pub fn leader(&self) -> anyhow::Result<String> {
        let seen = self.slots.iter().find_map(|slot| self.leader_seen_by(slot).ok());
        seen.context("no node knows a leader")
    }

    /// etcd's members, asked on `slot`.
    pub fn etcd_members(&self, slot: &str) -> anyhow::Result<BTreeSet<EtcdMember>> {
        let list = self.etcd_json(slot, &["member", "list"])?;
        let members = list["members"].as_array().context("a member list has members")?;
        Ok(members
            .iter()
            .map(|member| EtcdMember {
                name: member["name"].as_str().unwrap_or_default().to_owned(),
                id: member["ID"].to_string(),
                learner: member["isLearner"].as_bool().unwrap_or_default(),
            })
            .collect())
    }

    /// etcd's cluster id as `slot`'s own member has it.
    pub fn etcd_cluster_id(&self, slot: &str) -> anyhow::Result<String> {
        Ok(self.etcd_json(slot, &["member", "list"])?["header"]["cluster_id"].to_string())
    }

    /// Checks that exactly the slots of this cluster are started voters, and returns the members.
    pub fn check_voters(&self, slot: &str) -> anyhow::Result<BTreeSet<EtcdMember>> {
        let members = self.etcd_members(slot)?;
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        ensure!(names == self.slots, "members seen by {slot}: {members:?}");
        ensure!(members.iter().all(|member| !member.learner), "a learner: {members:?}");
        Ok(members)
    }

    /// The slot whose etcd leads, asked on `slot`.
    pub fn etcd_leader(&self, slot: &str) -> anyhow::Result<String> {
        // A node's endpoints are all members; any of them knows who leads.
        let id = self.etcd_json(slot, &["endpoint", "status"])?[0]["Status"]["leader"].to_string();
        let member = self.etcd_members(slot)?.into_iter().find(|member| member.id == id);
        Ok(member.with_context(|| format!("no member {id}"))?.name)
    }

    /// Makes `slot`'s etcd the leader.
    pub fn move_etcd_leader(&self, slot: &str) -> anyhow::Result<()> {
        let holder = self.etcd_leader(slot)?;
        let target = self.etcd_members(slot)?.into_iter().find(|member| member.name == slot).context("a voter")?;
        if holder != slot {
            let id = format!("{:x}", target.id.parse::<u64>()?);
            self.output(&holder, &["etcdctl", "move-leader", &id])?;
        }
        // After a partition TCP may still be waiting to try again what the new leader says to one of the others: that one knows
        // of no leader for seconds, and may be the one that is asked.
        self.wait_for("the moved leader of etcd", LEADER, || {
            ensure!(self.etcd_leader(slot)? == slot, "etcd's leader did not come to {slot}");
            Ok(())
        })
    }

    fn etcd_json(&self, slot: &str, argv: &[&str]) -> anyhow::Result<Value> {
        let mut full = vec!["etcdctl"];
        full.extend_from_slice(argv);
        full.extend_from_slice(&["-w", "json"]);
        let text = self.output(slot, &full)?;
        serde_json::from_str(&text).with_context(|| format!("reading etcdctl's answer: {text}"))
    }

    /// PostgreSQL's system identifier on a node.
    pub fn system_identifier(&self, slot: &str) -> anyhow::Result<String> {
        self.psql(slot, "SELECT system_identifier FROM pg_control_system()")
    }
}
