//! Machines without anything, booted by their firmware over the network: BIOS and UEFI, to a node that is good, from nothing but
//! what `pgkiln netboot` serves.
//!
//! A network of its own: one namespace with a bridge, `pgkiln netboot` and the machine; one with an ordinary DHCP server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use firstboot::spec::Rto;
use pgkiln::cluster::{self, Cluster};
use pgkiln::tool::{Cmd, Running, table};
use pgkiln_tests::binary;
use pgkiln_tests::disk::value;
use pgkiln_tests::memory::{baked, loaded};
use pgkiln_tests::qemu::{Booted, Machine, Port};

type Result<T = ()> = anyhow::Result<T>;

const LIMIT: Duration = Duration::from_secs(900);
const MAC: &str = "52:54:00:12:34:56";
/// Says what a person would look for, and powers off.
const LOOK: &str = "\
until firstboot verdict; do sleep 1; done; \
echo probe-failed=[$(systemctl list-units --failed --plain --no-legend | cut -d\" \" -f1 | xargs)]; \
echo probe-address=$(ip -4 -br address show scope global | xargs); \
echo probe-dhcp=$(ls /run/systemd/network | xargs); \
echo probe-source=$(cat /proc/cmdline | xargs -n1 | grep ^ds=); \
echo probe-sql=$(psql -Atc \"select 40+2\" postgres); \
systemctl poweroff";

/// Two namespaces and what runs in them; gone when dropped.
struct Network {
    name: String,
    running: Vec<Running>,
    dir: PathBuf,
}

impl Network {
    fn new(dir: &Path) -> Result<Self> {
        let name = format!("pgkiln-{}", std::process::id());
        let network = Self { name, running: Vec::new(), dir: dir.to_owned() };
        let (near, far) = (network.near(), network.far());
        for namespace in [&near, &far] {
            Cmd::new(&table::IP).args(["netns", "add", namespace]).run()?;
        }
        let batch = format!(
            "link set lo up\nlink add br0 type bridge forward_delay 0\naddress add 10.93.0.1/24 dev br0\nlink set br0 up\n\
             tuntap add dev tap0 mode tap\nlink set tap0 master br0\nlink set tap0 up\n\
             link add up0 type veth peer name lan0 netns {far}\nlink set up0 master br0\nlink set up0 up\n"
        );
        Cmd::new(&table::IP).args(["-netns", &near, "-batch", "-"]).stdin_bytes(batch).run()?;
        let batch = "link set lo up\naddress add 10.93.0.2/24 dev lan0\nlink set lan0 up\n";
        Cmd::new(&table::IP).args(["-netns", &far, "-batch", "-"]).stdin_bytes(batch).run()?;
        Ok(network)
    }

    fn near(&self) -> String {
        format!("{}-a", self.name)
    }

    fn far(&self) -> String {
        format!("{}-b", self.name)
    }

    fn inside(namespace: &str, cmd: Cmd) -> Cmd {
        cmd.wrapped_by(&table::NSENTER, [format!("--net=/run/netns/{namespace}"), "--".to_owned()])
    }

    fn start(&mut self, namespace: &str, name: &str, cmd: Cmd) -> Result<PathBuf> {
        let log = self.dir.join(name);
        let file = fs_err::File::create(&log)?.into_parts().0;
        self.running.push(Self::inside(namespace, cmd.dies_with_us()).spawn_logged(&file)?);
        Ok(log)
    }

    /// What every network has: it gives out addresses, knows names, and knows nothing of booting.
    fn dhcp(&mut self) -> Result {
        let args = [
            "--keep-in-foreground",
            "--log-facility=-",
            "--user=root",
            "--group=root",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--host-record=seeds.example,10.93.0.1",
        ];
        let args = args.into_iter().chain(["--interface=lan0", "--bind-interfaces", "--dhcp-leasefile=/dev/null"]);
        let cmd = Cmd::new(&table::DNSMASQ).args(args).arg("--dhcp-range=10.93.0.100,10.93.0.120,255.255.255.0,1h");
        self.start(&self.far(), "dhcp.log", cmd).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.running.clear();
        for namespace in [self.near(), self.far()] {
            let _ = Cmd::new(&table::IP).args(["netns", "delete", &namespace]).captured();
        }
    }
}

fn cluster_of_one(dir: &Path) -> Result<Cluster> {
    let options = cluster::Options {
        name: "orders".to_owned(),
        nodes: vec!["10.93.0.15".to_owned()],
        prefix_len: Some(24),
        ..Default::default()
    };
    let mut definition = options.definition()?;
    definition.nodes[0].mac = Some(MAC.to_owned());
    // Emulated on a busy host, Patroni may be silent for a while.
    definition.postgres.rto = Rto::Wide;
    cluster::create(dir, definition)
}

/// A network with a DHCP server, and a cluster of one machine that is known to `pgkiln netboot`.
struct Rack {
    network: Network,
    cluster: Cluster,
    log: PathBuf,
    work: tempfile::TempDir,
}

