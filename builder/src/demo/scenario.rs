//! What happens between the first node's start and the last row read back.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::client::{Login, Session};
use super::nodes::{Nodes, Replica};
use super::timeline::Timeline;
use super::writer::{self, Writer};
use crate::cluster::{Cluster, Definition};
use crate::lab::{self, Lab};
use crate::problem::Problem;
use crate::progress::{Step, Steps};

/// Rows that must be acknowledged before the leader dies.
const ROWS_BEFORE: usize = 1_000;
/// Rows that must be acknowledged by its successor.
const ROWS_AFTER: usize = 200;
/// When to give up: several times what a slow machine needs.
const READY_WITHIN: Duration = Duration::from_secs(180);
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);
const ALIGNED_WITHIN: Duration = Duration::from_secs(60);
const BACKED_UP_WITHIN: Duration = Duration::from_secs(120);
const FAILED_OVER_WITHIN: Duration = Duration::from_secs(120);
const RETURNED_WITHIN: Duration = Duration::from_secs(120);
/// How often something is looked at again.
const LOOK: Duration = Duration::from_millis(50);

/// What happened.
pub(super) struct Told {
    pub(super) ready: Duration,
    pub(super) members: usize,
    pub(super) first_leader: String,
    pub(super) leader: String,
    pub(super) vip_owner: String,
    pub(super) durability: &'static str,
    pub(super) backup: String,
    pub(super) acknowledged: usize,
    pub(super) lost: usize,
    pub(super) failover: Duration,
    pub(super) connect: String,
    pub(super) timeline: Timeline,
    pub(super) lab_name: String,
}

/// A scenario that did not end well, and the lab it ended in: still up, unless it never was or the user stopped it.
pub(super) struct Failed {
    pub(super) error: anyhow::Error,
    pub(super) lab: Option<Lab>,
}

/// Runs the scenario; Ctrl-C ends it, and with it the lab.
pub(super) async fn run(lab: lab::Options, cluster: &Cluster, steps: &Steps<'_>) -> Result<(Lab, Told), Failed> {
    let name = lab.name.clone();
    let step = steps.start("boot");
    let mut timeline = Timeline::starting_now();
    let up = up(lab, &cluster.definition, &mut timeline).await;
    let nodes = up.map_err(|error| Failed { error, lab: None })?;
    let told = tokio::select! {
        told = act(&nodes, name, timeline, step, cluster, steps) => told.map_err(|error| (error, true)),
        error = interrupted() => Err((error, false)),
    };
    // Whoever still holds the lab is a thread that asks it something: it ends with its answer.
    let lab = Arc::into_inner(nodes.lab);
    match (told, lab) {
        (Ok(told), Some(lab)) => Ok((lab, told)),
        (Ok(_), None) => Err(Failed { error: anyhow::anyhow!("the lab is still in use"), lab: None }),
        (Err((error, keep)), lab) => Err(Failed { error, lab: lab.filter(|_| keep) }),
    }
}

async fn interrupted() -> anyhow::Error {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            Problem::new("interrupted; the lab and its data are gone", "", "").into()
        }
        (Err(error), _) | (_, Err(error)) => error.into(),
    }
}

async fn up(options: lab::Options, definition: &Definition, timeline: &mut Timeline) -> anyhow::Result<Nodes> {
    let started = timeline.origin();
    let lab = tokio::task::spawn_blocking(|| Lab::up(options)).await.context("starting the lab")??;
    timeline.add(started, "three nodes and a repository host start from the same image");
    Nodes::new(lab, definition)
}

