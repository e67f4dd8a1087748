//! The arguments of `pgkiln cluster new` as a definition.

use std::net::IpAddr;

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
    /// Network of the nodes; without it `prefix_len` tells.
    pub subnet: Option<IpNet>,
    /// Prefix length of the nodes' addresses.
    pub prefix_len: Option<u8>,
    /// Router of that network.
    pub gateway: Option<IpAddr>,
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
        let nodes = self.nodes.iter().enumerate().map(|(index, text)| node(index, text));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let subnet = self.subnet(&nodes)?;
        let mut definition = Definition::new(&self.name, subnet, nodes);
        definition.gateway = self.gateway;
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

fn node(index: usize, text: &str) -> Result<Node, Problem> {
    let (slot, address) = match text.split_once('=') {
        Some((slot, address)) => (slot.to_owned(), address),
        None => (format!("pg-{}", index + 1), text),
    };
    let address = address.parse::<IpAddr>().map_err(|_| {
        let what = format!("`{address}` is no IP address");
        Problem::new(what, "--nodes", "write addresses like 10.0.0.11, or slots with them like pg-1=10.0.0.11")
    })?;
    Ok(Node { slot, address, mac: None })
}
