//! HAProxy and the registry: what is written there decides which servers exist, checks decide whether they serve.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pgkiln_tests::cluster::TestCluster;

const BACK: Duration = Duration::from_secs(60);
/// HAProxy follows the registry within this; a watch needs a round trip.
const FOLLOWS: Duration = Duration::from_secs(5);

fn key(cluster: &TestCluster, kind: &str, slot: &str) -> String {
    format!("/pgkiln/{}/{kind}/{slot}", cluster.cluster.definition.uuid)
}

fn etcdctl(cluster: &TestCluster, slot: &str, argv: &[&str]) -> anyhow::Result<String> {
    cluster.output(slot, &[&["etcdctl"], argv].concat())
}

fn has(cluster: &TestCluster, slot: &str, server: &str) -> anyhow::Result<usize> {
    Ok(cluster.haproxy_servers(slot)?.iter().filter(|s| s.name == server).count())
}

pub(crate) fn routing(cluster: &TestCluster) -> anyhow::Result<()> {
    cluster.wait_for("routing by roles", BACK, || cluster.check_routing())
}

/// A node that is only an entry comes and goes; afterwards every HAProxy has what it had.
pub(crate) fn twenty_times(cluster: &TestCluster) -> anyhow::Result<()> {
    let first = &cluster.slots[0];
    let entry = etcdctl(cluster, first, &["get", "--print-value-only", &key(cluster, "nodes", first)])?;
    let mut entry: serde_json::Value = serde_json::from_str(&entry)?;
    entry["address"] = "10.91.0.99".into();
    let before: Vec<_> = cluster.slots.iter().map(|slot| cluster.haproxy_servers(slot)).collect::<Result<_, _>>()?;
    for round in 0..20 {
        etcdctl(cluster, first, &["put", &key(cluster, "nodes", "pg-9"), &entry.to_string()])?;
        for slot in &cluster.slots {
            cluster.wait_for(&format!("round {round}: pg-9 on {slot}"), FOLLOWS, || {
                ensure!(has(cluster, slot, "pg-9")? == 2);
                Ok(())
            })?;
        }
        etcdctl(cluster, first, &["del", &key(cluster, "nodes", "pg-9")])?;
        for slot in &cluster.slots {
            cluster.wait_for(&format!("round {round}: {slot} without pg-9"), FOLLOWS, || {
                ensure!(has(cluster, slot, "pg-9")? == 0);
                Ok(())
            })?;
        }
    }
    for (slot, before) in cluster.slots.iter().zip(before) {
        let now = cluster.haproxy_servers(slot)?;
        ensure!(now == before, "{slot}: before {before:?}, now {now:?}");
        let config = cluster.output(slot, &["cat", "/run/pgkiln/haproxy/haproxy.cfg"])?;
        ensure!(!config.contains("pg-9"), "{slot}: pg-9 is still in the file");
    }
    routing(cluster)
}

/// Its entry is gone, but PostgreSQL serves: it stays until it does not. And it comes back.
pub(crate) fn serving(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let (replica, entry) = (&cluster.others(&leader)[0], key(cluster, "nodes", &cluster.others(&leader)[0]));
    let value = etcdctl(cluster, &leader, &["get", "--print-value-only", &entry])?;
    etcdctl(cluster, &leader, &["del", &entry])?;
    std::thread::sleep(Duration::from_secs(7));
    let up = cluster.haproxy_up(&leader, "ro")?;
    ensure!(up.contains(replica), "{replica} serves and was removed: {up:?}");
    cluster.output(replica, &["systemctl", "stop", "patroni"])?;
    cluster.wait_for("the stopped node's servers removed", Duration::from_secs(20), || {
        ensure!(has(cluster, &leader, replica)? == 0, "{:?}", cluster.haproxy_servers(&leader)?);
        Ok(())
    })?;
    etcdctl(cluster, &leader, &["put", &entry, &value])?;
    cluster.output(replica, &["systemctl", "start", "patroni"])?;
    cluster.wait_healthy(BACK)?;
    routing(cluster)
}

/// The agent of a node stands still until its lease is gone; PostgreSQL there goes on.
pub(crate) fn lease(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let replica = &cluster.others(&leader)[0];
    cluster.output(replica, &["systemctl", "kill", "--kill-whom=main", "-s", "STOP", "firstboot"])?;
    let gone = cluster.wait_for("the lease to run out", Duration::from_secs(40), || {
        let held = etcdctl(cluster, &leader, &["get", "--keys-only", &key(cluster, "slots", replica)])?;
        ensure!(held.is_empty(), "{held}");
        Ok(())
    });
    std::thread::sleep(Duration::from_secs(6));
    let up = cluster.haproxy_up(&leader, "ro");
    cluster.output(replica, &["systemctl", "kill", "--kill-whom=main", "-s", "CONT", "firstboot"])?;
    gone?;
    let up = up?;
    ensure!(up.contains(replica), "{replica} serves and was removed: {up:?}");
    cluster.wait_healthy(BACK)
}

