//! Disks that lost something: never a second cluster, and words that say what to do.

use std::time::Duration;

use anyhow::{Context, ensure};
use firstboot::problem::Problem;
use firstboot::status::Verdict;
use pgkiln_tests::cluster::TestCluster;

const BACK: Duration = Duration::from_secs(60);
/// How long nothing must happen after a node has said that it will not.
const QUIET: Duration = Duration::from_secs(5);

pub(crate) fn etcd_on_one(cluster: &TestCluster) -> anyhow::Result<()> {
    comes_back_without(cluster, &cluster.slots[1], "lib/etcd")
}

pub(crate) fn whole_var(cluster: &TestCluster) -> anyhow::Result<()> {
    comes_back_without(cluster, &cluster.slots[2], "")
}

/// A node loses its power and `what` below `/var`, and is started: it must become a member of the cluster that runs, in
/// place of the one it was, while the others go on.
fn comes_back_without(cluster: &TestCluster, slot: &str, what: &str) -> anyhow::Result<()> {
    let other = &cluster.slots[0];
    let name = format!("lost-{slot}-{}", what.replace('/', "-"));
    let (before, id) = (cluster.etcd_members(other)?, cluster.etcd_cluster_id(other)?);
    let system = cluster.system_identifier(other)?;
    let rows = "SELECT count(*)::text FROM demo_rows";
    let written = cluster.ask(other, 5000, rows)?;
    cluster.lab.kill(slot)?;
    fs_err::rename(cluster.var(slot).join(what), cluster.dir().join(name))?;
    if what.is_empty() {
        fs_err::create_dir(cluster.var(slot))?;
        cluster.reseed(slot, |_| Ok(()))?;
    }
    cluster.lab.start(slot)?;
    cluster.wait_healthy(BACK)?;
    let after = cluster.wait_for("a vote for the node that came back", BACK, || cluster.check_voters(slot))?;
    ensure!(cluster.etcd_cluster_id(slot)? == id && cluster.etcd_cluster_id(other)? == id, "another etcd cluster");
    let common = before.intersection(&after).count();
    ensure!(common == cluster.slots.len() - 1, "members before: {before:?}, after: {after:?}");
    ensure!(cluster.system_identifier(slot)? == system, "{slot} has another system identifier");
    let read = cluster.psql_in(slot, "orders", rows)?;
    ensure!(read == written, "{read} rows on {slot}, {written} were written");
    Ok(())
}

pub(crate) fn etcd_everywhere(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        cluster.lab.kill(slot)?;
        // Kept for the next step, where the rest goes instead.
        fs_err::rename(cluster.var(slot).join("lib/etcd"), cluster.dir().join(format!("etcd-{slot}")))?;
    }
    nothing_is_founded(cluster, "etcd")
}

pub(crate) fn only_postgres_left(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        cluster.lab.kill(slot)?;
        fs_err::remove_dir_all(cluster.var(slot).join("lib/pgkiln"))?;
        cluster.reseed(slot, |_| Ok(()))?;
    }
    nothing_is_founded(cluster, "PostgreSQL data")
}

/// Boots all nodes; each must refuse with words that name `cause`, and keep PostgreSQL's data as it is.
fn nothing_is_founded(cluster: &TestCluster, cause: &str) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        cluster.lab.start(slot)?;
    }
    for slot in &cluster.slots {
        let error = wait_refusal(cluster, slot)?;
        ensure!(error.what.contains(cause) && error.remedy.len() > 40, "{slot}: {error}");
    }
    std::thread::sleep(QUIET);
    for slot in &cluster.slots {
        check_nothing_founded(cluster, slot)?;
        let major = cluster.image_info(slot)?.postgresql_major()?;
        let control = cluster.var(slot).join(format!("lib/postgresql/{major}/main/global/pg_control"));
        ensure!(control.exists(), "{slot}: PostgreSQL's data is gone");
    }
    Ok(())
}

fn wait_refusal(cluster: &TestCluster, slot: &str) -> anyhow::Result<Problem> {
    cluster.wait_for(&format!("a refusal by {slot}"), BACK, || {
        let status = cluster.status(slot)?;
        ensure!(status.verdict != Verdict::Good, "{slot} calls itself good");
        status.error.with_context(|| format!("{slot} is {:?} without an error: {:?}", status.phase, status.waiting_for))
    })
}

fn check_nothing_founded(cluster: &TestCluster, slot: &str) -> anyhow::Result<()> {
    let running = cluster.run(slot, &["systemctl", "is-active", "etcd", "patroni"])?;
    let running = String::from_utf8_lossy(&running.stdout).into_owned();
    ensure!(!running.lines().any(|line| line == "active"), "{slot}: services run: {running}");
    let member = cluster.var(slot).join("lib/etcd/default/member");
    ensure!(!member.exists(), "{slot}: etcd has been founded anew");
    Ok(())
}
