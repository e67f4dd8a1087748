//! `cluster.toml`: what a cluster is, without anything secret. Written by `pgkiln cluster new`, edited by its operator,
//! read strictly ([`super::read`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use firstboot::spec::{self, Durability, NodeSpec, Postgres, Role, Tweaks, Vip};
use ipnet::IpNet;
use serde::Serialize;
use uuid::Uuid;

/// Version of `cluster.toml`.
pub(super) const SCHEMA: i64 = 1;

/// What a cluster is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Definition {
    /// Version of the format.
    pub schema: i64,
    /// Name: Patroni's scope, and the host name clients verify.
    pub name: String,
    /// Identity; a new one is a new cluster.
    pub uuid: Uuid,
    /// What the nodes do, unless they say something else.
    pub role: Role,
    /// Network of the nodes; their addresses get its prefix length.
    pub subnet: IpNet,
    /// Router of that network, if the nodes are to have a default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Name servers of the nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<IpAddr>,
    /// Networks whose clients may log in (TLS and password); besides the cluster's own addresses.
    pub client_networks: Vec<IpNet>,
    /// Keys that may log in as root; without any, sshd stays off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_authorized_keys: Vec<String>,
    /// Virtual IP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Vip>,
    /// The nodes; 1, 3 or 5 of them vote.
    pub nodes: Vec<Node>,
    /// PostgreSQL: durability, recovery time, databases, roles, parameters.
    pub postgres: Postgres,
    /// Backups; without it a node of role `backup` makes them at the usual times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// Switches of what the agent does beyond the components' own ways.
    #[serde(skip_serializing_if = "Tweaks::is_default")]
    pub tweaks: Tweaks,
}

/// When backups are made, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// Slot of the repository host [default: the first node of role `backup`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When full backups are made (systemd calendar expression).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// How many full backups are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_full: Option<u32>,
}

/// One place in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Stable name; survives re-imaging.
    pub slot: String,
    /// Address within the subnet.
    pub address: IpAddr,
    /// What it does; the cluster's `role` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// MAC address of its interface, where the machine has more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

impl Node {
    /// A node with the cluster's role.
    pub fn new(slot: impl Into<String>, address: IpAddr) -> Self {
        Self { slot: slot.into(), address, role: None, mac: None }
    }

    /// The same with a role of its own.
    #[must_use]
    pub fn with_role(self, role: Role) -> Self {
        Self { role: Some(role), ..self }
    }
}

impl Definition {
    /// A cluster of these nodes with a new identity and no client network, database or role.
    pub fn new(name: impl Into<String>, subnet: IpNet, nodes: Vec<Node>) -> Self {
        Self {
            schema: SCHEMA,
            name: name.into(),
            uuid: Uuid::new_v4(),
            role: Role::Node,
            subnet: subnet.trunc(),
            gateway: None,
            nameservers: Vec::new(),
            client_networks: Vec::new(),
            ssh_authorized_keys: Vec::new(),
            vip: None,
            nodes,
            postgres: Postgres { durability: Durability::ZeroLoss, ..Postgres::default() },
            backup: None,
            tweaks: Tweaks::default(),
        }
    }

    /// Adds a database and the role that owns it and may log in.
    #[must_use]
    pub fn with_database(mut self, name: &str, owner: &str) -> Self {
        self.postgres.databases.push(spec::Database { name: name.to_owned(), owner: Some(owner.to_owned()) });
        self.postgres.roles.push(spec::PgRole { name: owner.to_owned(), login: true });
        self
    }

    /// The node in `slot`.
    pub fn node(&self, slot: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.slot == slot)
    }

    /// What a node does.
    pub fn role_of(&self, node: &Node) -> Role {
        node.role.unwrap_or(self.role)
    }

    /// The voters: nodes of role `node` or `etcd`; without any, those of role `database` run etcd as well.
    pub fn voters(&self) -> impl Iterator<Item = &Node> {
        let apart = self.nodes.iter().any(|node| matches!(self.role_of(node), Role::Node | Role::Etcd));
        self.nodes.iter().filter(move |node| match self.role_of(node) {
            Role::Node | Role::Etcd => true,
            Role::Database => !apart,
            Role::Proxy | Role::Backup | Role::Replica | Role::Standby => false,
        })
    }

    /// How many nodes store data.
    pub fn data_nodes(&self) -> usize {
        self.nodes.iter().filter(|node| self.role_of(node).stores_data()).count()
    }

    /// Whether the node in `slot` is one of the voters, which found the cluster.
    pub fn is_voter(&self, slot: &str) -> bool {
        self.voters().any(|node| node.slot == slot)
    }

    /// Every node for the specification; empty where `seeds` and the node's own role say it all.
    fn members(&self) -> BTreeMap<String, spec::Member> {
        let alike = self.nodes.iter().all(|node| self.role_of(node) == self.role && self.is_voter(&node.slot));
        let nodes = self.nodes.iter().filter(|_| !alike);
        let member = |node: &Node| spec::Member { role: self.role_of(node), address: node.address };
        nodes.map(|node| (node.slot.clone(), member(node))).collect()
    }

    /// Slots of role `backup`.
    pub fn repositories(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|node| self.role_of(node) == Role::Backup).map(|node| node.slot.as_str())
    }

    /// Backups as the nodes know them.
    fn backups(&self) -> Option<spec::Backup> {
        let wanted = self.backup.clone().unwrap_or_default();
        let host = wanted.host.or_else(|| self.repositories().next().map(str::to_owned))?;
        let backup = spec::Backup::on_host(host);
        Some(spec::Backup { full: wanted.full, retention_full: wanted.retention_full, ..backup })
    }

    /// Roles that log in, and so have a password.
    pub fn login_roles(&self) -> impl Iterator<Item = &str> {
        self.postgres.roles.iter().filter(|role| role.login).map(|role| role.name.as_str())
    }

    /// `cluster.toml`.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let body = toml::to_string(self)?;
        Ok(format!(
            "# Cluster `{}`. Edit, then write its seeds again: pgkiln cluster seed. `uuid` is its identity; never change it.\n\
             {body}",
            self.name
        ))
    }

    /// What the node in `slot` must become; without secrets.
    pub fn node_spec(&self, node: &Node, ca_sha256: &str) -> NodeSpec {
        NodeSpec {
            schema: spec::SCHEMA,
            cluster: spec::Cluster { name: self.name.clone(), uuid: self.uuid, ca_sha256: ca_sha256.to_owned() },
            slot: node.slot.clone(),
            role: self.role_of(node),
            address: IpNet::new(node.address, self.subnet.prefix_len()).ok(),
            seeds: self.voters().map(|node| (node.slot.clone(), node.address)).collect(),
            members: self.members(),
            join: None,
            vip: self.vip.clone(),
            client_networks: self.client_networks.clone(),
            postgres: self.postgres.clone(),
            backup: self.backups(),
            pooler: spec::Pooler::default(),
            disks: spec::Disks::default(),
            tweaks: self.tweaks,
            founding: None,
        }
    }
}
