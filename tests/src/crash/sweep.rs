//! The agent's first run killed at a chosen event, then run again: nothing made before may be made anew, and the node must
//! become what it would have become.
//!
//! A node boots without a seed, so that its agent refuses and starts nothing; then the seed is put in place and the agent
//! is run by the tracer. Afterwards every other time the service is started, as systemd does when the agent has died; the
//! times between, the node's power is cut.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{Event, Trace, start};
use crate::cluster::{Digests, TestCluster};

/// From nothing to a healthy cluster, traced (every system call stops twice).
const FORMED: Duration = Duration::from_secs(120);
/// After the second start.
const BACK: Duration = Duration::from_secs(90);

/// What an undisturbed first run does, to which disturbed ones are compared.
#[derive(Debug)]
pub struct Sweep {
    nodes: usize,
    /// The events of an undisturbed run until the cluster is healthy.
    pub events: Vec<Event>,
    files: BTreeSet<String>,
}

/// One disturbed run that ended well.
#[derive(Debug)]
pub struct Outcome {
    /// Where the agent was killed; `None` if it was done before.
    pub killed_at: Option<Event>,
    /// From the second start to a healthy cluster.
    pub seconds: f64,
}

impl Sweep {
    /// Runs undisturbed once, counting. With several nodes the first one is traced.
    pub fn measure(nodes: usize) -> anyhow::Result<Self> {
        let cluster = waiting_for_seed(nodes)?;
        let traced = start(&first_run(&cluster)?, "firstboot", None);
        cluster.wait_healthy(FORMED).context("an undisturbed run under the tracer")?;
        let files = cluster.digest_tree(&cluster.slots[0])?.0.into_keys().collect();
        let Trace { events, .. } = traced.stop()?;
        ensure!(events.len() > 20, "the tracer saw only {events:?}");
        Ok(Self { nodes, events, files })
    }

    /// `count` events spread evenly over the run, numbered from 1.
    pub fn sample(&self, count: usize) -> Vec<usize> {
        let total = self.events.len();
        (0..count).map(|n| 1 + n * (total - 1) / (count.max(2) - 1)).collect()
    }

    /// Kills the agent at event `number`, lets it run again, and compares.
    pub fn point(&self, number: usize) -> anyhow::Result<Outcome> {
        let cluster = waiting_for_seed(self.nodes)?;
        let slot = &cluster.slots[0];
        let traced = start(&first_run(&cluster)?, "firstboot", Some(number));
        let begin = Instant::now();
        while !traced.is_finished() && begin.elapsed() < FORMED && cluster.check_healthy(&cluster.slots).is_err() {
            std::thread::sleep(Duration::from_millis(100));
        }
        let trace = traced.stop()?;
        let killed_at = trace.killed.then(|| trace.events.last().cloned()).flatten();
        let at = killed_at.as_ref().map_or("the end".to_owned(), ToString::to_string);
        self.check_second_run(&cluster, slot, number)
            .with_context(|| format!("killed at event {number}, {at}"))
            .map(|seconds| Outcome { killed_at, seconds })
    }

    fn check_second_run(&self, cluster: &TestCluster, slot: &str, number: usize) -> anyhow::Result<f64> {
        let (before, disk) = (cluster.digest_tree(slot)?, founding_disk(cluster, slot)?);
        let begin = Instant::now();
        let power_cut = number % 2 == 1;
        if power_cut {
            cluster.lab.kill(slot)?;
            cluster.lab.start(slot)?;
        } else {
            cluster.output(slot, &["systemctl", "start", "--no-block", "firstboot"])?;
        }
        cluster.wait_healthy(BACK)?;
        let seconds = begin.elapsed().as_secs_f64();
        let after = cluster.digest_tree(slot)?;
        let lost = before.only(|path| must_stay(path, power_cut)).lost_or_changed(&after);
        ensure!(lost.is_empty(), "made anew or lost by the second run:\n{lost}");
        ensure!(disk.is_none() || founding_disk(cluster, slot)? == disk, "another identity of the disk");
        let names: BTreeSet<String> = after.0.keys().cloned().collect();
        ensure!(names == self.files, "other files than an undisturbed run leaves: {:?}", {
            names.symmetric_difference(&self.files).collect::<Vec<_>>()
        });
        self.check_third_run(cluster, slot, &after)?;
        Ok(seconds)
    }

    /// Running once more changes nothing at all.
    fn check_third_run(&self, cluster: &TestCluster, slot: &str, before: &Digests) -> anyhow::Result<()> {
        let identity = || -> anyhow::Result<_> {
            Ok((cluster.check_voters(slot)?, cluster.etcd_cluster_id(slot)?, cluster.system_identifier(slot)?))
        };
        let was = identity()?;
        cluster.output(slot, &["systemctl", "restart", "firstboot"])?;
        cluster.wait_healthy(BACK)?;
        ensure!(identity()? == was, "members, cluster id or system identifier changed: {was:?}, {:?}", identity()?);
        let after = cluster.digest_tree(slot)?;
        let changed = before.only(|path| path != "/run/pgkiln/etcd/etcd.env").lost_or_changed(&after);
        ensure!(changed.is_empty(), "changed by a run that had nothing to do:\n{changed}");
        Ok(())
    }
}

/// Nodes that are up; the first one has no seed.
fn waiting_for_seed(nodes: usize) -> anyhow::Result<TestCluster> {
    let cluster = TestCluster::builder().named("crash").nodes(nodes).without_seeds().up()?;
    let slot = &cluster.slots[0];
    cluster.wait_for("an agent that found no metadata", Duration::from_secs(30), || {
        let state = cluster.output(slot, &["systemctl", "show", "-P", "ActiveState", "firstboot"])?;
        ensure!(state == "failed", "firstboot.service is {state}");
        Ok(())
    })?;
    for other in &cluster.slots[1..] {
        cluster.reseed(other, |_| Ok(()))?;
        cluster.output(other, &["systemctl", "start", "--no-block", "firstboot"])?;
    }
    cluster.reseed(slot, |_| Ok(()))?;
    Ok(cluster)
}

/// The command that runs the agent in the first node, for the tracer.
fn first_run(cluster: &TestCluster) -> anyhow::Result<Vec<String>> {
    // As firstboot.service sets it.
    let run = ["sh", "-c", "umask 077; exec /usr/bin/firstboot run"];
    let line = cluster.lab.command_line(&cluster.slots[0], run)?;
    // The environment is the service's, too: nothing of this host's search path.
    let clean = "env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8";
    Ok(["sh", "-c", &format!("exec {clean} {line}")].map(str::to_owned).to_vec())
}

/// Written once: a second writing would be another key, another identity or a lost secret.
fn must_stay(path: &str, power_cut: bool) -> bool {
    // A birth record grows by stages; a temporary file is a leftover of the crash. etcd is told `new` once.
    let moving = path.contains("/birth/") || path.ends_with(".new") || path.ends_with("/etcd.env");
    // There until PostgreSQL's directory is a database.
    let moving = moving || path.ends_with("/postgresql-unborn.json");
    !moving && (path.starts_with("/var/") || !power_cut)
}

/// What tells this disk from another one while the cluster is being founded.
fn founding_disk(cluster: &TestCluster, slot: &str) -> anyhow::Result<Option<serde_json::Value>> {
    match fs_err::read(cluster.var(slot).join("lib/pgkiln/birth/intent.json")) {
        Ok(bytes) => Ok(serde_json::from_slice::<serde_json::Value>(&bytes)?.get("disk").cloned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