async fn act(
    nodes: &Nodes,
    lab_name: String,
    mut timeline: Timeline,
    step: Step<'_>,
    cluster: &Cluster,
    steps: &Steps<'_>,
) -> anyhow::Result<Told> {
    let definition = &cluster.definition;
    let role = definition.login_roles().next().context("the demo's cluster has no role")?;
    let ca = cluster.ca_pem_path();
    let login = Login::new(&ca, &definition.name, &definition.name, role, cluster.secret(role)?)?;

    let started = timeline.origin();
    let (first_leader, replicas) = ready(nodes, &login, &mut timeline, &step).await?;
    let ready = started.elapsed();
    let synchronous = replicas.iter().filter(|replica| replica.synchronous).count();
    let durability = if synchronous > 0 { "zero-loss" } else { "available" };
    timeline
        .now(format!("ready: a row read through the virtual IP, {} replicas streaming, {durability}", replicas.len()));
    let owner = vip_owner(nodes).await?;
    timeline.now(format!("{owner} holds the virtual IP"));
    step.done_with(format!(
        "ready after {:.1}s, {first_leader} leads, {owner} has the virtual IP",
        ready.as_secs_f64()
    ));

    let step = steps.start("write");
    let first_leader = lead_at_the_address(nodes, &login, first_leader, owner, &mut timeline, &step).await?;
    let port = [nodes.port];
    let writer = Writer::start(login.clone(), port.to_vec());
    step.expect_items(ROWS_BEFORE as u64);
    let first = until(WRITTEN_WITHIN, || writer.log().last.map(|(_, answered)| answered)).await;
    timeline.add(first.context("no write was acknowledged")?, "first write acknowledged");
    let mut shown = 0;
    let enough = until(WRITTEN_WITHIN, || {
        let acknowledged = writer.acknowledged();
        step.advance((acknowledged - shown) as u64);
        shown = acknowledged;
        (acknowledged >= ROWS_BEFORE).then_some(acknowledged)
    });
    let before = enough.await.with_context(|| format!("only {} writes in a minute", writer.acknowledged()))?;
    let backup = first_backup(nodes, &step).await?;
    timeline.now(format!("the first full backup, {backup}, is in the repository"));
    step.done_with(format!("{before} rows acknowledged, backup {backup}"));

    let step = steps.start("kill the leader");
    anyhow::ensure!(vip_owner(nodes).await? == first_leader, "the virtual IP has left {first_leader} by itself");
    let slot = first_leader.clone();
    let killing = Instant::now();
    nodes.lab(move |lab| lab.kill(&slot)).await?;
    // Every process of the node is gone by now: a write sent from here on reaches its successor or nobody.
    let killed = Instant::now();
    timeline
        .add(killing, format!("{first_leader}, which leads and holds the virtual IP, is killed with everything on it"));
    step.detail("waiting for the next acknowledged write");
    let Some(back) = until(FAILED_OVER_WITHIN, || writer.acknowledged_after(killed)).await else {
        return Err(stuck("no write was acknowledged after the leader was killed", FAILED_OVER_WITHIN, nodes).await);
    };
    let failover = back.duration_since(killing);
    if let Some((at, _)) = writer.log().first_error.filter(|(at, _)| *at > killed) {
        timeline.add(at, "the writer gives up its connection and connects anew");
    }
    let session = connected(&login, &port).await?;
    let leader = nodes.answering(&session).await?;
    if let Some(at) = promoted(nodes, &leader).await {
        timeline.add(at, format!("the old leader's lease has ended, {leader} takes over"));
    }
    let vip_owner = vip_owner(nodes).await?;
    timeline.add(back, format!("writes go on: {vip_owner} has the virtual IP, {leader} acknowledges"));
    let acknowledged = writer.acknowledged();
    until(WRITTEN_WITHIN, || (writer.acknowledged() >= acknowledged + ROWS_AFTER).then_some(())).await;
    let log = writer.stop();
    let lost = writer::lost(&session, &log.acknowledged).await?;
    let acknowledged = log.acknowledged.len();
    timeline.now(format!("{acknowledged} acknowledged rows looked for, {lost} lost"));
    step.done_with(format!("writes stopped for {:.1}s, {lost} rows lost", failover.as_secs_f64()));

    let step = steps.start("return");
    let slot = first_leader.clone();
    nodes.lab(move |lab| lab.start(&slot)).await?;
    timeline.now(format!("{first_leader} is switched on again"));
    let replicas = streaming(nodes, &leader, nodes.count() - 1, RETURNED_WITHIN).await?;
    timeline.now(format!("{first_leader} is back as a replica"));
    step.done_with(format!("{first_leader} is a replica again"));

    let connect = login.psql_command(nodes.port, &ca);
    let members = replicas.len() + 1;
    Ok(Told {
        ready,
        members,
        first_leader,
        leader,
        vip_owner,
        durability,
        backup,
        acknowledged,
        lost,
        failover,
        connect,
        timeline,
        lab_name,
    })
}

/// Waits until the cluster has made its first full backup, which nobody asked for.
async fn first_backup(nodes: &Nodes, step: &Step<'_>) -> anyhow::Result<String> {
    step.detail("waiting for the first full backup");
    let deadline = Instant::now() + BACKED_UP_WITHIN;
    loop {
        match nodes.first_backup().await {
            Ok(label) => return Ok(label),
            Err(_) if Instant::now() > deadline => {
                return Err(stuck("there is no full backup", BACKED_UP_WITHIN, nodes).await);
            }
            Err(_) => sleep(LOOK * 10).await,
        }
    }
}

/// Waits for a leader behind HAProxy, for its replicas, and reads a row: the leader and its replicas.
async fn ready(
    nodes: &Nodes,
    login: &Login,
    timeline: &mut Timeline,
    step: &Step<'_>,
) -> anyhow::Result<(String, Vec<Replica>)> {
    let ports = [nodes.port];
    step.detail("waiting for a leader");
    let deadline = Instant::now() + READY_WITHIN;
    let (session, leader) = loop {
        if let Ok(session) = connected(login, &ports).await
            && let Ok(leader) = nodes.answering(&session).await
        {
            break (session, leader);
        }
        if Instant::now() > deadline {
            return Err(stuck("no leader can be reached through the virtual IP", READY_WITHIN, nodes).await);
        }
        sleep(LOOK).await;
    };
    timeline.now(format!("{leader} leads and is reached through the virtual IP"));
    step.detail("waiting for replicas");
    let replicas = streaming(nodes, &leader, nodes.count() - 1, READY_WITHIN).await?;
    timeline.now("all replicas stream");
    writer::create_table(&session).await?;
    session.client.query("SELECT n FROM demo_rows", &[]).await.context("reading a row")?;
    Ok((leader, replicas))
}

