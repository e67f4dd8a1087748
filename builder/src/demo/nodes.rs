//! The nodes of the demo's lab, asked from outside: through the virtual IP as an application, and as root on the node itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;

use super::READ_WRITE;
use super::client::Session;
use crate::cluster::Definition;
use crate::lab::{ExecOutput, Lab};

/// A replica as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replica {
    pub(super) slot: String,
    pub(super) streaming: bool,
    /// Whether a commit waits for it (alone or in a quorum).
    pub(super) synchronous: bool,
}

#[derive(Clone)]
pub(super) struct Nodes {
    pub(super) lab: Arc<Lab>,
    cluster: String,
    slots: BTreeMap<IpAddr, String>,
    /// Slot of the repository host.
    repository: String,
    vip: IpAddr,
    /// Host port that leads to the virtual IP's port for writing.
    pub(super) port: u16,
}

impl Nodes {
    pub(super) fn new(lab: Lab, definition: &Definition) -> anyhow::Result<Self> {
        let databases = definition.nodes.iter().filter(|node| definition.role_of(node).stores_data());
        let slots = databases.map(|node| (node.address, node.slot.clone())).collect();
        let repository = definition.repositories().next().context("the demo's cluster has no repository host")?;
        let vip = definition.vip.as_ref().context("the demo's cluster has no virtual IP")?.address.addr();
        let port = lab.host_port(&vip.to_string(), READ_WRITE)?;
        Ok(Self {
            lab: Arc::new(lab),
            cluster: definition.name.clone(),
            slots,
            repository: repository.to_owned(),
            vip,
            port,
        })
    }

    /// Calls the lab from a thread of its own, so that the writer keeps writing meanwhile.
    pub(super) async fn lab<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Lab) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let lab = Arc::clone(&self.lab);
        tokio::task::spawn_blocking(move || call(&lab)).await.context("asking the lab")?
    }

    /// Label of the first full backup, once it is complete.
    pub(super) async fn first_backup(&self) -> anyhow::Result<String> {
        let listed = self.exec(&self.repository, &["firstboot", "--json", "backups"]).await?;
        let listed: firstboot::backup::Listed = serde_json::from_str(&listed).context("reading the list of backups")?;
        let full = listed.backups.into_iter().find(|backup| backup.kind == "full");
        Ok(full.context("no full backup yet")?.label)
    }

    /// How many nodes store data.
    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// The slots whose interface has the virtual IP.
    pub(super) async fn vip_owners(&self) -> anyhow::Result<Vec<String>> {
        let status = self.lab(Lab::status).await?;
        let has = |addresses: &[String]| {
            let ips = addresses.iter().filter_map(|address| address.split('/').next()?.parse::<IpAddr>().ok());
            ips.into_iter().any(|ip| ip == self.vip)
        };
        Ok(status.nodes.into_iter().filter(|node| has(&node.addresses)).map(|node| node.slot).collect())
    }

    /// The slot whose PostgreSQL answers on this connection; through port 5000 that is the leader.
    pub(super) async fn answering(&self, session: &Session) -> anyhow::Result<String> {
        let row = session.client.query_one("SELECT host(inet_server_addr())", &[]).await?;
        let address: IpAddr = row.get::<_, String>(0).parse().context("reading the server's address")?;
        self.slots.get(&address).cloned().with_context(|| format!("{address} is no node of this cluster"))
    }

    /// What the leader's `pg_stat_replication` says; only a superuser sees it, so it is asked on the node.
    pub(super) async fn replicas(&self, leader: &str) -> anyhow::Result<Vec<Replica>> {
        let query = "SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY 1";
        let output = self.exec(leader, &["psql", "-XAtqF", ",", "-c", query]).await?;
        Ok(output.lines().filter_map(replica).collect())
    }

    /// Slots that may take over from the leader without losing anything: Patroni's `/sync` key. PostgreSQL waits for
    /// standbys a moment before they stand there, and a leader lost in that moment has no successor.
    pub(super) async fn successors(&self, leader: &str) -> anyhow::Result<Vec<String>> {
        let key = format!("/service/{}/sync", self.cluster);
        let sync = self.exec(leader, &["etcdctl", "get", "--print-value-only", &key]).await?;
        successors(&sync).context("reading Patroni's `/sync`")
    }

    /// Runs a command on a node as root; its standard output.
    pub(super) async fn exec(&self, slot: &str, argv: &[&str]) -> anyhow::Result<String> {
        let (slot, argv) = (slot.to_owned(), argv.iter().map(ToString::to_string).collect::<Vec<_>>());
        let output: ExecOutput = self.lab(move |lab| lab.exec(&slot, &argv)).await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What every node says about itself, for an error.
    pub(super) async fn state(&self) -> String {
        match self.lab(Lab::status).await {
            Ok(status) => status.table(),
            Err(error) => format!("the lab does not answer: {error:#}"),
        }
    }
}

fn replica(line: &str) -> Option<Replica> {
    let mut fields = line.split(',');
    let (slot, state, sync) = (fields.next()?, fields.next()?, fields.next()?);
    let synchronous = ["sync", "quorum"].contains(&sync);
    Some(Replica { slot: slot.to_owned(), streaming: state == "streaming", synchronous })
}

fn successors(sync: &str) -> anyhow::Result<Vec<String>> {
    let sync: serde_json::Value = serde_json::from_str(sync)?;
    let names = sync["sync_standby"].as_str().unwrap_or_default().split(',');
    Ok(names.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_as_psql_prints_them() {
        let quorum = replica("pg-2,streaming,quorum").unwrap();
        assert_eq!(quorum, Replica { slot: "pg-2".into(), streaming: true, synchronous: true });
        let catching_up = replica("pg-3,catchup,async").unwrap();
        assert!(!catching_up.streaming && !catching_up.synchronous);
        assert_eq!(replica(""), None);
    }

    #[test]
    fn successors_as_patroni_writes_them() {
        let none = r#"{"leader":"pg-1","quorum":0,"sync_standby":null}"#;
        assert!(successors(none).unwrap().is_empty());
        let two = r#"{"leader":"pg-1","quorum":1,"sync_standby":"pg-2,pg-3"}"#;
        assert_eq!(successors(two).unwrap(), ["pg-2", "pg-3"]);
        assert!(successors("").is_err());
    }
}
