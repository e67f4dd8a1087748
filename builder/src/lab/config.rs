//! What a lab consists of: the caller's [`Options`], checked before anything is started.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::machine::Machine;
use super::{accel, qemu};
use crate::problem::Problem;

/// Longest name of a lab or a slot; both become part of a host name.
const NAME_LIMIT: usize = 40;

/// What runs the nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Containers with the image's own systemd as PID 1; the host's kernel and clock
    #[default]
    Nspawn,
    /// Machines with firmware, disk and kernel of their own; boots a disk image
    Qemu,
}

/// A lab to be started by [`Lab::up`](super::Lab::up).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Name, unique among the labs of this machine.
    pub name: String,
    /// What runs the nodes.
    pub engine: Engine,
    /// Root image: a squashfs or erofs file, or a directory; for machines, a disk. Never written to.
    pub image: PathBuf,
    /// Network of the nodes. The lab takes one free address of it, the nodes configure their own.
    pub subnet: IpNet,
    /// The nodes.
    pub nodes: Vec<NodeOptions>,
    /// Ports on 127.0.0.1 that lead to the nodes.
    pub publish: Vec<Publish>,
    /// Hardware of nodes that are machines.
    #[serde(default)]
    pub machine: Machine,
    /// Key that gets into nodes that are machines; their seeds must carry its public half.
    #[serde(default)]
    pub ssh_key: Option<PathBuf>,
    /// Where nodes keep `/var` and their console [default: /var/lib/pgkiln/lab/NAME].
    pub state_dir: PathBuf,
    /// The `pgkiln` program that supervises; found by itself when the caller is `pgkiln` or was built beside it.
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

/// One node of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeOptions {
    /// Name of its place in the cluster.
    pub slot: String,
    /// Address the node will give itself; where the relay connects to.
    pub address: IpAddr,
    /// NoCloud seed copied to `/var/lib/cloud/seed/nocloud` before the first boot.
    pub seed_dir: Option<PathBuf>,
    /// Boot it together with the lab; otherwise by [`Lab::start`](super::Lab::start).
    pub start: bool,
}

/// A port on 127.0.0.1 that leads to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Slot, or an address in the subnet (a virtual IP).
    pub slot: String,
    /// Port on the node.
    pub port: u16,
    /// Port on 127.0.0.1; `None` or 0: a free one.
    pub host_port: Option<u16>,
}

impl Options {
    /// A lab without nodes in the default place.
    pub fn new(name: impl Into<String>, image: impl Into<PathBuf>, subnet: IpNet) -> Self {
        let name = name.into();
        let state_dir = default_state_dir(&name);
        let (nodes, publish) = (Vec::new(), Vec::new());
        Self {
            name,
            engine: Engine::default(),
            image: image.into(),
            subnet: subnet.trunc(),
            nodes,
            publish,
            machine: Machine::default(),
            ssh_key: None,
            state_dir,
            program: None,
        }
    }

    /// Adds a node that boots with the lab.
    #[must_use]
    pub fn node(mut self, slot: impl Into<String>, address: IpAddr, seed_dir: Option<PathBuf>) -> Self {
        self.nodes.push(NodeOptions { slot: slot.into(), address, seed_dir, start: true });
        self
    }

    /// Publishes a port of a node on a free host port, or on `host_port`.
    #[must_use]
    pub fn publish(mut self, slot: impl Into<String>, port: u16, host_port: Option<u16>) -> Self {
        self.publish.push(Publish { slot: slot.into(), port, host_port });
        self
    }

