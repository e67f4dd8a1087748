//! Nodes that go away and come back.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pgkiln_tests::cluster::{EtcdMember, TestCluster};

/// Everything back after an outage.
const BACK: Duration = Duration::from_secs(60);
/// Rows acknowledged before anything is broken.
const ROWS: usize = 300;

/// What no outage may change.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    etcd: String,
    members: std::collections::BTreeSet<EtcdMember>,
    system: String,
    registered: String,
    rows: String,
}

impl Identity {
    fn of(cluster: &TestCluster) -> anyhow::Result<Self> {
        let slot = &cluster.slots[0];
        let nodes = format!("/pgkiln/{}/nodes/", cluster.cluster.definition.uuid);
        Ok(Self {
            etcd: cluster.etcd_cluster_id(slot)?,
            members: cluster.check_voters(slot)?,
            system: cluster.system_identifier(slot)?,
            registered: cluster.output(slot, &["etcdctl", "get", "--prefix", "--keys-only", &nodes])?,
            rows: cluster.ask(slot, 5000, "SELECT count(*) || ' ' || coalesce(max(n), 0) FROM demo_rows")?,
        })
    }

    fn check_unchanged(&self, cluster: &TestCluster) -> anyhow::Result<()> {
        let now = Self::of(cluster)?;
        ensure!(*self == now, "before: {self:?}\nafter: {now:?}");
        Ok(())
    }
}

pub(crate) fn handover(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let others = cluster.others(&leader);
    let writer = cluster.write_through(&others)?;
    writer.wait_rows(ROWS, Duration::from_secs(30))?;
    let start = Instant::now();
    cluster.stop(&leader)?;
    let stopped = start.elapsed();
    writer.wait_write_after(Instant::now(), Duration::from_secs(20))?;
    let log = writer.stop();
    let pause = log.longest_pause.as_secs_f64();
    eprintln!("       shutdown {:.1}s, longest pause between writes {pause:.2}s", stopped.as_secs_f64());
    ensure!(cluster.lost(&others[0], &log)? == 0, "acknowledged rows are lost");
    ensure!(cluster.leader_seen_by(&others[0])? != leader, "{leader} leads although it is off");
    // Without a handover the others would have to wait for the leader's key to expire.
    ensure!(pause < 8.0, "no write for {pause:.1}s during a handover");
    cluster.lab.start(&leader)?;
    cluster.wait_healthy(BACK)
}

pub(crate) fn power_loss(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = Identity::of(cluster)?;
    let leader = cluster.leader()?;
    let others = cluster.others(&leader);
    let writer = cluster.write_through(&others)?;
    writer.wait_rows(ROWS, Duration::from_secs(30))?;
    let killed = Instant::now();
    cluster.lab.kill(&leader)?;
    // Writes went on until the last process was gone, which it is now.
    let gone = Instant::now();
    writer.wait_write_after(gone, BACK).with_context(|| cluster.report())?;
    let (seconds, log) = (killed.elapsed().as_secs_f64(), writer.stop());
    eprintln!(
        "       next acknowledged write {seconds:.1}s after the power cut, {} rows before",
        log.acknowledged.len()
    );
    ensure!(cluster.lost(&others[0], &log)? == 0, "acknowledged rows are lost");
    ensure!(cluster.leader_seen_by(&others[0])? != leader, "{leader} leads although it is off");
    cluster.lab.start(&leader)?;
    cluster.wait_healthy(BACK)?;
    let after = Identity::of(cluster)?;
    ensure!((&before.etcd, &before.members, &before.system) == (&after.etcd, &after.members, &after.system));
    ensure!(cluster.lost(&leader, &log)? == 0, "acknowledged rows are lost after the old leader came back");
    Ok(())
}

pub(crate) fn one_by_one(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = Identity::of(cluster)?;
    for slot in &cluster.slots {
        cluster.stop(slot)?;
        cluster.lab.start(slot)?;
        cluster.wait_healthy(BACK)?;
    }
    before.check_unchanged(cluster)
}

pub(crate) fn all_at_once(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = Identity::of(cluster)?;
    for slot in &cluster.slots {
        cluster.lab.kill(slot)?;
    }
    start_all(cluster)?;
    before.check_unchanged(cluster)
}

pub(crate) fn all_stopped(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = Identity::of(cluster)?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let stops: Vec<_> = cluster.slots.iter().map(|slot| scope.spawn(|| cluster.stop(slot))).collect();
        stops.into_iter().try_for_each(|stop| stop.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    eprintln!("       all off after {:.1}s", start.elapsed().as_secs_f64());
    start_all(cluster)?;
    before.check_unchanged(cluster)
}

fn start_all(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        cluster.lab.start(slot)?;
    }
    let start = Instant::now();
    cluster.wait_healthy(BACK)?;
    eprintln!("       back by itself after {:.1}s", start.elapsed().as_secs_f64());
    Ok(())
}
