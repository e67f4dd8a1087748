//! Disks as machines with firmware and a kernel of their own, through the lab: a cluster of three, and every format that a
//! hypervisor takes.
//!
//! Needs root, QEMU and `PGKILN_TEST_IMAGE`; emulated, so limits only end what would never end.

use std::time::{Duration, Instant};

use anyhow::ensure;
use firstboot::spec::Rto;
use pgkiln::lab::{Accel, Bus, Machine};
use pgkiln::outputs::Format;
use pgkiln_tests::cluster::TestCluster;
use pgkiln_tests::{disk, image};

type Result<T = ()> = anyhow::Result<T>;

/// From power to a node, or three of them, that are good.
const FORMED: Duration = Duration::from_secs(1200);
/// A step of a cluster that runs.
const STEP: Duration = Duration::from_secs(600);

fn machine(bus: Bus) -> Machine {
    Machine { accel: Accel::Tcg, memory_mib: 1536, bus, ..Machine::default() }
}

#[test]
#[ignore = "needs root, QEMU, a quarter of an hour: `cargo selftest --machines`"]
fn three_machines_from_one_qcow2_are_a_cluster_that_survives_its_leader() -> Result {
    if image::baked().is_none() {
        return Ok(());
    }
    let baked = disk::outputs("machines", &[Format::Qcow2], None)?;
    let cluster = TestCluster::builder().named("machines").image(baked.file(".qcow2")?.to_owned());
    let cluster =
        cluster.machine(machine(Bus::Virtio)).define(|definition| definition.postgres.rto = Rto::Wide).up()?;
    let started = Instant::now();
    let since = |what: &str| eprintln!("{:>6.1}s  {what}", started.elapsed().as_secs_f64());
    cluster.wait_healthy(FORMED)?;
    let leader = cluster.leader()?;
    since(&format!("three nodes are good, {leader} leads"));
    for slot in &cluster.slots {
        let failed = cluster.output(slot, &["systemctl", "list-units", "--failed", "--plain", "--no-legend"])?;
        ensure!(failed.is_empty(), "{slot}: {failed}");
        let root = cluster.output(slot, &["findmnt", "-no", "SOURCE,OPTIONS", "/"])?;
        ensure!(root.starts_with("/dev/dm-") && root.contains(" ro,"), "{slot}: {root}");
    }

    let writer = cluster.write_through(&cluster.others(&leader))?;
    writer.wait_rows(100, STEP)?;
    let killed = Instant::now();
    cluster.lab.kill(&leader)?;
    let gap = writer.wait_write_after(killed, STEP)?;
    since(&format!("{leader} was killed; the next write after {gap:.1} s"));
    cluster.lab.start(&leader)?;
    cluster.wait_healthy(FORMED)?;
    since(&format!("{leader} is back, {} leads", cluster.leader()?));
    let log = writer.stop();
    let lost = cluster.lost(&cluster.slots[0], &log)?;
    since(&format!("{} rows acknowledged, {lost} lost", log.acknowledged.len()));
    ensure!(lost == 0, "{lost} acknowledged rows are lost");
    Ok(())
}

/// One node of its own from each: what a hypervisor's own format makes of the disk, on the bus it is likely to have there.
#[test]
#[ignore = "needs root, QEMU, five minutes: `cargo selftest --machines`"]
fn every_hypervisors_format_boots() -> Result {
    if image::baked().is_none() {
        return Ok(());
    }
    let wanted =
        [(Format::Vhd, ".vhd", Bus::Sata), (Format::Vmdk, ".vmdk", Bus::Virtio), (Format::Qcow2, ".qcow2", Bus::Nvme)];
    let baked = disk::outputs("machines", &wanted.map(|(format, ..)| format), None)?;
    for (_, end, bus) in wanted {
        let started = Instant::now();
        let cluster = TestCluster::builder().named("format").nodes(1).image(baked.file(end)?.to_owned());
        // Emulated, a founding takes longer than the usual leader key lives.
        let cluster = cluster.machine(machine(bus)).define(|definition| definition.postgres.rto = Rto::Wide).up()?;
        cluster.wait_healthy(FORMED)?;
        let failed = cluster.output("pg-1", &["systemctl", "list-units", "--failed", "--plain", "--no-legend"])?;
        ensure!(failed.is_empty() && cluster.psql("pg-1", "SELECT 40 + 2")? == "42", "{end}: {failed}");
        eprintln!("{end} on {bus:?}: good after {:.1} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}
