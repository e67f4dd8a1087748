//! One cluster, many scenarios: each begins on a healthy cluster that is written to, and must leave one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use firstboot::spec::{Role, Rto, Vip, VipMode};
use ipnet::IpNet;
use pgkiln::cluster::{Definition, Node};
use pgkiln::lab::{NodeState, NodeStatus};

use super::checker::{self, Rows};
use super::client::{Client, Observers};
use super::history::History;
use super::scenarios::Scenario;
use crate::cluster::TestCluster;
use crate::random::SplitMix;

/// From the last repair to a whole cluster; longer is stuck.
const HEALTHY: Duration = Duration::from_secs(120);
/// Rows acknowledged to the application before anything is broken.
const ROWS: usize = 200;
/// The application's name among the clients.
pub(super) const APPLICATION: &str = "app";
/// What the application connects to.
const VIRTUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 91, 0, 10));
/// The repository host.
pub(super) const REPOSITORY: &str = "bkp-1";
const REPOSITORY_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 91, 0, 31));
/// How many of the violations are told.
const TOLD: usize = 6;

/// How long outages last.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// etcd without a quorum.
    pub without_quorum: Duration,
    /// A cut in the network.
    pub cut: Duration,
}

impl Pace {
    /// Longer than the leader key lives with the preset `fast`, and no more.
    pub const SHORT: Self = Self { without_quorum: Duration::from_secs(35), cut: Duration::from_secs(30) };
    /// As long as it takes until everything that could time out has.
    pub const FULL: Self = Self { without_quorum: Duration::from_secs(300), cut: Duration::from_secs(60) };
}

/// What a scenario has to work with.
pub struct Scene<'a> {
    /// The cluster.
    pub cluster: &'a TestCluster,
    /// Everything random follows from the seed.
    pub random: SplitMix,
    /// The clients at work.
    pub observers: &'a Observers,
    /// Who leads at the start.
    pub leader: String,
    /// How long outages last.
    pub pace: Pace,
    /// The seed itself, to go round all variants of a scenario.
    pub seed: u64,
}

impl Scene<'_> {
    /// Seconds from `moment` until the application's next write, sent after it, is acknowledged.
    pub fn wait_write_after(&self, moment: Instant, limit: Duration) -> anyhow::Result<f64> {
        let since = self.observers.time(moment);
        self.cluster.wait_for("an acknowledged write", limit, || {
            let answered = self.observers.ask(APPLICATION, |history| history.answered_after(since))?;
            Ok((answered.context("none")? - since).as_secs_f64())
        })
    }

    /// The one node that has the virtual IP.
    pub fn vip_owner(&self) -> anyhow::Result<String> {
        self.cluster.wait_for("one owner of the virtual IP", HEALTHY, || vip_owner(self.cluster))
    }

    /// The slots that do not lead at the start.
    pub fn replicas(&self) -> Vec<String> {
        self.cluster.others(&self.leader)
    }
}

/// How a scenario ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which one.
    pub scenario: &'static str,
    /// With which seed.
    pub seed: u64,
    /// What happened in it.
    pub told: String,
    /// Rows acknowledged to the application.
    pub acknowledged: usize,
    /// Its longest time without an acknowledgement.
    pub gap: Duration,
    /// From the last repair to a healthy cluster.
    pub healthy: Duration,
    /// All of it.
    pub took: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |duration: Duration| duration.as_secs_f64();
        write!(
            f,
            "{:<20} seed {:<3} gap {:>5.2}s  healthy after {:>4.1}s  {:>6} rows  {:>5.1}s in all  {}",
            self.scenario,
            self.seed,
            seconds(self.gap),
            seconds(self.healthy),
            self.acknowledged,
            seconds(self.took),
            self.told
        )
    }
}

/// A cluster and everything that was ever acknowledged by it.
pub struct Arena {
    /// The cluster.
    pub cluster: TestCluster,
    past: Vec<History>,
    runs: usize,
}

impl Arena {
    /// Forms a cluster with the preset `rto`.
    pub fn new(name: &'static str, rto: Rto) -> anyhow::Result<Self> {
        Self::with(name, rto, |_| {})
    }

    /// The same with changes of the definition.
    pub fn with(name: &'static str, rto: Rto, change: impl FnOnce(&mut Definition) + 'static) -> anyhow::Result<Self> {
        let builder = TestCluster::builder().named(name).define(move |definition| {
            definition.postgres.rto = rto;
            // The probes come from the lab's own address.
            definition.client_networks = vec![definition.subnet];
            let address = IpNet::new(VIRTUAL, definition.subnet.prefix_len()).expect("an address of the subnet");
            definition.vip = Some(Vip { address, mode: VipMode::Lan });
            definition.nodes.push(Node::new(REPOSITORY, REPOSITORY_ADDRESS).with_role(Role::Backup));
            change(definition);
        });
        let cluster = builder.up()?;
        let arena = Self { cluster, past: Vec::new(), runs: 0 };
        arena.wait_ready()?;
        let sql = "CREATE TABLE chaos_rows (writer text, n bigint, PRIMARY KEY (writer, n))";
        let first = &arena.cluster.slots[0];
        arena.cluster.session(first, 5000, async |session| Ok(session.client.batch_execute(sql).await?))?;
        Ok(arena)
    }

    /// Runs one scenario and checks everything; a violation is an error.
    pub fn run(&mut self, scenario: &Scenario, seed: u64, pace: Pace) -> anyhow::Result<Outcome> {
        self.act(scenario, seed, pace).with_context(|| format!("{} with seed {seed}", scenario.name))
    }

