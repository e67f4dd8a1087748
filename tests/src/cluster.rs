//! A real cluster for a test: an operator's directory, seeds, a lab with as many booted nodes, and questions to them.
//!
//! Nothing is mocked: nodes are the baked image's own systemd, questions are asked with the commands a person would type
//! on a node, clients connect through a published HAProxy port and verify its certificate. Everything goes when the value
//! is dropped, also by a panic; and if the test is killed, the lab ends with it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use pgkiln::cluster::{self, Cluster, SeedFormat};
use pgkiln::lab::{ExecOutput, Lab};

mod builder;
mod certificates;
mod client;
mod files;
mod haproxy;
mod look;
mod story;

pub use builder::{Builder, image};
pub use client::{Background, block_on};
pub use files::Digests;
pub use look::{EtcdMember, PatroniMember};
pub use story::{Step, Story};

/// Ports of every node that tests reach through 127.0.0.1.
const PUBLISHED: [u16; 7] = [2379, 2380, 5000, 5001, 5432, 8008, 8443];
/// A clean shutdown of one node.
const SHUTDOWN: Duration = Duration::from_secs(60);
/// Between two polls of [`TestCluster::wait_for`].
const POLL: Duration = Duration::from_millis(200);

/// A cluster of booted nodes.
pub struct TestCluster {
    /// The operator's directory.
    pub cluster: Cluster,
    /// The nodes' machines.
    pub lab: Lab,
    /// Slots that store data, in order.
    pub slots: Vec<String>,
    /// Slots of the other nodes: proxies, repository hosts, voters without data.
    pub others: Vec<String>,
    /// When the first node was started.
    pub started: Instant,
    state_dir: PathBuf,
    // Last: removed after the lab, whose handle above ends it when it is dropped.
    dir: tempfile::TempDir,
}

impl TestCluster {
    /// A cluster to be described.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A directory of this test's own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A node's `/var`, as the host sees it.
    pub fn var(&self, slot: &str) -> PathBuf {
        self.state_dir.join("nodes").join(slot).join("var")
    }

    /// Slots of the nodes other than `slot`.
    pub fn others(&self, slot: &str) -> Vec<String> {
        self.slots.iter().filter(|other| *other != slot).cloned().collect()
    }

    /// Ends etcd on a node as a crash does, for good. An etcd that stops in order may break off an answer that Patroni waits
    /// for, and Patroni (4.0) takes just that for "the lock is lost" and demotes: another test than "no quorum".
    pub fn kill_etcd(&self, slot: &str) -> anyhow::Result<()> {
        self.output(slot, &["sh", "-c", "systemctl kill -s KILL etcd && systemctl stop etcd"]).map(drop)
    }

    /// Runs a command on a node as root; its exit status is data.
    pub fn run(&self, slot: &str, argv: &[&str]) -> anyhow::Result<ExecOutput> {
        // A hanging question is an answer, too.
        let bounded = ["timeout", "30"].into_iter().chain(argv.iter().copied());
        self.lab.exec(slot, bounded).with_context(|| format!("running `{}` on {slot}", argv.join(" ")))
    }

    /// Runs a command on a node as root and returns what it printed; failure is an error with its stderr.
    pub fn output(&self, slot: &str, argv: &[&str]) -> anyhow::Result<String> {
        let done = self.run(slot, argv)?;
        let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(
            done.status.success(),
            "`{}` on {slot} ended with {}: {} {}",
            argv.join(" "),
            done.status,
            err.trim(),
            out.trim()
        );
        Ok(out.trim_end().to_owned())
    }

    /// The same as another user of the node, with that user's environment and nothing else.
    pub fn output_as(&self, slot: &str, user: &str, argv: &[&str]) -> anyhow::Result<String> {
        let mut full = vec!["runuser", "-u", user, "--"];
        full.extend_from_slice(argv);
        self.output(slot, &full)
    }

    /// Polls until `poll` succeeds. When the time is up the error says why it last failed and what every node was doing.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut poll: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            let error = match poll() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if start.elapsed() > limit {
                bail!("{what}: not within {limit:?}; last: {error:#}\n{}", self.report());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the whole cluster works: every voter started, one leader, all others streaming, every verdict good.
    pub fn wait_healthy(&self, limit: Duration) -> anyhow::Result<()> {
        self.wait_for("a healthy cluster", limit, || self.check_healthy(&self.slots))
    }