    /// Makes paths absolute and refuses what cannot work, before anything is started.
    pub(super) fn checked(mut self) -> anyhow::Result<Self> {
        check_name("lab name", &self.name)?;
        self.state_dir = std::path::absolute(&self.state_dir)?;
        self.image = fs_err::canonicalize(&self.image).map_err(|error| {
            Problem::new(
                format!("image `{}` cannot be read: {}", self.image.display(), error.kind()),
                "--image",
                "name a root image written by `pgkiln bake` (a file), or a root directory",
            )
        })?;
        if self.state_dir.starts_with("/run") {
            return Err(Problem::new(
                "the state directory must not be below /run: the lab has a /run of its own",
                self.state_dir.display().to_string(),
                "choose a directory on a disk, for instance below /var/tmp",
            )
            .into());
        }
        if self.nodes.is_empty() {
            return Err(Problem::new("a lab needs at least one node", "", "add --cluster DIR or --nodes N").into());
        }
        for (n, node) in self.nodes.iter().enumerate() {
            self.check_node(n, node)?;
        }
        for publish in &self.publish {
            self.address_of(&publish.slot)?;
        }
        if self.engine == Engine::Qemu {
            qemu::check(&self)?;
            self.machine.accel = accel::settle(self.machine.accel, &self.image);
            self.ssh_key = self.ssh_key.as_ref().map(std::path::absolute).transpose()?;
        }
        Ok(self)
    }

    fn check_node(&self, n: usize, node: &NodeOptions) -> Result<(), Problem> {
        check_name("slot", &node.slot)?;
        let place = format!("node `{}`", node.slot);
        if !self.subnet.contains(&node.address) {
            let what = format!("address {} is outside the lab's network {}", node.address, self.subnet);
            return Err(Problem::new(what, place, format!("choose an address within {}", self.subnet)));
        }
        if let Some(twin) = self.nodes[..n].iter().find(|x| x.slot == node.slot || x.address == node.address) {
            let what = format!("node `{}` has the same slot or address", twin.slot);
            return Err(Problem::new(what, place, "give every node its own slot and address"));
        }
        match &node.seed_dir {
            Some(seed) if !seed.join("user-data").is_file() => Err(Problem::new(
                "the seed has no `user-data`",
                seed.display().to_string(),
                "write one with `pgkiln cluster seed`, format dir",
            )),
            _ => Ok(()),
        }
    }

    /// The node in `slot`.
    pub(super) fn slot(&self, slot: &str) -> Result<(usize, &NodeOptions), Problem> {
        self.nodes.iter().enumerate().find(|(_, node)| node.slot == slot).ok_or_else(|| {
            let known: Vec<&str> = self.nodes.iter().map(|node| node.slot.as_str()).collect();
            Problem::new(
                format!("lab `{}` has no node `{slot}`", self.name),
                "",
                crate::strict::suggestion(slot, &known, "node"),
            )
        })
    }

    /// Where a published port leads to: a slot's address, or an address of the subnet.
    pub(super) fn address_of(&self, slot: &str) -> Result<IpAddr, Problem> {
        match slot.parse::<IpAddr>() {
            Ok(address) if self.subnet.contains(&address) => Ok(address),
            _ => self.slot(slot).map(|(_, node)| node.address),
        }
    }

    /// The lab's own address on the bridge: the last one of the subnet that no node has, as routers have.
    pub(super) fn own_address(&self) -> Option<IpNet> {
        let hosts: Box<dyn Iterator<Item = IpAddr>> = match self.subnet {
            IpNet::V4(net) => Box::new(net.hosts().rev().map(IpAddr::V4)),
            // A /64 has too many addresses to walk from the end; its first ones are as good.
            IpNet::V6(net) => Box::new(net.hosts().map(IpAddr::V6)),
        };
        let free = hosts.take(64).find(|host| self.nodes.iter().all(|node| node.address != *host))?;
        IpNet::new(free, self.subnet.prefix_len()).ok()
    }

    /// Where a node keeps `/var`, its console and its machine identity.
    pub(super) fn node_dir(&self, slot: &str) -> PathBuf {
        self.state_dir.join("nodes").join(slot)
    }

    /// The lab's own copy of [`Options::ssh_key`].
    pub(super) fn own_key(&self) -> PathBuf {
        self.state_dir.join("ssh-key")
    }

    /// Mount point of everything that lives only in the lab's mount namespace.
    pub(super) fn scratch(&self) -> PathBuf {
        self.state_dir.join("mnt")
    }

