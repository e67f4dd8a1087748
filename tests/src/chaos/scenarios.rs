//! What is broken, and what must then hold besides the invariants. Each returns what it did, in a few words.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::arena::{APPLICATION, REPOSITORY, Scene};

/// One way to break a cluster.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name, for `--only`.
    pub name: &'static str,
    /// Breaks it, waits for what must happen, and repairs what is more than power and network.
    pub act: fn(&mut Scene<'_>) -> anyhow::Result<String>,
    /// Whether it is over in seconds.
    pub short: bool,
}

/// All of them.
pub const ALL: [Scenario; 13] = [
    Scenario { name: "switchover", act: switchover, short: true },
    Scenario { name: "switchover-to", act: switchover_to, short: true },
    Scenario { name: "postmaster-killed", act: postmaster_killed, short: true },
    Scenario { name: "patroni-killed", act: patroni_killed, short: true },
    Scenario { name: "haproxy-killed", act: haproxy_killed, short: true },
    Scenario { name: "keepalived-killed", act: keepalived_killed, short: true },
    Scenario { name: "repository-down", act: repository_down, short: true },
    Scenario { name: "node-killed", act: node_killed, short: false },
    Scenario { name: "patroni-frozen", act: patroni_frozen, short: false },
    Scenario { name: "leader-isolated", act: leader_isolated, short: false },
    Scenario { name: "pair-cut", act: pair_cut, short: false },
    Scenario { name: "quorum-lost", act: quorum_lost, short: false },
    Scenario { name: "reboots", act: reboots, short: false },
];

/// The scenario of this name.
pub fn named(name: &str) -> anyhow::Result<&'static Scenario> {
    let all = || ALL.map(|scenario| scenario.name).join(", ");
    ALL.iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("no scenario `{name}`; there are {}", all()))
}

/// When writes must be possible again.
const WRITES: Duration = Duration::from_secs(90);

/// To whichever replica is best: all of them stand for election, and those that lose follow at once.
fn switchover(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let leader = scene.leader.clone();
    switch_over(scene, &["patronictl", "switchover", "--leader", &leader, "--force"])
}

/// To one that is named: the others give it two seconds (`process_unhealthy_cluster` in Patroni's `ha.py`) before they
/// follow, and without one that follows nothing is acknowledged.
fn switchover_to(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let leader = scene.leader.clone();
    let candidate = scene.random.one_of(&scene.replicas()).clone();
    let argv = ["patronictl", "switchover", "--leader", &leader, "--candidate", &candidate, "--force"];
    let told = switch_over(scene, &argv)?;
    ensure!(told.ends_with(&candidate), "{told}, not to {candidate}");
    Ok(told)
}

fn switch_over(scene: &Scene<'_>, argv: &[&str]) -> anyhow::Result<String> {
    let said = scene.cluster.output(&scene.leader, argv)?;
    ensure!(said.contains("Successfully switched over"), "{said}");
    scene.wait_write_after(Instant::now(), WRITES)?;
    let last = scene.observers.last().context("no write")?;
    ensure!(*last.slot != *scene.leader, "{} still writes", last.slot);
    Ok(format!("{} -> {}", scene.leader, last.slot))
}

fn postmaster_killed(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    kill_main(scene, "kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)")
}

fn patroni_killed(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    kill_main(scene, "systemctl kill -s KILL --kill-whom=main patroni")
}

/// Runs `kill` on the leader; who writes then is Patroni's choice.
fn kill_main(scene: &Scene<'_>, kill: &str) -> anyhow::Result<String> {
    scene.cluster.output(&scene.leader, &["sh", "-c", kill])?;
    let seconds = scene.wait_write_after(Instant::now(), WRITES)?;
    // A connection that was open may go on for a moment; what follows is seen, too.
    std::thread::sleep(Duration::from_secs(8));
    let last = scene.observers.last().context("no write")?;
    Ok(format!("on {}; {} writes, first after {seconds:.2} s", scene.leader, last.slot))
}

