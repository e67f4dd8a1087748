//! `pgkiln lab`: see [`crate::lab`].

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use ipnet::IpNet;

use crate::cluster::{Cluster, SeedFormat};
use crate::lab::{Accel, Bus, Engine, Lab, Machine, Options, Publish, Stage, make_ssh_key};
use crate::problem::Problem;
use crate::progress::Ui;

/// Arguments of `pgkiln lab`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot nodes from an image
    Up(Up),
    /// Show labs, their nodes and what the nodes' agents say
    Status {
        /// The lab; without it, the names of all that are up
        name: Option<String>,
    },
    /// Run a command in a node, or a shell
    Run {
        name: String,
        node: String,
        /// [default: bash --login]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Cut a node's power
    Kill { name: String, node: String },
    /// Boot a node that is off; it finds the /var it left
    Start { name: String, node: String },
    /// Shut a node down cleanly
    Stop {
        name: String,
        node: String,
        /// Give up after so many seconds
        #[arg(long, default_value_t = 90)]
        seconds: u64,
    },
    /// Show a node's console
    Logs { name: String, node: String },
    /// Drop all traffic between two nodes
    Partition {
        name: String,
        from: String,
        to: String,
        /// Only what goes from the first to the second
        #[arg(long)]
        one_way: bool,
    },
    /// Undo partitions: between two nodes, or all
    Heal {
        name: String,
        #[arg(requires = "b")]
        a: Option<String>,
        b: Option<String>,
    },
    /// Remove a lab
    Down {
        name: String,
        /// Shut the nodes down cleanly and keep what they wrote
        #[arg(long)]
        keep_data: bool,
    },
    /// A process of a lab; started by `up`
    #[command(hide = true)]
    Supervise { stage: Stage, name: String, slot: Option<String> },
}

#[derive(Debug, clap::Args)]
struct Up {
    /// Name of the lab
    name: String,
    /// Root image: a squashfs or erofs file, or a directory; for `--engine qemu` a disk
    #[arg(long)]
    image: PathBuf,
    /// Boot the nodes of this cluster with their founding seeds
    #[arg(long, value_name = "DIR", conflicts_with_all = ["nodes", "subnet"])]
    cluster: Option<PathBuf>,
    /// Without a cluster: so many plain nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Without a cluster: network of the nodes
    #[arg(long, default_value = "10.0.0.0/24")]
    subnet: IpNet,
    /// Directory of seeds, one directory per slot
    #[arg(long, value_name = "DIR", conflicts_with = "cluster")]
    seeds: Option<PathBuf>,
    /// Publish a node's port on 127.0.0.1; without HOST-PORT a free one
    #[arg(long, value_name = "NODE:PORT[:HOST-PORT]", value_parser = publish)]
    publish: Vec<Publish>,
    /// Where the nodes' data goes [default: /var/lib/pgkiln/lab/NAME]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What runs the nodes
    #[arg(long, value_enum, default_value_t = Engine::Nspawn)]
    engine: Engine,
    #[command(flatten)]
    machine: MachineArgs,
    /// Stay; Ctrl-C removes the lab
    #[arg(long)]
    foreground: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Machines (--engine qemu)")]
struct MachineArgs {
    /// Who executes instructions
    #[arg(long, value_enum, default_value_t)]
    accel: Accel,
    /// Memory of each node
    #[arg(long, value_name = "MIB", default_value_t = Machine::default().memory_mib)]
    memory: u32,
    /// Processors of each node
    #[arg(long, value_name = "N", default_value_t = Machine::default().cpus)]
    cpus: u8,
    /// What the disk hangs on
    #[arg(long, value_enum, default_value_t)]
    bus: Bus,
    /// Size of each node's disk, if the image is not larger
    #[arg(long, value_name = "GIB", default_value_t = Machine::default().disk_gib)]
    disk: u32,
    /// Firmware that starts only what its test keys ("snakeoil" of the package ovmf) have signed
    #[arg(long)]
    secure_boot: bool,
}

impl MachineArgs {
    fn machine(&self) -> Machine {
        Machine {
            accel: self.accel,
            memory_mib: self.memory,
            cpus: self.cpus,
            bus: self.bus,
            disk_gib: self.disk,
            secure_boot: self.secure_boot,
        }
    }
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    match args.command {
        Command::Up(args) => up(args, ui),
        Command::Status { name: None } => {
            let names = crate::lab::names()?;
            ui.say(if names.is_empty() { "no lab is up".to_owned() } else { names.join("\n") });
            ui.result(&serde_json::json!({ "labs": names }))
        }
        Command::Status { name: Some(name) } => {
            let status = Lab::attach(&name)?.status()?;
            ui.say(status.table());
            ui.result(&status)
        }
        Command::Run { name, node, command } => {
            let command = if command.is_empty() { vec!["bash".to_owned(), "--login".to_owned()] } else { command };
            let status = Lab::attach(&name)?.exec_interactive(&node, command)?;
            // As shells tell a death by signal.
            use std::os::unix::process::ExitStatusExt;
            std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
        }
        Command::Kill { name, node } => Lab::attach(&name)?.kill(&node),
        Command::Start { name, node } => Lab::attach(&name)?.start(&node),
        Command::Stop { name, node, seconds } => {
            Lab::attach(&name)?.stop_within(&node, std::time::Duration::from_secs(seconds))
        }
        Command::Logs { name, node } => {
            let text = fs_err::read(Lab::attach(&name)?.console(&node)?)?;
            // A reader that went away (`| head`) is no failure of ours.
            let _ = std::io::stdout().write_all(&text);
            Ok(())
        }
        Command::Partition { name, from, to, one_way } => Lab::attach(&name)?.partition(&from, &to, one_way),
        Command::Heal { name, a, b } => Lab::attach(&name)?.heal(a.as_deref().zip(b.as_deref())),
        Command::Down { name, keep_data } => Lab::attach(&name)?.down(keep_data),
        Command::Supervise { stage, name, slot } => {
            // Whoever started the lab has been told why; a second message would only repeat it.
            let code = i32::from(crate::lab::run_stage(stage, &name, slot.as_deref()).is_err());
            std::process::exit(code)
        }
    }
}

fn up(args: Up, ui: &Ui) -> anyhow::Result<()> {
    // Seeds carry secrets: they live as long as it takes to copy them into the nodes.
    let seeds = tempfile::tempdir().context("making a directory for seeds")?;
    let mut options = match &args.cluster {
        Some(dir) => of_cluster(&args, Cluster::load(dir)?, &seeds)?,
        None => plain(&args)?,
    };
    options.engine = args.engine;
    options.machine = args.machine.machine();
    options.publish = args.publish;
    options.state_dir = args.data.unwrap_or(options.state_dir);
    let step = ui.step(format!("boot {} nodes", options.nodes.len()));
    let lab = Lab::up(options)?;
    step.done();
    let status = lab.status()?;
    ui.say(status.table());
    ui.result(&status)?;
    if !args.foreground {
        return lab.detach();
    }
    ui.note("Ctrl-C removes the lab");
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGINT);
    signals.add(nix::sys::signal::Signal::SIGTERM);
    signals.thread_block().context("blocking signals")?;
    signals.wait().context("waiting for Ctrl-C")?;
    drop(lab);
    Ok(())
}

