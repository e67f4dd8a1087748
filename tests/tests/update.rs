//! A whole cluster takes another version while it is written to: one node at a time, one change of the leader, nothing lost;
//! and a version that does not work goes no further than the first node. Run by `cargo selftest`; alone:
//! `PGKILN_TEST_IMAGE=… cargo test -p pgkiln-tests --test update`.
//!
//! The nodes are containers: the other slot is a file, and the lab chooses what boots as systemd-boot would (`lab::slots`).

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use firstboot::spec::Rto;
use pgkiln_tests::cluster::TestCluster;
use pgkiln_tests::next::{self, Next};

/// All three nodes, one after the other; emulated disks and busy machines take longer than the 15 s a node needs.
const ROLL: Duration = Duration::from_secs(240);
/// Writes through the proxies stop for the leader's handover only.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

fn versions(cluster: &TestCluster) -> anyhow::Result<Vec<String>> {
    cluster.slots.iter().map(|slot| Ok(cluster.image_info(slot)?.version)).collect()
}

fn overview(cluster: &TestCluster, slot: &str) -> anyhow::Result<serde_json::Value> {
    let said = cluster.output(slot, &["firstboot", "update", "--status", "--json"])?;
    serde_json::from_str(&said).with_context(|| format!("update --status: {said}"))
}

/// Timeline of the leader: one more for every change.
fn timeline(cluster: &TestCluster) -> anyhow::Result<i64> {
    let leader = cluster.leader()?;
    Ok(cluster.psql(&leader, "SELECT timeline_id FROM pg_control_checkpoint()")?.parse()?)
}

fn wish(cluster: &TestCluster, next: &Next, name: &str) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        next.give(&cluster.var(slot).join("lib").join(name))?;
    }
    let path = format!("/var/lib/{name}");
    let said = cluster.output(&cluster.slots[0], &["firstboot", "update", "--cluster", "--older", &path])?;
    ensure!(said.contains(&next.version), "{said}");
    Ok(())
}

/// Every node has the version and is good, and nobody holds the lock any more.
fn rolled(cluster: &TestCluster, version: &str) -> anyhow::Result<()> {
    let now = versions(cluster)?;
    ensure!(now.iter().all(|one| one == version), "versions {now:?}");
    cluster.check_healthy(&cluster.slots)?;
    let turn = overview(cluster, &cluster.slots[0])?["cluster"]["turn"].clone();
    ensure!(turn.is_null(), "{turn} still holds the lock");
    Ok(())
}

#[test]
fn a_cluster_takes_a_version_and_refuses_one_that_does_not_work() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    if let Err(error) = story() {
        panic!("{error:#}");
    }
}

fn story() -> anyhow::Result<()> {
    let [good, broken] = next::bake()?;
    let cluster = TestCluster::builder().named("update").define(|definition| {
        definition.postgres.rto = Rto::Fast;
    });
    let cluster = cluster.up()?;
    cluster.wait_healthy(Duration::from_secs(90))?;
    takes(&cluster, &good)?;
    refuses(&cluster, &broken, &good)
}

fn takes(cluster: &TestCluster, next: &Next) -> anyhow::Result<()> {
    let (before, leader) = (timeline(cluster)?, cluster.leader()?);
    let writer = cluster.write_through(&cluster.slots)?;
    writer.wait_rows(100, Duration::from_secs(30))?;
    let started = Instant::now();
    wish(cluster, next, "next")?;
    let mut order = Vec::new();
    cluster.wait_for("the new version everywhere", ROLL, || {
        let turn = cluster.slots.iter().find_map(|slot| overview(cluster, slot).ok());
        if let Some(turn) = turn.and_then(|overview| overview["cluster"]["turn"].as_str().map(str::to_owned))
            && order.last() != Some(&turn)
        {
            order.push(turn);
        }
        rolled(cluster, &next.version)
    })?;
    let took = started.elapsed();
    let log = writer.stop();
    let lost = cluster.lost(&cluster.slots[0], &log)?;
    eprintln!(
        "rolled in {:.1}s in the order {order:?}, longest pause {:.2}s, {} rows, {lost} lost",
        took.as_secs_f64(),
        log.longest_pause.as_secs_f64(),
        log.acknowledged.len()
    );
    ensure!(lost == 0, "{lost} acknowledged rows are lost");
    ensure!(timeline(cluster)? == before + 1, "timeline {before} became {}", timeline(cluster)?);
    ensure!(order.last() == Some(&leader) && order.len() == 3, "the leader {leader} was not the last: {order:?}");
    ensure!(log.longest_pause < LONGEST_PAUSE, "writes stopped for {:?}", log.longest_pause);
    for slot in &cluster.slots {
        let loader = overview(cluster, slot)?["node"]["loader"].clone();
        ensure!(loader[0]["tries_left"].is_null() && loader[0]["running"] == true, "{slot}: {loader}");
    }
    Ok(())
}

fn refuses(cluster: &TestCluster, broken: &Next, good: &Next) -> anyhow::Result<()> {
    let before = timeline(cluster)?;
    wish(cluster, broken, "broken")?;
    let stopped = cluster.wait_for("the roll to stop", ROLL, || {
        let nodes = overview(cluster, &cluster.slots[0])?["cluster"]["nodes"].clone();
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        let stopped = nodes.into_iter().find(|node| node["stopped"].is_string());
        stopped.context("nobody has stopped it yet")
    })?;
    ensure!(stopped["stopped"].as_str().unwrap_or_default().contains("came back with"), "{stopped}");
    cluster.wait_healthy(Duration::from_secs(60))?;
    rolled(cluster, &good.version)?;
    ensure!(timeline(cluster)? == before, "a replica's failure changed the leader");
    let slot = stopped["slot"].as_str().context("a slot")?.to_owned();
    let notes = cluster.status(&cluster.leader()?)?.notes.join("; ");
    ensure!(notes.contains(&format!("stopped at {slot}")), "the leader notes {notes:?}");
    let loader = overview(cluster, &slot)?["node"]["loader"].clone();
    ensure!(loader[0]["running"] == true && loader[1]["tries_left"] == 0, "{slot}: {loader}");
    cluster.output(&cluster.slots[0], &["firstboot", "update", "--cancel"])?;
    Ok(())
}