fn haproxy_killed(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let slot = scene.vip_owner()?;
    scene.cluster.output(&slot, &["systemctl", "kill", "-s", "KILL", "haproxy"])?;
    scene.wait_write_after(Instant::now(), Duration::from_secs(10))?;
    let limit = Duration::from_secs(15);
    scene.cluster.wait_for("HAProxy again", limit, || scene.cluster.ask(&slot, 5000, "SELECT 'up'"))?;
    same_leader(scene)?;
    Ok(format!("on {slot}, {} has the virtual IP", scene.vip_owner()?))
}

fn keepalived_killed(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let slot = scene.vip_owner()?;
    scene.cluster.output(&slot, &["systemctl", "kill", "-s", "KILL", "keepalived"])?;
    let seconds = scene.wait_write_after(Instant::now(), Duration::from_secs(10))?;
    // It may come back on the same node, or another one takes over first; never both.
    std::thread::sleep(Duration::from_secs(5));
    same_leader(scene)?;
    Ok(format!("on {slot}, first write after {seconds:.2} s, {} has the virtual IP", scene.vip_owner()?))
}

fn repository_down(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    scene.cluster.lab.kill(REPOSITORY)?;
    let killed = Instant::now();
    let leader = scene.leader.clone();
    // A segment that cannot be archived, and one after it.
    while killed.elapsed() < Duration::from_secs(15) {
        scene.cluster.psql(&leader, "SELECT pg_switch_wal()")?;
        scene.wait_write_after(Instant::now(), Duration::from_secs(5))?;
        std::thread::sleep(Duration::from_secs(3));
    }
    let gap = scene.observers.ask(APPLICATION, super::History::longest_pause)?;
    ensure!(gap < Duration::from_secs(2), "no write for {gap:.1?} because backups have nowhere to go");
    same_leader(scene)?;
    Ok(format!("writes went on for {:.0} s without it", killed.elapsed().as_secs_f64()))
}

fn same_leader(scene: &Scene<'_>) -> anyhow::Result<()> {
    let last = scene.observers.last().context("no write")?;
    ensure!(*last.slot == *scene.leader, "{} leads instead of {}, which did nothing wrong", last.slot, scene.leader);
    Ok(())
}

fn node_killed(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let with = if scene.cluster.etcd_leader(&scene.leader)? == scene.leader { " with etcd's leader" } else { "" };
    let start = Instant::now();
    scene.cluster.lab.kill(&scene.leader)?;
    // Writes went on until its last process was gone, which it is now.
    let killing = start.elapsed().as_secs_f64();
    let seconds = killing + scene.wait_write_after(Instant::now(), WRITES)?;
    let last = scene.observers.last().context("no write")?;
    Ok(format!("{} died{with}, {} writes after {seconds:.2} s", scene.leader, last.slot))
}

fn patroni_frozen(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let (cluster, leader) = (scene.cluster, scene.leader.clone());
    let signal = |signal| cluster.output(&leader, &["systemctl", "kill", "-s", signal, "--kill-whom=main", "patroni"]);
    let start = Instant::now();
    signal("STOP")?;
    let moved = cluster.wait_for("another leader", WRITES, || {
        let last = scene.observers.last().context("no write")?;
        ensure!(*last.slot != *leader, "{leader} still writes");
        Ok((last.slot.to_string(), last.answered))
    });
    // Two primaries side by side, if they can be: long enough to see them.
    std::thread::sleep(Duration::from_secs(8));
    signal("CONT")?;
    let (new, answered) = moved?;
    // The probe goes past the proxies, which turn away from a Patroni that does not answer.
    let since = |moment: Duration| moment.saturating_sub(scene.observers.time(start)).as_secs_f64();
    let through = scene.observers.ask(APPLICATION, |history| history.last_by(&leader))?.map_or(0.0, since);
    let past = scene.observers.ask(&leader, |history| history.last_by(&leader))?.map_or(0.0, since);
    let begun = since(answered);
    Ok(format!("{leader} froze; wrote for {through:.1} s through and {past:.2} s past proxies; {new} by {begun:.2} s"))
}

