//! Measurements of real clusters: forming one, against a hand-written script on the same image; and failing over. Of disks: in
//! `disk`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use crate::cluster::TestCluster;
use crate::plot::{self, Bar, histograms, median};
use crate::workspace;

mod disk;
mod gaps;
mod mkosi;
mod wins;

pub use disk::{Disk, disk};
pub use gaps::{Gaps, gaps};
pub use wins::{Wins, wins};

const BASELINE: &str = include_str!("bench/baseline.sh");
const LIMIT: Duration = Duration::from_secs(120);
/// Between two questions to each node while a cluster forms.
const POLL: Duration = Duration::from_millis(50);
/// Longer than the agent waits before it moves etcd's leader, and looks.
const MOVED: Duration = Duration::from_secs(60);
/// Rows acknowledged before a leader is killed.
const ROWS: usize = 1000;

/// One run of [`form`].
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Formed {
    /// From the first node's start to a leader with two streaming replicas, by the agent.
    pub ours: f64,
    /// The same by the hand-written script.
    pub baseline: f64,
    /// CPU seconds of the agent until then, on the node where it needed most.
    pub agent_cpu: f64,
    /// Peak resident memory of the agent in MiB, on the node where it was largest.
    pub agent_peak: f64,
}

/// Forms a cluster each way, one after the other, so that both see the same machine.
pub fn form() -> anyhow::Result<Formed> {
    let (ours, agent_cpu, agent_peak) = form_ours()?;
    Ok(Formed { ours, baseline: form_by_hand()?, agent_cpu, agent_peak })
}

fn form_ours() -> anyhow::Result<(f64, f64, f64)> {
    let cluster = TestCluster::builder().named("bench").up()?;
    let seconds = wait_formed(&cluster)?;
    cluster.wait_healthy(LIMIT)?;
    let (mut cpu, mut peak) = (0.0, 0.0);
    for slot in &cluster.slots {
        let (seconds, mebibytes) = agent_cost(&cluster, slot)?;
        (cpu, peak) = (f64::max(cpu, seconds), f64::max(peak, mebibytes));
    }
    Ok((seconds, cpu, peak))
}

