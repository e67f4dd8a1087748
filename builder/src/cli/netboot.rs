//! `pgkiln netboot`: see [`crate::netboot`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cluster;
use crate::doctor::{self, Install, Purpose};
use crate::netboot::{self, Event, Machines, Mode, Proxy, Set, Site};
use crate::problem::Problem;
use crate::progress::{Ui, seconds, size};

/// Whether dnsmasq is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Arguments of `pgkiln netboot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with what `pgkiln bake IMAGE --format pxe` wrote
    #[arg(value_name = "SET")]
    set: PathBuf,
    /// Machines are the nodes of this cluster (name or directory), by the `mac` of each
    #[arg(long, value_name = "CLUSTER", required_unless_present = "seeds", conflicts_with = "seeds")]
    cluster: Option<String>,
    /// Machines are those with a seed in this directory: DIR/52-54-00-12-34-56/user-data …
    #[arg(long, value_name = "DIR")]
    seeds: Option<PathBuf>,
    /// What machines do unless --install names them
    #[arg(long, value_enum, default_value = "live")]
    mode: Mode,
    /// Machines that get the image written to a disk, by slot or MAC address
    #[arg(long, value_delimiter = ',', value_name = "SLOT|MAC")]
    install: Vec<String>,
    /// Which version to boot, if the directory has several
    #[arg(long, value_name = "IMAGE_VERSION")]
    version_id: Option<String>,
    /// Further words for the kernel's command line
    #[arg(long, default_value = "", value_name = "WORDS", allow_hyphen_values = true)]
    append: String,
    /// Where to serve HTTP
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// `proxy`: tell machines where to boot from, beside the DHCP server that gives them their addresses (dnsmasq, with TFTP)
    #[arg(long, value_enum, requires = "interface")]
    dhcp: Option<Dhcp>,
    /// Interface of the machines' network
    #[arg(long, value_name = "IF")]
    interface: Option<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Dhcp {
    Proxy,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    if args.append.contains(['\n', '$']) {
        let remedy = "write plain words, separated by blanks";
        return Err(Problem::new("the words hold a line break or `$`", "--append", remedy).into());
    }
    let (set, others) = choose(Set::all(&args.set)?, &args)?;
    let mut machines = match (&args.cluster, &args.seeds) {
        (Some(cluster), _) => Machines::from_cluster(&cluster::find(cluster)?, args.mode)?,
        (None, Some(seeds)) => Machines::from_seeds(seeds, args.mode)?,
        (None, None) => anyhow::bail!("neither a cluster nor seeds"),
    };
    machines.install(&args.install)?;
    if args.dhcp.is_some() {
        doctor::ensure(&[Purpose::Netboot], Install::No, ui)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(serve(&args, set, &others, machines, ui))
}

/// The set that is booted, and the others, which are served as well.
fn choose(mut sets: Vec<Set>, args: &Args) -> anyhow::Result<(Set, Vec<Set>)> {
    let known = sets.iter().map(|set| set.id.clone()).collect::<Vec<_>>().join(", ");
    let at = match &args.version_id {
        Some(id) => sets.iter().position(|set| set.id == *id),
        None => (sets.len() == 1).then_some(0),
    };
    let Some(at) = at else {
        let what = match &args.version_id {
            Some(id) => format!("there is no set `{id}`"),
            None => "there are several sets".to_owned(),
        };
        let remedy = format!("choose one: --version-id, one of {known}");
        return Err(Problem::new(what, args.set.display().to_string(), remedy).into());
    };
    let set = sets.remove(at);
    Ok((set, sets))
}

async fn serve(args: &Args, set: Set, others: &[Set], machines: Machines, ui: &Ui) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        let remedy = "end what listens there, or choose another place with --listen";
        Problem::new(format!("cannot listen: {error}"), args.listen.to_string(), remedy)
    })?;
    // Stopped from now on, not killed: what was started ends with us.
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let reached = reached(args, listener.local_addr()?)?;
    let mut proxy = match (args.dhcp, &args.interface) {
        (Some(Dhcp::Proxy), Some(interface)) => Some(Proxy::start(interface, reached)?),
        _ => None,
    };
    tell(args, &set, &machines, reached, ui)?;
    let (send, mut events) = mpsc::unbounded_channel();
    let site = Arc::new(Site::new(set, others, machines, args.append.clone()));
    let mut look = tokio::time::interval(LOOK);
    let server = netboot::serve(listener, site, send);
    tokio::pin!(server);
    let ended = loop {
        tokio::select! {
            ended = &mut server => break ended,
            Some(event) = events.recv() => say(&event, ui)?,
            _ = look.tick() => if let Some(proxy) = &mut proxy { proxy.check()? },
            _ = term.recv() => break Ok(()),
            _ = int.recv() => break Ok(()),
        }
    };
    drop(proxy);
    ui.note("netboot: stopped");
    ended
}

/// Where machines reach us.
fn reached(args: &Args, listening: SocketAddr) -> anyhow::Result<SocketAddr> {
    // `::ffff:10.0.0.1` would be an IPv6 address in a script for machines that have IPv4 alone.
    let ip = listening.ip().to_canonical();
    if !ip.is_unspecified() {
        return Ok(SocketAddr::new(ip, listening.port()));
    }
    let ip = match &args.interface {
        Some(interface) => netboot::address_of(interface)?.0,
        None => netboot::own_address().unwrap_or(Ipv4Addr::LOCALHOST),
    };
    Ok(SocketAddr::new(IpAddr::V4(ip), listening.port()))
}

fn tell(args: &Args, set: &Set, machines: &Machines, reached: SocketAddr, ui: &Ui) -> anyhow::Result<()> {
    ui.note(format!("netboot: {} at http://{reached}/boot.ipxe", set.id));
    for (mac, machine) in &machines.0 {
        let how = if machine.mode == Mode::Install { "install" } else { "live" };
        ui.note(format!("  {mac}  {} of {}, {how}", machine.slot, machine.cluster));
    }
    match (&args.dhcp, &args.interface) {
        (Some(_), Some(interface)) => ui.note(format!("netboot: ProxyDHCP and TFTP on {interface}")),
        _ => ui.say(netboot::advice(reached)),
    }
    let machines: Vec<_> =
        machines.0.iter().map(|(mac, machine)| json!({ "mac": mac, "slot": machine.slot })).collect();
    let url = format!("http://{reached}/boot.ipxe");
    ui.result(&json!({ "event": "serving", "set": set.id, "url": url, "machines": machines }))
}

fn say(event: &Event, ui: &Ui) -> anyhow::Result<()> {
    let Event { client, method, path, status, bytes, complete, .. } = event;
    let slot = event.slot.as_deref().map(|slot| format!(" {slot}")).unwrap_or_default();
    let cut = if *complete { "" } else { ", broken off" };
    let took = seconds(Duration::from_secs_f64(event.seconds));
    // A path is whatever somebody sent.
    let path = path.escape_debug();
    ui.note(format!("{}{slot} {method} {path} {status} {} in {took}{cut}", client.ip(), size(*bytes)));
    ui.result(event)
}