fn leader_isolated(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let leader = scene.leader.clone();
    let how = ["both ways", "it hears nothing", "nobody hears it"][usize::try_from(scene.seed % 3)?];
    for other in scene.replicas() {
        match how {
            "both ways" => scene.cluster.lab.partition(&leader, &other, false)?,
            "it hears nothing" => scene.cluster.lab.partition(&other, &leader, true)?,
            _ => scene.cluster.lab.partition(&leader, &other, true)?,
        }
    }
    let cut = Instant::now();
    let seconds = scene.wait_write_after(cut, WRITES);
    std::thread::sleep(scene.pace.cut.saturating_sub(cut.elapsed()));
    let last = scene.observers.last().context("no write")?;
    ensure!(*last.slot != *leader, "{leader} still writes {:.0?} after it was cut off ({how})", cut.elapsed());
    Ok(format!("{leader}, {how}; {} writes, first after {:.2} s", last.slot, seconds?))
}

fn pair_cut(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    // All pairs of all directions within nine seeds.
    let pairs = [(0, 1), (0, 2), (1, 2)];
    let (a, b) = pairs[usize::try_from(scene.seed / 3 % 3)?];
    let slots = &scene.cluster.slots;
    let (from, to, both) = match scene.seed % 3 {
        0 => (&slots[a], &slots[b], true),
        1 => (&slots[a], &slots[b], false),
        _ => (&slots[b], &slots[a], false),
    };
    scene.cluster.lab.partition(from, to, !both)?;
    let cut = Instant::now();
    let seconds = scene.wait_write_after(cut, WRITES)?;
    std::thread::sleep(scene.pace.cut.saturating_sub(cut.elapsed()));
    // Whatever Patroni made of it: with a majority that hears each other somebody writes.
    scene.wait_write_after(Instant::now(), WRITES)?;
    let arrow = if both { "<->" } else { "->" };
    let last = scene.observers.last().context("no write")?;
    Ok(format!("{from} {arrow} {to}; {} led, {} writes, first after {seconds:.2} s", scene.leader, last.slot))
}

fn quorum_lost(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let (cluster, leader) = (scene.cluster, scene.leader.clone());
    let kept = scene.random.one_of(&cluster.slots).clone();
    let stopped = cluster.others(&kept);
    stopped.iter().try_for_each(|slot| cluster.kill_etcd(slot))?;
    let begin = Instant::now();
    let mut outcome = Ok(());
    while begin.elapsed() < scene.pace.without_quorum && outcome.is_ok() {
        std::thread::sleep(Duration::from_secs(5));
        outcome = scene.wait_write_after(Instant::now(), Duration::from_secs(10)).map(drop);
        for slot in &cluster.slots {
            let address = cluster.ask(slot, 5000, "SELECT host(inet_server_addr())");
            let expected = cluster.cluster.definition.node(&leader).map(|node| node.address.to_string());
            let routed = address.and_then(|address| {
                ensure!(Some(&address) == expected.as_ref(), "{slot}:5000 leads to {address} without a quorum");
                Ok(())
            });
            outcome = outcome.and(routed);
        }
    }
    let (lasted, last) = (begin.elapsed(), scene.observers.last().context("no write")?);
    let gap = scene.observers.ask(APPLICATION, super::History::longest_pause)?;
    for slot in &stopped {
        cluster.output(slot, &["systemctl", "start", "--no-block", "etcd"])?;
    }
    outcome.with_context(|| format!("{:.0} s after etcd's quorum was lost ({leader} led)", lasted.as_secs_f64()))?;
    ensure!(*last.slot == *leader, "{} writes instead of {leader}, which nobody could decide", last.slot);
    ensure!(gap < Duration::from_secs(5), "no write for {gap:.1?} although failsafe mode is on");
    Ok(format!("only {kept} ran etcd for {:.0} s, {leader} wrote on", lasted.as_secs_f64()))
}

fn reboots(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let mut left = scene.cluster.slots.clone();
    let mut order = Vec::new();
    while !left.is_empty() {
        let slot = scene.random.one_of(&left).clone();
        left.retain(|other| *other != slot);
        scene.cluster.stop(&slot)?;
        scene.cluster.lab.start(&slot)?;
        super::arena::wait_ready(scene.cluster)?;
        order.push(slot);
    }
    Ok(order.join(", "))
}
