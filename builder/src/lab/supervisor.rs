//! The supervisor: the lab's own mounts and network, its nodes, its relay and its control socket.

use std::io::Read;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::config::{Engine, Options};
use super::node::Node;
use super::partition::Partitions;
use super::protocol::{self, Started};
use super::status::{Published, Status};
use super::{cgroup, control, net, registry, relay};
use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// A lab that runs, as its threads share it.
#[derive(Debug)]
pub(super) struct Lab {
    pub(super) options: Options,
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) partitions: Mutex<Partitions>,
    published: Vec<Published>,
}

/// Brings the lab up and serves it until it is told to end or its owner is gone.
pub(super) fn run(name: &str) -> anyhow::Result<()> {
    let options = registry::load(name)?;
    // Sockets belong to the network namespace they are opened in: these stay the host's.
    let ports = relay::listen(&options)?;
    let socket = UnixListener::bind(registry::socket(name)).context("opening the control socket")?;
    own_namespaces(&options)?;
    net::build(&options)?;
    let lab = Arc::new(Lab::new(options, &ports)?);
    let leash = Leash::watch();
    relay::serve(&lab, ports)?;
    control::serve(&lab, socket);
    lab.start_nodes()?;
    protocol::report(&Started::Up);
    leash.wait_until_cut();
    lab.end()
}

impl Lab {
    fn new(options: Options, ports: &[(Published, TcpListener)]) -> anyhow::Result<Self> {
        let cgroup = cgroup::of_lab(&options.name)?;
        let nodes = (0..options.nodes.len()).map(|index| Node::new(&options, index, &cgroup));
        let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
        let published = ports.iter().map(|(published, _)| published.clone()).collect();
        Ok(Self { options, nodes, partitions: Mutex::default(), published })
    }

    /// The node in `slot`.
    pub(super) fn node(&self, slot: &str) -> Result<&Arc<Node>, Problem> {
        let (index, _) = self.options.slot(slot)?;
        Ok(&self.nodes[index])
    }

    /// Boots everything that is to boot with the lab, at the same time.
    fn start_nodes(&self) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let wanted = self.nodes.iter().zip(&self.options.nodes).filter(|(_, options)| options.start);
            let starting: Vec<_> = wanted.map(|(node, _)| scope.spawn(|| node.start())).collect();
            starting
                .into_iter()
                .try_for_each(|start| start.join().unwrap_or_else(|_| anyhow::bail!("starting panicked")))
        })
    }

    /// Shuts every node down cleanly, at the same time; nodes that do not manage in time are killed.
    pub(super) fn stop_nodes(&self, limit: Duration) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let running = self.nodes.iter().filter(|node| node.is_on());
            let stopping: Vec<_> = running.map(|node| scope.spawn(move || node.stop(limit))).collect();
            stopping.into_iter().try_for_each(|stop| stop.join().unwrap_or_else(|_| anyhow::bail!("stopping panicked")))
        })
    }

    /// Kills every node; nothing is left to do for the warden but sweeping.
    pub(super) fn end(&self) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(|node| node.kill())
    }

    /// Everything `lab status` shows.
    pub(super) fn status(&self) -> Status {
        Status {
            name: self.options.name.clone(),
            image: self.options.image.clone(),
            state_dir: self.options.state_dir.clone(),
            subnet: self.options.subnet.to_string(),
            // The client replaces it: only the kernel knows our number in the client's namespace.
            pid: 0,
            nodes: self.nodes.iter().map(|node| node.status()).collect(),
            published: self.published.clone(),
            partitions: self.partitions.lock().unwrap_or_else(PoisonError::into_inner).pairs(),
        }
    }
}

/// Mounts and network that nobody else sees and that vanish with the lab's last process.
fn own_namespaces(options: &Options) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("making the lab's namespaces")?;
    let none: Option<&str> = None;
    let tmpfs = |target: &std::path::Path| {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("mode=0755"))
            .with_context(|| format!("mounting a tmpfs on {}", target.display()))
    };
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mounting /proc of the lab")?;
    tmpfs(&options.scratch())?;
    match options.engine {
        Engine::Nspawn => mount_image(options)?,
        Engine::Qemu => keep_key(options)?,
    }
    // systemd-nspawn keeps locks and sockets there; they are to vanish too.
    tmpfs(std::path::Path::new("/run"))?;
    registry::store(options)
}

/// Where containers have their root.
fn mount_image(options: &Options) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let root = options.scratch().join("image");
    fs_err::create_dir(&root)?;
    if options.image.is_dir() {
        mount(Some(&options.image), &root, none, MsFlags::MS_BIND, none).context("mounting the image directory")?;
        let readonly = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &root, none, readonly, none).context("making the image read-only")?;
    } else {
        // The loop device is freed by the kernel together with the mount.
        let mounted = Cmd::new(&table::MOUNT).args(["-o", "loop,ro"]).arg(&options.image).arg(&root).run();
        mounted.map_err(|error| {
            Problem::new(
                format!("the image cannot be mounted: {error:#}"),
                options.image.display().to_string(),
                "the lab needs a squashfs or erofs root image, or a directory, and free loop devices",
            )
        })?;
    }
    if !root.join("usr/lib/systemd/systemd").exists() {
        return Err(Problem::new(
            "the image has no systemd",
            options.image.display().to_string(),
            "name a root image written by `pgkiln bake`, or a root directory",
        )
        .into());
    }
    Ok(())
}

/// The key that gets into machines, for as long as the lab exists.
fn keep_key(options: &Options) -> anyhow::Result<()> {
    let Some(key) = &options.ssh_key else { return Ok(()) };
    let own = options.own_key();
    if !own.exists() {
        // With its mode: ssh refuses a key that others may read.
        fs_err::copy(key, &own)?;
    }
    Ok(())
}

/// The pipe from the lab's owner: an owner that ends without letting go takes the lab with it.
struct Leash {
    cut: std::sync::mpsc::Receiver<()>,
}

/// What an owner says to let go.
pub(super) const LET_GO: u8 = b'd';

impl Leash {
    fn watch() -> Self {
        let (tell, cut) = std::sync::mpsc::channel();
        let let_go = AtomicBool::new(false);
        thread::spawn(move || {
            for byte in std::io::stdin().lock().bytes() {
                let_go.store(matches!(byte, Ok(LET_GO)), Ordering::Relaxed);
            }
            if let_go.load(Ordering::Relaxed) {
                // Served until `down`, which ends the process.
                thread::park();
            }
            let _ = tell.send(());
        });
        Self { cut }
    }

    fn wait_until_cut(&self) {
        let _ = self.cut.recv();
    }
}
