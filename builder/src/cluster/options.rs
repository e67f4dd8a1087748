//! The arguments of `pgkiln cluster new` as a definition.

use std::net::IpAddr;

use firstboot::spec::{Durability, Role, Vip, VipMode};
use ipnet::IpNet;

use super::definition::{Definition, Node};
use crate::problem::Problem;

/// What `pgkiln cluster new` is told.
#[derive(Debug, Default)]
pub struct Options {
    /// Name of the cluster.
    pub name: String,
    /// Nodes as `ADDRESS` or `SLOT=ADDRESS`; slots are `pg-1`, `pg-2`, … where none is given.
    pub nodes: Vec<String>,
    /// What they do; `node` where nothing is said.
    pub role: Option<Role>,
    /// Nodes that run etcd only, as `nodes`; slots are `etcd-1`, …
    pub etcd: Vec<String>,
    /// Nodes that run HAProxy only; slots are `px-1`, …
    pub proxies: Vec<String>,
    /// Repository hosts for backups; slots are `bkp-1`, …
    pub backup: Vec<String>,
    /// Network of the nodes; without it `prefix_len` tells.
    pub subnet: Option<IpNet>,
    /// Prefix length of the nodes' addresses.
    pub prefix_len: Option<u8>,
    /// Router of that network.
    pub gateway: Option<IpAddr>,
    /// Virtual IP, moved by Keepalived.
    pub vip: Option<IpAddr>,
    /// First database.
    pub database: Option<String>,
    /// Its owner; `<database>_app` where none is given.
    pub owner: Option<String>,
    /// Networks whose clients may log in.
    pub client_networks: Vec<IpNet>,
}

impl Options {
    /// The definition these options mean; contradictions within it are for [`super::create`] to find.
    pub fn definition(&self) -> Result<Definition, Problem> {
        let mut nodes = nodes(&self.nodes, "--nodes", "pg", None)?;
        for (texts, argument, prefix, role) in [
            (&self.etcd, "--etcd", "etcd", Role::Etcd),
            (&self.proxies, "--proxy", "px", Role::Proxy),
            (&self.backup, "--backup", "bkp", Role::Backup),
        ] {
            nodes.extend(self::nodes(texts, argument, prefix, Some(role))?);
        }
        let subnet = self.subnet(&nodes)?;
        let mut definition = Definition::new(&self.name, subnet, nodes);
        definition.role = self.role.unwrap_or(Role::Node);
        // Zero-loss needs somebody who confirms.
        if definition.data_nodes() == 1 {
            definition.postgres.durability = Durability::Available;
        }
        definition.gateway = self.gateway;
        definition.vip = self.vip(subnet)?;
        definition.client_networks.clone_from(&self.client_networks);
        match (&self.database, &self.owner) {
            (Some(database), owner) => {
                let owner = owner.clone().unwrap_or_else(|| format!("{database}_app"));
                Ok(definition.with_database(database, &owner))
            }
            (None, Some(owner)) => {
                let what = format!("--owner {owner} is given without --database");
                Err(Problem::new(what, "--owner", "add --database NAME, or leave --owner out"))
            }
            (None, None) => Ok(definition),
        }
    }

    fn vip(&self, subnet: IpNet) -> Result<Option<Vip>, Problem> {
        let Some(address) = self.vip else { return Ok(None) };
        let address = IpNet::new(address, subnet.prefix_len()).map_err(|_| {
            let what = format!("virtual address {address} is outside the subnet {subnet}");
            Problem::new(what, "--vip", "use a free address of the subnet")
        })?;
        Ok(Some(Vip { address, mode: VipMode::Lan }))
    }

    fn subnet(&self, nodes: &[Node]) -> Result<IpNet, Problem> {
        if let Some(subnet) = self.subnet {
            return Ok(subnet);
        }
        let Some(first) = nodes.first().map(|node| node.address) else {
            return Err(Problem::new("no nodes are given", "--nodes", "name 1, 3 or 5: --nodes 10.0.0.11,10.0.0.12,…"));
        };
        let prefix_len = self.prefix_len.unwrap_or(if first.is_ipv4() { 24 } else { 64 });
        IpNet::new(first, prefix_len).map(|net| net.trunc()).map_err(|_| {
            let what = format!("{prefix_len} is no prefix length of address {first}");
            Problem::new(what, "--prefix-len", "give the number of network bits, usually 24 (IPv4) or 64 (IPv6)")
        })
    }
}

/// One argument's nodes; those without a name are numbered.
fn nodes(texts: &[String], argument: &str, prefix: &str, role: Option<Role>) -> Result<Vec<Node>, Problem> {
    let node = |(index, text): (usize, &String)| {
        let (slot, address) = match text.split_once('=') {
            Some((slot, address)) => (slot.to_owned(), address),
            None => (format!("{prefix}-{}", index + 1), text.as_str()),
        };
        let address = address.parse::<IpAddr>().map_err(|_| {
            let what = format!("`{address}` is no IP address");
            let remedy = format!("write addresses like 10.0.0.11, or slots with them like {prefix}-1=10.0.0.11");
            Problem::new(what, argument, remedy)
        })?;
        Ok(Node { role, ..Node::new(slot, address) })
    };
    texts.iter().enumerate().map(node).collect()
}
