//! Which servers HAProxy must have, and the commands that take it there: pure, so that every combination can be tried.
//!
//! The registry decides which servers *exist*, health checks decide whether they *serve*. A server goes only when its
//! entry was there and is deleted (or names another address, or a role without PostgreSQL), and its check is not up.
//! A seed that never registered stays: nobody has said that it does not exist. A lease that ran out removes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::state::Running;
use crate::register::Node;
use crate::spec::Role;

/// HAProxy's two backends: the leader, the replicas.
pub const BACKENDS: [&str; 2] = [RW, RO];
/// Backend of the leader.
pub const RW: &str = "rw";
/// Backend of the replicas.
pub const RO: &str = "ro";

/// One server of both backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Where PostgreSQL and Patroni listen.
    pub address: IpAddr,
    /// Whether it has ever been in the registry; only then its absence there means something.
    pub registered: bool,
}

/// Servers by slot.
pub type Servers = BTreeMap<String, Server>;

/// Nodes of the specification, for as long as nothing better is known.
pub fn unregistered(nodes: &BTreeMap<String, IpAddr>) -> Servers {
    nodes.iter().map(|(slot, ip)| (slot.clone(), Server { address: *ip, registered: false })).collect()
}

/// What the registry says at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    /// Entries of the nodes by slot.
    pub nodes: BTreeMap<String, Node>,
    /// Slots whose lease is held.
    pub held: BTreeSet<String>,
}

impl Registry {
    /// Address of a node that runs PostgreSQL.
    fn server(&self, slot: &str) -> Option<IpAddr> {
        let node = self.nodes.get(slot)?;
        let role = Role::NAMES.iter().find(|(name, _)| *name == node.role)?.1;
        node.address.parse().ok().filter(|_| role.stores_data())
    }

    /// Whether a node that runs says that it goes: it gets no new readers.
    fn leaves(&self, slot: &str) -> bool {
        self.held.contains(slot) && self.nodes.get(slot).is_some_and(|node| node.state == "leaving")
    }
}

/// What HAProxy should have, given what it had (`known`), what it has (`running`) and the registry.
pub fn desired(known: &Servers, running: &[Running], registry: &Registry) -> Servers {
    let serves = |slot: &str| running.iter().any(|server| server.name == slot && server.up);
    let mut servers = known.clone();
    servers.retain(|slot, server| {
        server.registered |= registry.nodes.contains_key(slot);
        let exists = registry.server(slot) == Some(server.address);
        // An empty registry is no cluster that left, but one that is not there yet.
        exists || !server.registered || registry.nodes.is_empty() || serves(slot)
    });
    for slot in registry.nodes.keys() {
        if let Some(address) = registry.server(slot) {
            servers.entry(slot.clone()).or_insert(Server { address, registered: true });
        }
    }
    servers
}

/// A change of the running HAProxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A server it does not have; down until its checks say otherwise.
    Add {
        /// Backend.
        backend: &'static str,
        /// Slot.
        slot: String,
        /// Address.
        address: IpAddr,
    },
    /// A server that does not exist any more.
    Remove {
        /// Backend.
        backend: &'static str,
        /// Slot.
        slot: String,
    },
    /// No new connections, old ones go on.
    Drain(String),
    /// Serves whenever its checks are up.
    Ready {
        /// Backend.
        backend: &'static str,
        /// Slot.
        slot: String,
    },
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { backend, slot, address } => write!(f, "{backend}/{slot} ({address}) added"),
            Self::Remove { backend, slot } => write!(f, "{backend}/{slot} removed"),
            Self::Drain(slot) => write!(f, "{RO}/{slot} leaves and gets no new connections"),
            Self::Ready { backend, slot } => write!(f, "{backend}/{slot} gets connections again"),
        }
    }
}

/// The commands from `running` to `servers`. Idempotent: applied, the same call has nothing left to say.
pub fn diff(running: &[Running], servers: &Servers, registry: &Registry) -> Vec<Command> {
    let mut commands = Vec::new();
    let serves = |slot: &str| running.iter().any(|server| server.name == slot && server.up);
    for backend in BACKENDS {
        let wanted =
            |server: &Running| servers.get(&server.name).is_some_and(|wanted| Some(wanted.address) == server.address);
        // Whoever put it there: what serves is not taken away.
        let (stays, goes): (Vec<_>, Vec<_>) =
            running.iter().filter(|server| server.backend == backend).partition(|s| wanted(s) || serves(&s.name));
        let remove = |server: &Running| Command::Remove { backend, slot: server.name.clone() };
        commands.extend(goes.into_iter().map(remove));
        for (slot, server) in servers {
            let present = stays.iter().find(|running| running.name == *slot);
            let drain = backend == RO && registry.leaves(slot);
            let drained = present.is_some_and(|running| running.drained && !running.maintenance);
            match present {
                None => commands.push(Command::Add { backend, slot: slot.clone(), address: server.address }),
                Some(running) if running.maintenance || (drained && !drain) => {
                    commands.push(Command::Ready { backend, slot: slot.clone() });
                }
                Some(_) => {}
            }
            if drain && !drained {
                commands.push(Command::Drain(slot.clone()));
            }
        }
    }
    commands
}

#[cfg(test)]
#[path = "servers_tests.rs"]
mod tests;
