//! A cluster from an image on this machine: each node is the image's own systemd, booted for real, in a network of its own.
//!
//! ```text
//! client (`pgkiln lab …`, the demo, tests)
//!   │ control.sock, JSON lines                      127.0.0.1:PORT
//! warden            outside: holds the name, sweeps what the kernel does not remove
//!   └─ init         PID 1 of the lab's PID namespace: reaps orphans
//!        └─ supervisor   own mount and network namespace: bridge, relay, control
//!             ├─ node pg-1   own cgroup: systemd-nspawn --boot or QEMU, a port on the bridge
//!             └─ node pg-2   …
//! ```
//!
//! The order is chosen so that **whatever dies, everything dies**: init ends with the supervisor and with the warden, and
//! when it ends the kernel kills every process of the lab and with the last one drops its mounts, loop devices and network.
//! The warden then removes the empty cgroup directories, the socket and the data; if the warden itself was killed, the next
//! `lab up` does.
//!
//! A lab belongs to the process that started it (a pipe between the two is the leash) until [`Lab::detach`].
//!
//! Adding an engine: a variant of [`Engine`], its process in a module beside `nspawn` and `qemu`, and an arm at each of the
//! few places in `node` that ask which it is.

mod accel;
mod cgroup;
mod client;
mod config;
mod console;
mod control;
mod exec;
mod init;
mod machine;
mod net;
mod node;
mod nspawn;
mod partition;
mod protocol;
mod qemu;
mod registry;
mod relay;
mod slots;
mod ssh;
mod status;
mod supervisor;
mod warden;

pub use client::Lab;
pub use config::{Engine, NodeOptions, Options, Publish};
pub use exec::ExecOutput;
pub use machine::{Accel, Bus, Machine};
pub use qemu::{board, board_with_bios, variables};
pub use registry::names;
pub use status::{NodeState, NodeStatus, Published, Status};

/// Makes a key for [`Options::ssh_key`] in a new file; returns the public half, for seeds.
pub fn make_ssh_key(path: &std::path::Path) -> anyhow::Result<String> {
    ssh::make_key(path)
}

/// One of the processes of a lab; they are started as `pgkiln lab supervise STAGE NAME`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Outside; see the module's picture.
    Warden,
    /// PID 1 of the lab.
    Init,
    /// Bridge, relay, control.
    Supervisor,
    /// Becomes one node's `systemd-nspawn` or QEMU.
    Node,
}

/// Runs a stage to its end; its error has been told when this returns, to the lab's starter or on the node's console.
pub fn run_stage(stage: Stage, name: &str, slot: Option<&str>) -> anyhow::Result<()> {
    let outcome = match stage {
        Stage::Warden => warden::run(name),
        Stage::Init => init::run(name),
        Stage::Supervisor => supervisor::run(name),
        Stage::Node => node::become_engine(name, slot.unwrap_or_default()),
    };
    match &outcome {
        // Its standard error is the node's console.
        Err(error) if stage == Stage::Node => eprintln!("pgkiln: {error:#}"),
        Err(error) => protocol::report(&protocol::Started::failed(error)),
        Ok(()) => {}
    }
    outcome
}