    fn act(&mut self, scenario: &Scenario, seed: u64, pace: Pace) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        self.wait_ready()?;
        self.runs += 1;
        let observers = Observers::start(&self.cluster.login()?, self.clients()?, &self.addresses())?;
        self.cluster.wait_for("rows before anything is broken", HEALTHY, || {
            let rows = observers.ask(APPLICATION, |history| history.accepted().count())?;
            ensure!(rows >= ROWS, "{rows} rows");
            Ok(())
        })?;
        let leader = observers.last().context("nobody acknowledged anything")?.slot.to_string();
        let random = SplitMix(seed);
        let mut scene = Scene { cluster: &self.cluster, random, observers: &observers, leader, pace, seed };
        let acted = (scenario.act)(&mut scene);
        let repaired = Instant::now();
        let back = self.repair().and_then(|()| self.wait_ready());
        let back = back.and_then(|()| scene.wait_write_after(Instant::now(), HEALTHY)).map(drop);
        let healthy = repaired.elapsed();
        let histories = observers.stop();
        let application = histories.iter().find(|history| history.role() == APPLICATION).context("no application")?;
        let (acknowledged, gap) = (application.accepted().count(), application.longest_pause());
        // Whatever else went wrong: a violation is told first.
        let violated = self.check(&histories);
        let told = match (violated, back, acted) {
            (Ok(()), Ok(()), Ok(told)) => told,
            (violated, back, acted) => {
                let errors = [violated.err(), back.err(), acted.err()].into_iter().flatten();
                let errors: Vec<String> = errors.map(|error| format!("{error:#}")).collect();
                anyhow::bail!("{}", errors.join("\nand: "));
            }
        };
        self.past.extend(histories);
        Ok(Outcome { scenario: scenario.name, seed, told, acknowledged, gap, healthy, took: begin.elapsed() })
    }

    fn clients(&self) -> anyhow::Result<Vec<Client>> {
        let name = |role: &str| format!("{}/{role}", self.runs);
        let slots = &self.cluster.slots;
        let port = self.cluster.port(&VIRTUAL.to_string(), 5000)?;
        let mut clients = vec![Client::application(name(APPLICATION), vec![port])];
        for slot in slots {
            clients.push(Client::probe(name(slot), self.cluster.port(slot, 5432)?));
        }
        Ok(clients)
    }

    fn addresses(&self) -> BTreeMap<IpAddr, Arc<str>> {
        let nodes = &self.cluster.cluster.definition.nodes;
        nodes.iter().map(|node| (node.address, Arc::from(node.slot.as_str()))).collect()
    }

    /// Undoes everything a scenario may have left; what it broke otherwise it repairs itself.
    fn repair(&self) -> anyhow::Result<()> {
        self.cluster.lab.heal(None)?;
        for node in self.cluster.lab.status()?.nodes {
            if node.state == NodeState::Off {
                self.cluster.lab.start(&node.slot)?;
            }
        }
        Ok(())
    }

    fn wait_ready(&self) -> anyhow::Result<()> {
        wait_ready(&self.cluster)
    }

    /// Everything acknowledged now and in earlier scenarios, against the rows that are there.
    fn check(&self, histories: &[History]) -> anyhow::Result<()> {
        let mut violations = checker::one_writer(histories);
        let rows = self.rows();
        if let Ok(rows) = &rows {
            violations.extend(checker::nothing_lost(histories, rows));
            violations.extend(checker::nothing_lost(&self.past, rows));
        }
        let (count, told) = (violations.len(), violations.iter().take(TOLD).cloned().collect::<Vec<_>>());
        ensure!(violations.is_empty(), "VIOLATED, {count} times:\n{}", told.join("\n"));
        rows.map(drop)
    }

    fn rows(&self) -> anyhow::Result<Rows> {
        let first = &self.cluster.slots[0];
        self.cluster.wait_for("reading the rows back", HEALTHY, || {
            self.cluster.session(first, 5000, async |session| {
                let rows = session.client.query("SELECT writer, n FROM chaos_rows", &[]).await?;
                Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
            })
        })
    }
}

fn vip_owner(cluster: &TestCluster) -> anyhow::Result<String> {
    let address = format!("{VIRTUAL}/");
    let has = |node: &NodeStatus| node.addresses.iter().any(|own| own.starts_with(&address));
    let owners: Vec<_> = cluster.lab.status()?.nodes.into_iter().filter(has).map(|node| node.slot).collect();
    match owners.as_slice() {
        [one] => Ok(one.clone()),
        _ => anyhow::bail!("{VIRTUAL} is on {owners:?}"),
    }
}

/// Healthy, and able to lose any node: the standbys are in the quorum, and etcd knows it.
///
/// Patroni tells PostgreSQL a moment before it tells etcd; a leader that is lost in between has no heir.
pub(super) fn wait_ready(cluster: &TestCluster) -> anyhow::Result<()> {
    cluster.wait_for("a cluster that can lose any node", HEALTHY, || {
        cluster.check_healthy(&cluster.slots)?;
        vip_owner(cluster)?;
        let first = &cluster.slots[0];
        let leader = cluster.leader_seen_by(first)?;
        let (successors, others) = (cluster.successors(first)?, cluster.others(&leader));
        // Patroni has quorum commit from version 4 on; before it one standby is chosen.
        let all = cluster.image_info(first)?.version_of("patroni")? >= (4, 0, 0);
        let missing = others.iter().filter(|slot| !successors.contains(slot)).count();
        ensure!(missing == 0 || !all && missing < others.len(), "{leader} leads, only {successors:?} may take over");
        Ok(())
    })
}