impl Rack {
    /// Serving; nothing without a test image.
    fn new(words: &[&str]) -> Result<Option<Self>> {
        let Some(outputs) = baked()? else { return Ok(None) };
        let set = outputs.file(".ipxe")?.parent().context("the directory of the set")?;
        let work = tempfile::Builder::new().prefix("pgkiln-netboot-").tempdir_in("/var/tmp")?;
        let mut network = Network::new(work.path())?;
        network.dhcp()?;
        let cluster = cluster_of_one(&work.path().join("cluster"))?;
        let netboot = binary::pgkiln().args(["--json", "netboot"]).arg(set).arg("--cluster").arg(cluster.dir());
        let netboot = netboot.args(["--dhcp", "proxy", "--interface", "br0", "--append", "pgkiln.failure=poweroff"]);
        let log = network.start(&network.near(), "netboot.log", netboot.args(words))?;
        let rack = Self { network, cluster, log, work };
        for _ in 0..100 {
            if rack.said()?.contains("\"event\":\"serving\"") {
                return Ok(Some(rack));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("pgkiln netboot does not serve: {}", rack.said()?)
    }

    fn said(&self) -> Result<String> {
        Ok(fs_err::read_to_string(&self.log)?)
    }

    /// The machine, with a blank disk.
    fn machine(&self, disk: u64) -> Result<Machine> {
        let path = self.work.path().join("disk.raw");
        fs_err::File::create(&path)?.set_len(disk)?;
        let port = Port { namespace: self.network.near(), tap: "tap0".to_owned(), mac: MAC.to_owned() };
        Ok(Machine::new(&self.work.path().join("machine"), &path)?.memory(2048).plugged_into(port).probe(LOOK))
    }

    /// Brings the machine that waits its secrets, and lets it become good.
    fn form(&self, booted: &mut Booted) -> Result<String> {
        let told = |error: anyhow::Error| {
            let said = self.said().unwrap_or_default();
            error.context(format!("pgkiln netboot said:\n{said}"))
        };
        booted.wait_for("waiting for `pgkiln cluster form orders`", LIMIT).map_err(told)?;
        let form = binary::pgkiln().args(["cluster", "form"]).arg(self.cluster.dir()).args(["--wait", "120"]);
        Network::inside(&self.network.near(), form).run()?;
        let console = booted.wait_for_end(LIMIT).map_err(told)?;
        assert_eq!((value(&console, "failed"), value(&console, "sql")), ("[]", "42"), "{console}");
        assert!(value(&console, "address").contains("10.93.0.15/24"), "{console}");
        Ok(console)
    }

    /// It stops in order, and its dnsmasq with it; everything a machine needs was asked for.
    fn stop(&mut self) -> Result {
        let mut netboot = self.network.running.pop().context("pgkiln netboot")?;
        nix::sys::signal::kill(netboot.pid(), nix::sys::signal::Signal::SIGTERM)?;
        ensure!(netboot.wait()?.success(), "pgkiln netboot did not stop in order");
        let said = self.said()?;
        for path in
            ["/boot.ipxe", "/ipxe/52-54-00-12-34-56", ".vmlinuz", ".initrd", ".root.cpio", "/user-data", "/meta-data"]
        {
            let served = said.lines().any(|line| line.contains("\"event\":\"request\"") && line.contains(path));
            ensure!(served, "{path} was not asked for:\n{said}");
        }
        ensure!(said.contains("netboot: stopped"), "{said}");
        Ok(())
    }
}

fn boots(bios: bool) -> Result {
    let Some(mut rack) = Rack::new(&[])? else { return Ok(()) };
    let machine = rack.machine(2 << 30)?;
    let machine = if bios { machine.bios() } else { machine };
    let console = rack.form(&mut machine.boot()?)?;
    assert!(!value(&console, "address").contains("10.93.0.1/") && !value(&console, "dhcp").contains("pgkiln-seed"));
    assert!(value(&console, "source").contains("http://10.93.0.1:8080/seed/52-54-00-12-34-56/"), "{console}");
    rack.stop()?;
    let left = Cmd::new(&table::IP).args(["netns", "pids", &rack.network.near()]).text()?;
    ensure!(left.trim().is_empty(), "still running: {left}");
    Ok(())
}

#[test]
#[ignore = "needs root, QEMU, some minutes: `cargo selftest --machines`"]
fn a_machine_with_bios_boots_from_what_is_served() -> Result {
    boots(true)
}

#[test]
#[ignore = "needs root, QEMU, some minutes: `cargo selftest --machines`"]
fn a_machine_with_uefi_boots_from_what_is_served() -> Result {
    boots(false)
}

/// The metadata decides where `/var` is, so the server's name is looked up before there is one.
#[test]
#[ignore = "needs root, QEMU, some minutes: `cargo selftest --machines`"]
fn a_machine_finds_its_metadata_by_the_servers_name() -> Result {
    let Some(rack) = Rack::new(&[])? else { return Ok(()) };
    let outputs = baked()?.context("the rack serves them")?;
    let words = "pgkiln.live ds=nocloud;s=http://seeds.example:8080/seed/52-54-00-12-34-56/ pgkiln.failure=poweroff";
    let machine = rack.machine(2 << 30)?.bios().kernel(loaded(&outputs, rack.work.path(), words)?);
    let console = rack.form(&mut machine.boot()?)?;
    assert!(value(&console, "source").contains("http://seeds.example:8080/"), "{console}");
    let said = rack.said()?;
    assert!(said.contains("/user-data") && !said.contains(".vmlinuz"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root, QEMU, some minutes: `cargo selftest --machines`"]
fn a_machine_installs_itself_from_what_is_served_and_then_needs_no_server() -> Result {
    let Some(mut rack) = Rack::new(&["--install", "pg-1"])? else { return Ok(()) };
    let machine = rack.machine(6 << 30)?;
    let console = machine.boot()?.wait_for_end(LIMIT)?;
    ensure!(console.contains("on /dev/vda (6.0 GiB, serial DISK1): every byte read back"), "{console}");
    rack.stop()?;
    // The firmware still asks the network first; nobody answers, so it starts the disk.
    let console = rack.form(&mut machine.boot()?)?;
    assert_eq!(value(&console, "source"), "", "{console}");
    Ok(())
}