/// At every moment after a reload, what was up is up and what was down is down.
pub(crate) fn reload(cluster: &TestCluster) -> anyhow::Result<()> {
    routing(cluster)?;
    let (slot, leader) = (&cluster.slots[0], cluster.leader()?);
    for _ in 0..5 {
        cluster.output(slot, &["systemctl", "reload", "haproxy"])?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1500) {
            // Between two workers nobody answers on the socket for a moment.
            let Ok(up) = cluster.haproxy_up(slot, "rw") else { continue };
            ensure!(up == [leader.clone()], "{:?} after a reload writers are sent to {up:?}", start.elapsed());
        }
    }
    // A restart knows nothing, and believes nobody.
    cluster.output(slot, &["systemctl", "restart", "haproxy"])?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let Ok(up) = cluster.haproxy_up(slot, "rw") else { continue };
        ensure!(up.is_empty() || up == [leader.clone()], "after a restart writers are sent to {up:?}");
    }
    routing(cluster)
}

/// Two voters gone for longer than the leader key lives: writes go on, every HAProxy has and routes what it did.
pub(crate) fn quorum(cluster: &TestCluster) -> anyhow::Result<()> {
    routing(cluster)?;
    let leader = cluster.leader()?;
    let before: Vec<_> = cluster.slots.iter().map(|slot| cluster.haproxy_servers(slot)).collect::<Result<_, _>>()?;
    let writer = cluster.write_through(&cluster.slots)?;
    let voters = cluster.others(&leader);
    for slot in &voters {
        cluster.kill_etcd(slot)?;
    }
    let outage = Instant::now();
    let watched = (|| {
        while outage.elapsed() < Duration::from_secs(45) {
            for (slot, before) in cluster.slots.iter().zip(&before) {
                let now = cluster.haproxy_servers(slot)?;
                ensure!(now == *before, "{slot} after {:?}: {before:?} became {now:?}", outage.elapsed());
            }
            std::thread::sleep(Duration::from_secs(2));
        }
        writer.wait_write_after(Instant::now(), Duration::from_secs(5)).context("without etcd's quorum")
    })();
    for slot in &voters {
        cluster.output(slot, &["systemctl", "start", "--no-block", "etcd"])?;
    }
    let log = writer.stop();
    watched?;
    cluster.wait_healthy(BACK)?;
    ensure!(cluster.lost(&leader, &log)? == 0, "acknowledged rows are lost");
    routing(cluster)
}

/// The leader's frames vanish without a word: sessions to it must not hang, and new ones must not reach it.
pub(crate) fn blackhole(cluster: &TestCluster) -> anyhow::Result<()> {
    routing(cluster)?;
    let leader = cluster.leader()?;
    let others = cluster.others(&leader);
    let (login, port) = (cluster.login()?, cluster.port(&others[0], 5000)?);
    let ended = pgkiln_tests::cluster::block_on(async {
        let mut sessions = Vec::new();
        for _ in 0..20 {
            sessions.push(login.connect(port).await?);
        }
        for other in &others {
            cluster.lab.partition(&leader, other, false)?;
        }
        let start = Instant::now();
        for session in &sessions {
            let asked = session.client.simple_query("SELECT 1");
            let answer = tokio::time::timeout(Duration::from_secs(30), asked).await;
            ensure!(
                matches!(answer, Ok(Err(_))),
                "a session to the lost primary still waits after {:?}",
                start.elapsed()
            );
        }
        anyhow::Ok(start.elapsed())
    })
    .flatten();
    let recovered = cluster.wait_for("a leader on the other side", BACK, || {
        let now = cluster.leader_seen_by(&others[0])?;
        ensure!(now != leader, "still {leader}");
        let up = cluster.haproxy_up(&others[0], "rw")?;
        ensure!(up == [now], "{up:?}");
        Ok(())
    });
    cluster.lab.heal(None)?;
    eprintln!("       20 sessions to a primary that is not heard any more ended after {:.1}s", ended?.as_secs_f64());
    recovered?;
    cluster.wait_healthy(BACK)?;
    routing(cluster)
}

/// The postmaster of the leader dies: a writer notices a pause and loses nothing. How long it is, `just bench` tells.
pub(crate) fn postmaster(cluster: &TestCluster) -> anyhow::Result<()> {
    let gap = pgkiln_tests::bench::postmaster_gap(cluster)?;
    eprintln!("       no acknowledged write for {gap:.2}s");
    cluster.wait_healthy(BACK)
}

/// etcd's leader is put on the primary's machine, and does not stay there.
pub(crate) fn etcd_leader(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let start = Instant::now();
    cluster.move_etcd_leader(&leader)?;
    cluster.wait_for("etcd's leader elsewhere", Duration::from_secs(120), || {
        ensure!(cluster.etcd_leader(&leader)? != leader, "still on {leader}");
        Ok(())
    })?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("       moved after {seconds:.0}s");
    ensure!(seconds > 10.0, "moved after {seconds:.0}s: roles that are still moving must be left alone");
    cluster.check_healthy(&cluster.slots)
}
