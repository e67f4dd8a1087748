//! Who belongs to the cluster, for pgBackRest: the specification's members and whoever joined since, from the registry.

use anyhow::{Context, Result};
use fs_err as fs;

use super::Backups;
use crate::durable;
use crate::facts::Facts;
use crate::register::Node;
use crate::render::pgbackrest::{self, Peer, Peers};
use crate::spec::{NodeSpec, Role};

/// The specification's members.
pub fn members(spec: &NodeSpec) -> Peers {
    let members = spec.all_members().into_iter();
    members.map(|(slot, member)| (slot, Peer { role: member.role, address: member.address })).collect()
}

/// A node of the registry, and the version of its pgBackRest.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) slot: String,
    pub(super) role: Role,
    pub(super) pgbackrest: Option<String>,
}

impl Backups {
    /// The nodes; the registry wins, for it says where a node is now.
    pub(super) async fn peers(&self) -> Result<(Peers, Vec<Registered>)> {
        let prefix = self.keys.node("");
        let mut peers = members(self.desired.spec());
        let mut registered = Vec::new();
        for found in self.client.list(&prefix).await? {
            let key = String::from_utf8_lossy(&found.key).into_owned();
            let (Some(slot), Ok(node)) = (key.strip_prefix(&prefix), found.json::<Node>()) else { continue };
            let role = Role::NAMES.iter().find(|(name, _)| *name == node.role).map(|(_, role)| *role);
            let (Some(role), Ok(address)) = (role, node.address.parse()) else { continue };
            peers.insert(slot.to_owned(), Peer { role, address });
            registered.push(Registered { slot: slot.to_owned(), role, pgbackrest: node.pgbackrest });
        }
        Ok((peers, registered))
    }

    /// Writes pgBackRest's files and `/etc/hosts` if they differ, and makes the server read them.
    pub(super) async fn configure(&self, peers: &Peers) -> Result<()> {
        let mut changed = false;
        for file in pgbackrest::files(&self.desired, peers, self.queue_max_mib)? {
            if fs::read(self.layout.at(&file.path)).ok().as_deref() != Some(file.text.as_bytes()) {
                file.write(&self.layout)?;
                changed = true;
            }
        }
        let path = self.layout.at("/etc/hosts");
        let present = fs::read_to_string(&path).unwrap_or_default();
        let wanted = pgbackrest::hosts(&present, peers);
        if present != wanted {
            durable::write_volatile(&path, wanted.as_bytes(), 0o644, None)?;
        }
        if changed {
            tracing::info!("pgBackRest's configuration follows the registry: {} nodes", peers.len());
            let unit = self.desired.image.unit("pgbackrest")?;
            super::systemctl(&["reload-or-restart", unit]).await.context("reloading pgBackRest's server")?;
        }
        Ok(())
    }
}

/// How much WAL may wait for the repository host, in MiB: a quarter of the disk, for a full one stops all writes.
pub fn queue_max_mib(facts: &Facts) -> u64 {
    (facts.data_mib / 4).max(1024)
}
