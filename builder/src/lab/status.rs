//! What `pgkiln lab status` shows.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whether a node is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// No process of it exists.
    Off,
    /// On its way to its PID 1.
    Starting,
    /// Its systemd runs.
    Running,
    /// Was asked to shut down.
    Stopping,
}

/// A lab and its nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The image its nodes run.
    pub image: PathBuf,
    /// Where the nodes' data is.
    pub state_dir: PathBuf,
    /// Network of the nodes.
    pub subnet: String,
    /// Process id of the supervisor.
    pub pid: i32,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// Ports on 127.0.0.1.
    pub published: Vec<Published>,
    /// Pairs `[from, to]` whose traffic is dropped.
    pub partitions: Vec<(String, String)>,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its slot.
    pub slot: String,
    /// Whether it is on.
    pub state: NodeState,
    /// Seconds in that state.
    pub seconds: u64,
    /// How often it was started.
    pub starts: u32,
    /// Address it is expected to have.
    pub address: IpAddr,
    /// Addresses it has, with prefix length; link-local ones left out.
    pub addresses: Vec<String>,
    /// The agent's own `/run/pgkiln/status.json`, if it has written one.
    pub agent: Option<serde_json::Value>,
    /// How its last run ended.
    pub last_end: Option<String>,
    /// File with its console output.
    pub console: PathBuf,
}

/// A port on 127.0.0.1 and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Slot, or address.
    pub slot: String,
    /// Port there.
    pub port: u16,
    /// Port on 127.0.0.1.
    pub host_port: u16,
}

impl Status {
    /// The host port that leads to `port` of `slot`.
    pub fn host_port(&self, slot: &str, port: u16) -> Option<u16> {
        self.published.iter().find(|p| p.slot == slot && p.port == port).map(|p| p.host_port)
    }

    /// The table people read.
    pub fn table(&self) -> String {
        let mut out = format!("lab {}  image {}  network {}\n\n", self.name, self.image.display(), self.subnet);
        let _ = writeln!(out, "{:<12} {:<9} {:>7}  {:<18} AGENT", "NODE", "STATE", "FOR", "ADDRESS");
        for node in &self.nodes {
            let state = format!("{:?}", node.state).to_lowercase();
            let seconds = crate::progress::seconds(std::time::Duration::from_secs(node.seconds));
            let has = |text: &String| text.split('/').next() == Some(&node.address.to_string());
            let address = match node.addresses.iter().any(has) {
                true => node.address.to_string(),
                false => format!("({})", node.address),
            };
            let _ = writeln!(out, "{:<12} {state:<9} {seconds:>7}  {address:<18} {}", node.slot, node.agent_line());
        }
        for p in &self.published {
            let _ = write!(out, "\n127.0.0.1:{} -> {}:{}", p.host_port, p.slot, p.port);
        }
        for (from, to) in &self.partitions {
            let _ = write!(out, "\ncut: {from} -> {to}");
        }
        out.trim_end().to_owned()
    }
}

impl NodeStatus {
    fn agent_line(&self) -> String {
        let text = |key: &str| self.agent.as_ref().and_then(|status| status.get(key)?.as_str().map(str::to_owned));
        match (text("phase"), text("verdict"), text("waiting_for")) {
            (Some(phase), _, Some(waiting)) if !waiting.is_empty() => format!("{phase}: waiting for {waiting}"),
            (Some(phase), Some(verdict), _) => format!("{phase}, {verdict}"),
            (Some(phase), None, _) => phase,
            (None, ..) => self.last_end.clone().unwrap_or_else(|| "-".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_matters() {
        let node = |slot: &str, agent, addresses: &[&str]| NodeStatus {
            slot: slot.into(),
            state: if agent == serde_json::Value::Null { NodeState::Off } else { NodeState::Running },
            seconds: 73,
            starts: 1,
            address: "10.0.0.11".parse().unwrap(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            agent: Some(agent),
            last_end: Some("killed".into()),
            console: PathBuf::new(),
        };
        let waiting = serde_json::json!({"phase": "Waiting", "waiting_for": "etcd quorum", "verdict": "undecided"});
        let status = Status {
            name: "orders".into(),
            image: "/img".into(),
            state_dir: PathBuf::new(),
            subnet: "10.0.0.0/24".into(),
            pid: 1,
            nodes: vec![node("pg-1", waiting, &["10.0.0.11/24"]), node("pg-2", serde_json::Value::Null, &[])],
            published: vec![Published { slot: "pg-1".into(), port: 5000, host_port: 15000 }],
            partitions: vec![("pg-1".into(), "pg-2".into())],
        };
        insta::assert_snapshot!(status.table(), @r"
        lab orders  image /img  network 10.0.0.0/24

        NODE         STATE         FOR  ADDRESS            AGENT
        pg-1         running       73s  10.0.0.11          Waiting: waiting for etcd quorum
        pg-2         off           73s  (10.0.0.11)        killed

        127.0.0.1:15000 -> pg-1:5000
        cut: pg-1 -> pg-2
        ");
        assert_eq!(status.host_port("pg-1", 5000), Some(15000));
    }
}
