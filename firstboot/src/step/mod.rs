//! Steps: what the plan's actions do to the machine. Each may be killed at any instruction and run again.
//!
//! Adding one: a variant of [`Action`], a module with its work, a line in `plan::actions`.

mod clock;
mod hostname;
mod hugepages;
mod identity;
mod keepalived;
mod network;
mod pki;
mod ssh;
mod units;

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::durable::{self, Owner};
use crate::layout::Layout;
use crate::plan::Desired;
use crate::spec::NodeSpec;
use crate::status::Board;

pub use pki::apply as renew_certificates;

/// Steps that may have to wait for other machines, for somebody, or for the network between them.
const NEED_OTHERS: [&str; 5] = ["network", "join", "form", "etcd", "slot"];

/// Whether the step fails because of this machine and what runs on it only.
pub fn is_local(id: &str) -> bool {
    !NEED_OTHERS.contains(&id)
}

/// What a step works on.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where everything is.
    pub layout: Layout,
    /// Where waiting is said.
    pub board: Board,
}

/// The work of a step, with everything it needs already rendered.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Writes networkd's files and waits for the address.
    Network {
        /// Files for `/run/systemd/network`.
        files: Vec<File>,
        /// Address that must be there.
        address: IpAddr,
    },
    /// Sets the host name and `/etc/hosts`.
    Hostname {
        /// Short name.
        name: String,
        /// `/etc/hosts`.
        hosts: String,
    },
    /// Keeps machine-id across boots.
    Identity,
    /// Sets the time zone and starts the time service.
    Clock {
        /// Time zone.
        zone: Option<String>,
        /// chrony's sources; `None`: the distribution's.
        sources: Option<String>,
        /// Time service.
        unit: Option<String>,
    },
    /// Gives root keys and starts sshd.
    Ssh {
        /// `authorized_keys`, one a line.
        keys: Vec<String>,
        /// sshd.
        unit: String,
    },
    /// Makes keys and certificates and hands each service its own.
    Pki {
        /// Names and addresses that go into certificates.
        spec: Box<NodeSpec>,
    },
    /// Asks the voters to be let in.
    Join,
    /// Waits for the founding bundle.
    Form,
    /// Writes files.
    Files(Vec<File>),
    /// Founds or joins etcd.
    Etcd {
        /// etcd's unit.
        unit: String,
    },
    /// Holds this slot's lease.
    Slot,
    /// Reserves huge pages.
    HugePages(crate::tune::hugepages::Question),
    /// Moves the virtual IP.
    Keepalived {
        /// Keepalived's unit.
        unit: String,
    },
    /// Starts a unit.
    Start {
        /// The unit.
        unit: String,
    },
}

/// A file to write. What it contains is not printed: it may be secret.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Absolute path on the node.
    pub path: String,
    /// Its bytes.
    pub text: String,
    /// Its mode from the moment it exists.
    pub mode: u32,
    /// User and group; root if absent.
    pub owner: Option<(&'static str, &'static str)>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({}, {:04o}, {} bytes)", self.path, self.mode, self.text.len())
    }
}

impl File {
    /// A world-readable file of root.
    pub fn public(path: impl Into<String>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into(), mode: 0o644, owner: None }
    }

    /// A file of a service.
    pub fn owned(
        path: impl Into<String>,
        text: impl Into<String>,
        mode: u32,
        owner: (&'static str, &'static str),
    ) -> Self {
        Self { path: path.into(), text: text.into(), mode, owner: Some(owner) }
    }

    /// Owner for the printed plan.
    pub fn owner_name(&self) -> String {
        self.owner.map_or("root".to_owned(), |(user, group)| format!("{user}:{group}"))
    }

    /// Writes it. `/run` and `/etc` are memory: syncing them would only cost time.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        let owner = self.owner.map(|(user, group)| Owner { user, group });
        let path = layout.at(&self.path);
        if self.path.starts_with("/run/") || self.path.starts_with("/etc/") {
            return durable::write_volatile(&path, self.text.as_bytes(), self.mode, owner);
        }
        match owner {
            Some(owner) => durable::write_owned(&path, self.text.as_bytes(), self.mode, owner),
            None => durable::write(&path, self.text.as_bytes(), self.mode),
        }
    }
}

impl Action {
    /// Everything the action depends on, as bytes for the digest.
    pub fn input(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).context("digesting a step's input")
    }

    /// Files it writes.
    pub fn files(&self) -> &[File] {
        match self {
            Self::Network { files, .. } | Self::Files(files) => files,
            _ => &[],
        }
    }

    /// Does the work. Founding etcd and holding the slot need the agent's running parts: `run` does those.
    pub async fn apply(&self, host: &Host, desired: &Desired) -> Result<()> {
        match self {
            Self::Network { files, address } => network::apply(host, files, *address).await,
            Self::Hostname { name, hosts } => hostname::apply(host, name, hosts),
            Self::Identity => identity::apply(host),
            Self::Clock { zone, sources, unit } => {
                clock::apply(host, zone.as_deref(), sources.as_deref(), unit.as_deref()).await
            }
            Self::Ssh { keys, unit } => ssh::apply(host, keys, unit).await,
            Self::Pki { spec } => pki::apply(host, spec, &desired.secrets),
            Self::Files(files) => files.iter().try_for_each(|file| file.write(&host.layout)),
            Self::Start { unit } => units::start(host, unit).await,
            Self::HugePages(question) => hugepages::apply(host, question).await,
            Self::Keepalived { unit } => keepalived::apply(host, desired, unit),
            Self::Join | Self::Form | Self::Etcd { .. } | Self::Slot => Ok(()),
        }
    }
}