    /// A file that says the data outlives the lab.
    pub(super) fn keep_marker(&self) -> PathBuf {
        self.state_dir.join("keep-data")
    }

    /// A node's machine identity: the same after every kill and start, and different for every data directory.
    pub(super) fn machine_id(&self, slot: &str) -> anyhow::Result<Uuid> {
        let file = self.node_dir(slot).join("machine-id");
        if let Ok(text) = fs_err::read_to_string(&file)
            && let Ok(id) = Uuid::parse_str(text.trim())
        {
            return Ok(id);
        }
        let id = Uuid::new_v4();
        fs_err::write(&file, format!("{}\n", id.simple()))?;
        Ok(id)
    }

    /// Name of a node's container, unique on this machine and short enough for an interface name.
    pub(super) fn machine_name(&self, index: usize) -> String {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, self.name.as_bytes()).simple().to_string();
        format!("{}-{}", &hash[..7], index + 1)
    }

    /// The node's port on the bridge, as systemd-nspawn names it.
    pub(super) fn bridge_port(&self, index: usize) -> String {
        format!("vb-{}", self.machine_name(index))
    }
}

/// Where a lab keeps its state unless told otherwise.
pub(super) fn default_state_dir(name: &str) -> PathBuf {
    Path::new("/var/lib/pgkiln/lab").join(name)
}

/// Lower-case letters, digits and hyphens, as host names have them.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Problem> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.is_empty() && name.len() <= NAME_LIMIT && name.chars().all(good) && !name.starts_with('-') {
        return Ok(());
    }
    let remedy = format!("use up to {NAME_LIMIT} lower-case letters, digits and hyphens");
    Err(Problem::new(format!("`{name}` is not a valid {what}"), "", remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Options {
        let subnet = "10.0.0.0/24".parse().unwrap();
        Options::new("orders", "/", subnet).node("pg-1", "10.0.0.11".parse().unwrap(), None)
    }

    fn refusal(options: Options) -> String {
        options.checked().unwrap_err().downcast::<Problem>().unwrap().what
    }

    #[test]
    fn a_sound_lab_is_accepted() {
        let lab = lab().publish("pg-1", 5000, None).publish("10.0.0.10", 5000, Some(15000)).checked().unwrap();
        assert_eq!(lab.state_dir, Path::new("/var/lib/pgkiln/lab/orders"));
    }

    #[test]
    fn mistakes_are_refused_before_anything_starts() {
        let twin = lab().node("pg-1", "10.0.0.12".parse().unwrap(), None);
        assert_eq!(refusal(twin), "node `pg-1` has the same slot or address");
        let outside = lab().node("pg-2", "10.0.1.12".parse().unwrap(), None);
        assert_eq!(refusal(outside), "address 10.0.1.12 is outside the lab's network 10.0.0.0/24");
        let unknown = lab().publish("pg-7", 5000, None);
        assert_eq!(refusal(unknown), "lab `orders` has no node `pg-7`");
        let name = Options { name: "Orders/1".into(), ..lab() };
        assert_eq!(refusal(name), "`Orders/1` is not a valid lab name");
        let image = Options { image: "/no/such/image".into(), ..lab() };
        assert_eq!(refusal(image), "image `/no/such/image` cannot be read: entity not found");
        let below_run = Options { state_dir: "/run/lab".into(), ..lab() };
        assert!(refusal(below_run).contains("must not be below /run"));
    }

    #[test]
    fn the_lab_takes_an_address_no_node_has() {
        assert_eq!(lab().own_address().unwrap().to_string(), "10.0.0.254/24");
        let taken = lab().node("gw", "10.0.0.254".parse().unwrap(), None);
        assert_eq!(taken.own_address().unwrap().to_string(), "10.0.0.253/24");
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let name = lab().bridge_port(98);
        assert!(name.len() <= 15 && name.starts_with("vb-") && name.ends_with("-99"), "{name}");
    }
}
