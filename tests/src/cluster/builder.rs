//! What a test wants its cluster to be.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use pgkiln::cluster::{self, Definition, SeedFormat};
use pgkiln::lab::{self, Engine, Lab, Machine, NodeOptions, Options};

use super::{PUBLISHED, TestCluster, definition, unique_name};

/// The image under test.
pub fn image() -> anyhow::Result<PathBuf> {
    let name = crate::image::VARIABLE;
    std::env::var_os(name).map(PathBuf::from).with_context(|| format!("{name} is not set: name a baked root image"))
}

/// Builder of a [`TestCluster`].
pub struct Builder {
    name: &'static str,
    nodes: usize,
    start: bool,
    seeded: bool,
    secrets: bool,
    image: Option<PathBuf>,
    machine: Option<Machine>,
    change: Box<dyn FnOnce(&mut Definition)>,
}

impl Default for Builder {
    fn default() -> Self {
        let change = Box::new(|_: &mut Definition| {});
        Self { name: "test", nodes: 3, start: true, seeded: true, secrets: true, image: None, machine: None, change }
    }
}

impl Builder {
    /// What the lab is called, for whoever lists labs meanwhile.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// How many nodes of the cluster's own role, all of them voters.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Leaves all nodes off.
    #[must_use]
    pub fn off(mut self) -> Self {
        self.start = false;
        self
    }

    /// Gives the nodes no seed: they boot, find no metadata and start nothing.
    #[must_use]
    pub fn without_seeds(mut self) -> Self {
        self.seeded = false;
        self
    }

    /// Gives the voters seeds without the founding bundle: they wait until it is brought.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        self.secrets = false;
        self
    }

    /// Boots this root image instead of the one under test.
    #[must_use]
    pub fn image(mut self, root: PathBuf) -> Self {
        self.image = Some(root);
        self
    }

    /// Boots the image, which is a disk, in machines with firmware and a kernel of their own.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Changes the definition before the operator's directory is made.
    #[must_use]
    pub fn define(mut self, change: impl FnOnce(&mut Definition) + 'static) -> Self {
        self.change = Box::new(change);
        self
    }

    /// Makes the operator's directory and the seeds and starts the lab; returns when every node has its PID 1.
    pub fn up(self) -> anyhow::Result<TestCluster> {
        let image = self.image.map_or_else(image, Ok)?;
        let dir = tempfile::Builder::new().prefix("pgkiln-test-").tempdir_in("/var/tmp")?;
        let mut definition = definition(self.nodes)?;
        (self.change)(&mut definition);
        let key = dir.path().join("ssh-key");
        if self.machine.is_some() {
            definition.ssh_authorized_keys.push(lab::make_ssh_key(&key)?);
        }
        let cluster = cluster::create(&dir.path().join("cluster"), definition)?;
        let state_dir = dir.path().join("lab");
        let mut options = Options::new(unique_name(self.name), image, cluster.definition.subnet);
        options.state_dir.clone_from(&state_dir);
        options.program = Some(crate::binary::pgkiln_path());
        if let Some(machine) = self.machine {
            (options.engine, options.machine, options.ssh_key) = (Engine::Qemu, machine, Some(key));
        }
        fs_err::create_dir(dir.path().join("seeds"))?;
        for node in &cluster.definition.nodes {
            let seed = dir.path().join("seeds").join(&node.slot);
            cluster.write_seed(&node.slot, SeedFormat::Directory, &seed, self.secrets)?;
            let (slot, address, seed_dir) = (node.slot.clone(), node.address, self.seeded.then_some(seed));
            options.nodes.push(NodeOptions { slot, address, seed_dir, start: self.start });
            for port in PUBLISHED {
                options = options.publish(&node.slot, port, None);
            }
        }
        if let Some(vip) = &cluster.definition.vip {
            options = options.publish(vip.address.addr().to_string(), 5000, None);
        }
        let nodes = cluster.definition.nodes.iter();
        let (data, others): (Vec<_>, Vec<_>) = nodes.partition(|node| cluster.definition.role_of(node).stores_data());
        let names = |nodes: Vec<&cluster::Node>| nodes.into_iter().map(|node| node.slot.clone()).collect();
        let (slots, others) = (names(data), names(others));
        let started = Instant::now();
        let mut dir = dir;
        let mut lab = Lab::up(options).context("starting the lab")?;
        // For whoever wants to look around afterwards: `pgkiln lab status`, `pgkiln lab down`.
        if std::env::var_os("PGKILN_TEST_KEEP").is_some() {
            let name = lab.name().to_owned();
            eprintln!("kept: lab {name} in {}", dir.path().display());
            dir.disable_cleanup(true);
            lab.detach()?;
            lab = Lab::attach(&name)?;
        }
        Ok(TestCluster { cluster, lab, slots, others, started, state_dir, dir })
    }
}