fn form_by_hand() -> anyhow::Result<f64> {
    let cluster = TestCluster::builder().named("baseline").without_seeds().up()?;
    let nodes = &cluster.cluster.definition.nodes;
    let list = nodes.iter().map(|node| format!("{}={}", node.slot, node.address)).collect::<Vec<_>>().join(" ");
    std::thread::scope(|scope| {
        let typed: Vec<_> = nodes
            .iter()
            .map(|node| {
                let (address, list, lab) = (node.address.to_string(), &list, &cluster.lab);
                scope.spawn(move || {
                    let argv = ["sh", "-s", &node.slot, &address, list];
                    let done = lab.exec_with_input(&node.slot, argv, BASELINE)?;
                    ensure!(done.status.success(), "{}: {}", node.slot, String::from_utf8_lossy(&done.stderr));
                    Ok(())
                })
            })
            .collect();
        typed.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;
    wait_formed(&cluster)
}

/// Seconds from the first node's start to a leader with a streaming replica on every other node.
fn wait_formed(cluster: &TestCluster) -> anyhow::Result<f64> {
    let sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    let ask = ["runuser", "-u", "postgres", "--", "/usr/bin/psql", "-h", "/run/postgresql", "-XAtqc", sql];
    let wanted = (cluster.slots.len() - 1).to_string();
    while cluster.started.elapsed() < LIMIT {
        if cluster.slots.iter().any(|slot| cluster.output(slot, &ask).is_ok_and(|count| count == wanted)) {
            return Ok(cluster.started.elapsed().as_secs_f64());
        }
        std::thread::sleep(POLL);
    }
    anyhow::bail!("no leader with {wanted} streaming replicas\n{}", cluster.report())
}

/// CPU seconds (its programs included) and peak resident MiB of a node's agent.
fn agent_cost(cluster: &TestCluster, slot: &str) -> anyhow::Result<(f64, f64)> {
    let pid = cluster.output(slot, &["systemctl", "show", "-P", "MainPID", "firstboot"])?;
    let stat = cluster.output(slot, &["cat", &format!("/proc/{pid}/stat")])?;
    // After the name in parentheses: user, system, and the same of ended children, in ticks.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 =
        fields.get(11..15).context("fields of stat")?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let status = cluster.output(slot, &["cat", &format!("/proc/{pid}/status")])?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let kibibytes: f64 = peak.trim().trim_end_matches(" kB").parse()?;
    Ok((ticks as f64 / 100.0, kibibytes / 1024.0))
}

/// Seconds from cutting the leader's power to the next acknowledged write, by a client that keeps trying.
pub fn failovers(runs: usize) -> anyhow::Result<Vec<f64>> {
    let cluster = TestCluster::builder().named("bench").up()?;
    let mut seconds = Vec::new();
    for _ in 0..runs {
        cluster.wait_healthy(LIMIT)?;
        let leader = cluster.leader()?;
        let others = cluster.others(&leader);
        let writer = cluster.write_through(&others)?;
        writer.wait_rows(ROWS, LIMIT)?;
        let killed = Instant::now();
        cluster.lab.kill(&leader)?;
        // Writes went on until the last process was gone, which it is now.
        let gone = Instant::now();
        seconds.push((gone - killed).as_secs_f64() + writer.wait_write_after(gone, LIMIT)?);
        let log = writer.stop();
        ensure!(cluster.lost(&others[0], &log)? == 0, "acknowledged rows are lost");
        cluster.lab.start(&leader)?;
    }
    Ok(seconds)
}

/// Kills the leader's postmaster under a writer; the longest pause between two acknowledged writes, in seconds.
pub fn postmaster_gap(cluster: &TestCluster) -> anyhow::Result<f64> {
    let leader = cluster.leader()?;
    let writer = cluster.write_through(&cluster.others(&leader))?;
    writer.wait_rows(ROWS / 2, LIMIT)?;
    cluster.output(&leader, &["sh", "-c", "kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)"])?;
    let killed = Instant::now();
    writer.wait_write_after(killed, LIMIT)?;
    // The write that was on its way may have been answered by a dying backend.
    std::thread::sleep(Duration::from_secs(2));
    writer.wait_write_after(Instant::now(), LIMIT)?;
    let log = writer.stop();
    ensure!(cluster.lost(&leader, &log)? == 0, "acknowledged rows are lost");
    Ok(log.longest_pause.as_secs_f64())
}

/// Until etcd's leader is not on the primary's machine, where the agents keep it.
fn wait_etcd_led_elsewhere(cluster: &TestCluster) -> anyhow::Result<()> {
    cluster.wait_for("etcd's leader elsewhere", MOVED, || {
        let leader = cluster.leader()?;
        ensure!(cluster.etcd_leader(&leader)? != leader, "still on {leader}");
        Ok(())
    })
}

/// Histograms of pauses, and the numbers, in `target/bench/NAME.{svg,json}`.
fn draw_gaps(name: &str, rows: &[Bar]) -> anyhow::Result<()> {
    let dir = workspace::root().join("target/bench");
    fs_err::create_dir_all(&dir)?;
    fs_err::write(dir.join(format!("{name}.json")), serde_json::to_vec_pretty(&serde_json::json!({"rows": rows}))?)?;
    fs_err::write(dir.join(format!("{name}.svg")), histograms("Longest time without a write, preset fast", "s", rows))?;
    Ok(())
}

/// A table of medians; the same numbers as JSON and as a chart go to `target/bench/NAME.{json,svg}`.
pub fn publish(name: &str, title: &str, unit: &str, rows: &[Bar]) -> anyhow::Result<String> {
    let mut table = format!("{title} ({unit})\n{:<44} {:>8}  runs\n", "", "median");
    for row in rows {
        let runs: Vec<String> = row.runs.iter().map(|run| format!("{run:.2}")).collect();
        let _ = writeln!(table, "{:<44} {:>8.2}  {}", row.label, median(&row.runs), runs.join(" "));
    }
    draw_bars(name, title, unit, rows, &serde_json::json!(rows))?;
    Ok(table)
}

/// A chart of bars, and the numbers, in `target/bench/NAME.{svg,json}`.
fn draw_bars(name: &str, title: &str, unit: &str, bars: &[Bar], rows: &serde_json::Value) -> anyhow::Result<()> {
    let dir = workspace::root().join("target/bench");
    fs_err::create_dir_all(&dir)?;
    let object = serde_json::json!({"title": title, "unit": unit, "rows": rows});
    fs_err::write(dir.join(format!("{name}.json")), serde_json::to_vec_pretty(&object)?)?;
    Ok(fs_err::write(dir.join(format!("{name}.svg")), plot::bars(title, unit, bars))?)
}