    /// The same for the nodes that are on.
    pub fn check_healthy(&self, slots: &[String]) -> anyhow::Result<()> {
        for slot in slots {
            let status = self.status(slot)?;
            ensure!(
                status.verdict == firstboot::status::Verdict::Good,
                "{slot} is {:?}, {:?}: {:?} {:?}",
                status.phase,
                status.verdict,
                status.waiting_for,
                status.error
            );
        }
        let first = slots.first().context("no node is on")?;
        let members = self.patroni_members(first)?;
        ensure!(members.iter().filter(|member| member.is_leader()).count() == 1, "not one leader: {members:?}");
        let leader = members.iter().find(|member| member.is_leader()).context("a leader")?;
        let streaming = self.streaming_from(&leader.member)?;
        for slot in slots {
            let member = members.iter().find(|member| member.member == *slot);
            let member = member.with_context(|| format!("{slot} is not in {members:?}"))?;
            let runs = ["running", "streaming"].contains(&member.state.as_str());
            ensure!(runs, "{slot} is not running: {members:?}");
            ensure!(member.is_leader() || streaming.contains(slot), "{slot} is not streaming: {streaming:?}");
        }
        ensure!(members.iter().all(|m| m.timeline == members[0].timeline), "several timelines: {members:?}");
        // Nobody but a standby named there is elected when nothing may be lost: a good leader has a successor.
        let heir = slots.len() < 2 || !self.successors(first)?.is_empty();
        ensure!(heir, "Patroni's /sync names nobody, yet the leader says good");
        Ok(())
    }

    /// Waits until nodes that store no data call themselves good.
    pub fn wait_good(&self, slots: &[String], limit: Duration) -> anyhow::Result<()> {
        let slots: Vec<&String> = slots.iter().collect();
        self.wait_for("good nodes", limit, || {
            for slot in &slots {
                let status = self.status(slot)?;
                let good = status.verdict == firstboot::status::Verdict::Good;
                ensure!(good, "{slot} is {:?}: {:?} {:?}", status.phase, status.waiting_for, status.error);
            }
            Ok(())
        })
    }

    /// Everything worth knowing about a cluster that is not as it should be.
    pub fn report(&self) -> String {
        let mut text = String::new();
        if let Ok(status) = self.lab.status() {
            let _ = writeln!(text, "{}", status.table());
            for node in &status.nodes {
                let _ = writeln!(text, "--- {}: agent {}", node.slot, node.agent.clone().unwrap_or_default());
                let journal = ["journalctl", "--no-pager", "-q", "-n", "25", "-o", "short-monotonic"];
                let said = self.output(&node.slot, &journal).or_else(|_| tail(&node.console, 25));
                let _ = writeln!(text, "{}", said.unwrap_or_else(|error| format!("{error:#}")));
            }
        }
        let listed = self.slots.iter().find_map(|slot| self.output(slot, &["patronictl", "list"]).ok());
        let _ = writeln!(text, "{}", listed.unwrap_or_else(|| "no node answers `patronictl list`".to_owned()));
        text
    }

    /// Shuts a node down as an operator would.
    pub fn stop(&self, slot: &str) -> anyhow::Result<()> {
        self.lab.stop_within(slot, SHUTDOWN).with_context(|| format!("shutting {slot} down"))
    }

    /// Writes a node's seed again, as `pgkiln cluster seed` would, and puts it where the node reads it at its next boot.
    pub fn reseed(&self, slot: &str, change: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let seed = self.var(slot).join("lib/cloud/seed/nocloud");
        if seed.exists() {
            fs_err::remove_dir_all(&seed)?;
        }
        fs_err::create_dir_all(seed.parent().context("a seed directory has a parent")?)?;
        self.cluster.write_seed(slot, SeedFormat::Directory, &seed, true)?;
        change(&seed)
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}

/// A name no other lab of this machine has.
fn unique_name(purpose: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    format!("{purpose}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

fn tail(path: &Path, lines: usize) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(&fs_err::read(path)?).into_owned();
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

/// The operator's definition that tests use unless they need another: one database, its owner, no client networks.
pub fn definition(nodes: usize) -> anyhow::Result<cluster::Definition> {
    let options = cluster::Options {
        name: "orders".to_owned(),
        nodes: (1..=nodes).map(|n| format!("10.91.0.{}", 10 + n)).collect(),
        prefix_len: Some(24),
        database: Some("orders".to_owned()),
        owner: Some("orders_app".to_owned()),
        ..Default::default()
    };
    Ok(options.definition()?)
}
