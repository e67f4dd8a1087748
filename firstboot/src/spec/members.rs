//! Who else there is: every node with a fixed place, with or without a vote.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::reader::Reader;
use super::tree::Node;
use super::{NodeSpec, Role};

/// One node as the others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// What it does.
    pub role: Role,
    /// Where it is.
    pub address: IpAddr,
}

impl Role {
    /// Whether nodes of this role have a copy of the database.
    pub fn stores_data(self) -> bool {
        matches!(self, Self::Node | Self::Database | Self::Replica | Self::Standby)
    }

    /// Whether nodes of this role proxy clients.
    pub fn proxies(self) -> bool {
        matches!(self, Self::Node | Self::Proxy)
    }

    /// Whether nodes of this role may be among the seeds.
    pub fn may_vote(self) -> bool {
        matches!(self, Self::Node | Self::Database | Self::Etcd)
    }
}

impl NodeSpec {
    /// Every node with a fixed place, this one included: `members`, or the seeds if all are like this node.
    pub fn all_members(&self) -> BTreeMap<String, Member> {
        if !self.members.is_empty() {
            return self.members.clone();
        }
        let seeds = self.seeds.iter().map(|(slot, ip)| (slot.clone(), Member { role: self.role, address: *ip }));
        seeds.collect()
    }

    /// The nodes whose role satisfies `what`, slot and address.
    pub fn members_that(&self, what: impl Fn(Role) -> bool) -> BTreeMap<String, IpAddr> {
        let members = self.all_members().into_iter().filter(|(_, member)| what(member.role));
        members.map(|(slot, member)| (slot, member.address)).collect()
    }
}

pub(super) fn read(r: &mut Reader<'_>, node: &Node) -> BTreeMap<String, Member> {
    r.mapping_of_names(node, "pgkiln.members");
    let member = |(key, value): &(super::tree::Key, Node)| {
        let path = format!("pgkiln.members.{}", key.name);
        r.mapping(value, &path, &["role", "address"]);
        let role = r.required(value, &path, "role").and_then(|n| r.choice(n, &format!("{path}.role"), &Role::NAMES));
        let address = r.required(value, &path, "address");
        let address = address.and_then(|n| r.parsed(n, &format!("{path}.address"), "10.0.0.21"));
        Some((key.name.clone(), Member { role: role?, address: address? }))
    };
    node.entries().iter().filter_map(member).collect()
}

/// Contradictions between `members`, `seeds` and this node.
pub(super) fn check(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let line = |slot: &str| node.get(slot).map_or(node.line, |member| member.line);
    for (slot, member) in spec.members.iter().filter(|(slot, _)| !super::check::is_name(slot)) {
        let remedy = "use lower-case letters, digits and hyphens, beginning with a letter, at most 63";
        r.problem(line(slot), format!("`{slot}` ({}) cannot be a slot", member.address), remedy);
    }
    for (slot, seed) in &spec.seeds {
        match spec.members.get(slot) {
            None => r.problem(node.line, format!("seed `{slot}` is not among the members"), "name every node there"),
            Some(member) if member.address != *seed => {
                let what = format!("member `{slot}` has address {}, the seeds say {seed}", member.address);
                r.problem(line(slot), what, "write the same address at both places");
            }
            Some(member) if !member.role.may_vote() => {
                let what = format!("seed `{slot}` has role `{}`, which has no vote", member.role.name());
                r.problem(line(slot), what, "seeds have role node, database or etcd");
            }
            Some(_) => {}
        }
    }
    match spec.members.get(&spec.slot) {
        None => {
            let what = format!("slot `{}` is not among the members", spec.slot);
            r.problem(node.line, what, "name every node there, this one too");
        }
        Some(own) if own.role != spec.role => {
            let what = format!("role `{}` differs from member `{}` ({})", spec.role.name(), spec.slot, own.role.name());
            r.problem(line(&spec.slot), what, "both must name this node's role");
        }
        Some(own) if spec.ip().is_some_and(|ip| ip != own.address) => {
            let what = format!("member `{}` has address {}, this node another", spec.slot, own.address);
            r.problem(line(&spec.slot), what, "both must name this node's address");
        }
        Some(_) => {}
    }
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (slot, member) in &spec.members {
        if let Some(other) = owners.insert(member.address, slot) {
            let what = format!("members `{other}` and `{slot}` have the same address {}", member.address);
            r.problem(line(slot), what, "give every slot its own address");
        }
    }
}