fn of_cluster(args: &Up, mut cluster: Cluster, seeds: &tempfile::TempDir) -> anyhow::Result<Options> {
    let mut options = Options::new(&args.name, &args.image, cluster.definition.subnet);
    if args.engine == Engine::Qemu {
        let key = seeds.path().join("ssh-key");
        cluster.definition.ssh_authorized_keys.push(make_ssh_key(&key)?);
        options.ssh_key = Some(key);
    }
    let definition = &cluster.definition;
    for node in &definition.nodes {
        let seed = seeds.path().join(&node.slot);
        cluster.write_seed(&node.slot, SeedFormat::Directory, &seed, true)?;
        options = options.node(&node.slot, node.address, Some(seed));
    }
    Ok(options)
}

fn plain(args: &Up) -> anyhow::Result<Options> {
    let mut options = Options::new(&args.name, &args.image, args.subnet);
    let addresses = args.subnet.hosts().skip(10).take(args.nodes.into());
    for (n, address) in addresses.enumerate() {
        let slot = format!("pg-{}", n + 1);
        let seed = args.seeds.as_ref().map(|dir| dir.join(&slot));
        options = options.node(slot, address, seed);
    }
    Ok(options)
}

/// `pg-1:5000`, `pg-1:5000:15000`, `10.0.0.10:5000:15000`.
fn publish(text: &str) -> Result<Publish, Problem> {
    let wrong = || Problem::new(format!("`{text}` is not NODE:PORT[:HOST-PORT]"), "", "for instance pg-1:5000:15000");
    let mut parts = text.split(':');
    let slot = parts.next().filter(|slot| !slot.is_empty()).ok_or_else(wrong)?.to_owned();
    let port = parts.next().and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
    let host_port = parts.next().map(|port| port.parse().map_err(|_| wrong())).transpose()?;
    if parts.next().is_some() || slot.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        return Err(wrong());
    }
    Ok(Publish { slot, port, host_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read() {
        let expected = Publish { slot: "pg-1".into(), port: 5000, host_port: None };
        assert_eq!(publish("pg-1:5000").unwrap(), expected);
        assert_eq!(publish("10.0.0.10:5000:0").unwrap().host_port, Some(0));
        for wrong in ["pg-1", ":5000", "pg-1:", "pg-1:5000:x", "pg-1:1:2:3"] {
            assert!(publish(wrong).is_err(), "{wrong}");
        }
    }
}