/// The one node that holds the virtual IP.
async fn vip_owner(nodes: &Nodes) -> anyhow::Result<String> {
    let deadline = Instant::now() + ALIGNED_WITHIN;
    loop {
        let mut owners = nodes.vip_owners().await?;
        if let (1, Some(owner)) = (owners.len(), owners.pop()) {
            return Ok(owner);
        }
        if Instant::now() > deadline {
            return Err(stuck("not exactly one node holds the virtual IP", ALIGNED_WITHIN, nodes).await);
        }
        sleep(LOOK).await;
    }
}

/// Sees to it that one node both leads and holds the virtual IP: losing that one is the worst case. The address follows
/// HAProxy and leadership follows PostgreSQL, so the two meet by chance or by a planned switchover.
async fn lead_at_the_address(
    nodes: &Nodes,
    login: &Login,
    leader: String,
    owner: String,
    timeline: &mut Timeline,
    step: &Step<'_>,
) -> anyhow::Result<String> {
    if leader == owner {
        return Ok(leader);
    }
    step.detail("moving leadership to the holder of the virtual IP");
    timeline.now(format!("planned switchover from {leader} to {owner}, so that one node leads and holds the address"));
    let argv = ["patronictl", "switchover", "--leader", &leader, "--candidate", &owner, "--force"];
    let deadline = Instant::now() + ALIGNED_WITHIN;
    loop {
        // Refused until the candidate is synchronous.
        let _ = nodes.exec(&leader, &argv).await;
        if let Ok(session) = connected(login, &[nodes.port]).await
            && nodes.answering(&session).await.is_ok_and(|now| now == owner)
        {
            break;
        }
        if Instant::now() > deadline {
            return Err(stuck(&format!("{owner} does not lead"), ALIGNED_WITHIN, nodes).await);
        }
        sleep(LOOK * 10).await;
    }
    streaming(nodes, &owner, nodes.count() - 1, ALIGNED_WITHIN).await?;
    timeline.now(format!("{owner} leads, all replicas stream"));
    Ok(owner)
}

/// Waits until `count` replicas stream and, since the cluster is to lose nothing, one of them is waited for and may take
/// over.
async fn streaming(nodes: &Nodes, leader: &str, count: usize, limit: Duration) -> anyhow::Result<Vec<Replica>> {
    let deadline = Instant::now() + limit;
    loop {
        let replicas = nodes.replicas(leader).await.unwrap_or_default();
        let streaming: Vec<_> = replicas.into_iter().filter(|replica| replica.streaming).collect();
        if streaming.len() >= count
            && streaming.iter().any(|replica| replica.synchronous)
            && nodes.successors(leader).await.is_ok_and(|successors| !successors.is_empty())
        {
            return Ok(streaming);
        }
        if Instant::now() > deadline {
            let names: Vec<_> = streaming.iter().map(|replica| replica.slot.as_str()).collect();
            let what = format!("not all replicas of {leader} stream synchronously, only: {}", names.join(", "));
            return Err(stuck(&what, limit, nodes).await);
        }
        sleep(LOOK).await;
    }
}

/// A session through the first port that answers.
async fn connected(login: &Login, ports: &[u16]) -> anyhow::Result<Session> {
    let mut last = None;
    for port in ports {
        match login.connect(*port).await {
            Ok(session) => return Ok(session),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no port is published")))
}

/// Looks again and again until there is something.
async fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Some(found) => return Some(found),
            None if Instant::now() > deadline => return None,
            None => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// When Patroni on `slot` took the leader's lock for the last time, by its own log.
async fn promoted(nodes: &Nodes, slot: &str) -> Option<Instant> {
    let argv = ["journalctl", "--unit=patroni", "--output=short-unix", "--no-pager", "--grep=promoted self to leader"];
    let journal = nodes.exec(slot, &argv).await.ok()?;
    let last = journal.lines().rev().find_map(|line| line.split(' ').next()?.parse::<f64>().ok())?;
    let at = SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(last).ok()?;
    Instant::now().checked_sub(at.elapsed().ok()?)
}

async fn stuck(what: &str, limit: Duration, nodes: &Nodes) -> anyhow::Error {
    let state = nodes.state().await;
    let what = format!("{what} within {} s; the nodes say:\n{state}", limit.as_secs());
    Problem::new(what, "", "run it again with --keep and look at `pgkiln lab status`").into()
}
