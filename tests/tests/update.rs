//! A whole cluster takes another version, with another pgBackRest in it, while it is written to: one node at a time, one change
//! of the leader, nothing lost, nothing missing in the archive that pauses meanwhile; and a version that does not work goes no further than the first node, whatever else happens meanwhile. Run by
//! `cargo selftest`; alone: `PGKILN_TEST_IMAGE=… cargo test -p pgkiln-tests --test update`.
//!
//! The nodes are containers: the other slot is a file, and the lab chooses what boots as systemd-boot would (`lab::slots`).
//! Disks, and the boot loader itself: `update_disk`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use firstboot::backup::Listed;
use firstboot::spec::Role;
use firstboot::status::Verdict;
use pgkiln::cluster::Node;
use pgkiln_tests::cluster::TestCluster;
use pgkiln_tests::next::{self, Next};

/// Slot of the repository host.
const BKP: &str = "bkp-1";
const BKP_ADDRESS: &str = "10.91.0.31";
/// All four nodes, one after the other; busy machines take longer than the 15 s a node needs.
const ROLL: Duration = Duration::from_secs(300);
/// One step of a node: a restart, a slot being written.
const STEP: Duration = Duration::from_secs(120);
/// Writes through the proxies stop for the leader's handover only: two seconds, more where other things keep the machine busy.
/// Without a handover the others would have to wait for the leader's key to expire.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

fn every(cluster: &TestCluster) -> Vec<String> {
    cluster.slots.iter().chain(&cluster.others).cloned().collect()
}

fn overview(cluster: &TestCluster, slot: &str) -> anyhow::Result<serde_json::Value> {
    let said = cluster.output(slot, &["firstboot", "update", "--status", "--json"])?;
    serde_json::from_str(&said).with_context(|| format!("update --status: {said}"))
}

/// The wish, whose turn it is and what every node runs, asked on the first node that knows.
fn seen(cluster: &TestCluster) -> anyhow::Result<serde_json::Value> {
    let known = |slot: &String| Some(overview(cluster, slot).ok()?["cluster"].clone()).filter(|known| !known.is_null());
    cluster.slots.iter().find_map(known).context("no node sees the cluster")
}

fn turn(cluster: &TestCluster) -> anyhow::Result<String> {
    let turn = seen(cluster)?["turn"].as_str().map(str::to_owned);
    turn.context("it is nobody's turn")
}

/// Timeline of the leader: one more for every change.
fn timeline(cluster: &TestCluster) -> anyhow::Result<i64> {
    let leader = cluster.leader()?;
    Ok(cluster.psql(&leader, "SELECT timeline_id FROM pg_control_checkpoint()")?.parse()?)
}

/// Wishes for a set that every node has in a directory.
fn wish_directory(cluster: &TestCluster, next: &Next, name: &str) -> anyhow::Result<()> {
    for slot in every(cluster) {
        next.give(&cluster.var(&slot).join("lib").join(name))?;
    }
    wish(cluster, next, &format!("/var/lib/{name}"))
}

/// Wishes for a set that a web server has: the repository host, which takes it last.
fn wish_address(cluster: &TestCluster, next: &Next, name: &str) -> anyhow::Result<()> {
    next.give(&cluster.var(BKP).join("lib").join(name))?;
    let server = ["python3", "-m", "http.server", "--directory", &format!("/var/lib/{name}"), "8000"];
    cluster.output(BKP, &[&["systemd-run", "--quiet", "--collect"][..], &server].concat())?;
    let address = format!("http://{BKP_ADDRESS}:8000/");
    cluster.wait_for("a server with the set", Duration::from_secs(20), || wish(cluster, next, &address))
}

fn wish(cluster: &TestCluster, next: &Next, source: &str) -> anyhow::Result<()> {
    let said = cluster.output(&cluster.slots[0], &["firstboot", "update", "--cluster", "--older", source])?;
    ensure!(said.contains(&next.version), "{said}");
    Ok(())
}

/// What pgBackRest itself says it is, on every node: they all agree, or it is an error.
fn pgbackrest(cluster: &TestCluster) -> anyhow::Result<String> {
    let mut said = BTreeSet::new();
    for slot in every(cluster) {
        said.insert(cluster.output(&slot, &["pgbackrest", "version"])?.trim().to_owned());
    }
    ensure!(said.len() == 1, "pgBackRest says {said:?}");
    said.pop_first().context("a node")
}

/// Every node has the version and is good, and nobody holds the lock any more.
fn rolled(cluster: &TestCluster, version: &str) -> anyhow::Result<()> {
    let seen = seen(cluster)?;
    let nodes = seen["nodes"].as_array().cloned().unwrap_or_default();
    ensure!(nodes.len() == every(cluster).len(), "nodes {nodes:?}");
    ensure!(nodes.iter().all(|node| node["version"] == version), "versions {nodes:?}");
    ensure!(seen["turn"].is_null(), "{} still holds the lock", seen["turn"]);
    cluster.check_healthy(&cluster.slots)?;
    for slot in &cluster.others {
        let status = cluster.status(slot)?;
        ensure!(status.verdict == Verdict::Good, "{slot}: {:?} {:?}", status.waiting_for, status.error);
    }
    Ok(())
}

/// A node's `/boot`, as the host sees it.
fn boot(cluster: &TestCluster, slot: &str) -> PathBuf {
    cluster.var(slot).with_file_name("boot")
}

/// What is there while the other slot is being written.
fn unfinished(cluster: &TestCluster, slot: &str) -> PathBuf {
    boot(cluster, slot).join("slots/.root.new")
}

/// What the loader's files of a node are called.
fn loader(cluster: &TestCluster, slot: &str) -> anyhow::Result<Vec<String>> {
    let names = fs_err::read_dir(boot(cluster, slot).join("EFI/Linux"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

fn starts(cluster: &TestCluster, slot: &str) -> anyhow::Result<u32> {
    let nodes = cluster.lab.status()?.nodes;
    Ok(nodes.iter().find(|node| node.slot == slot).context("a node")?.starts)
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
    let started = Instant::now();
    let [good, broken] = next::bake()?;
    // What the agent starts first, and what it waits for.
    let without = [("haproxy", next::bake_without("haproxy")?), ("etcd", next::bake_without("etcd")?)];
    let since = |what: &str| eprintln!("{:>6.1}s  {what}", started.elapsed().as_secs_f64());
    since("all versions are baked");
    let cluster = TestCluster::builder().named("update").define(|definition| {
        let address = BKP_ADDRESS.parse().expect("an address");
        definition.nodes.push(Node::new(BKP, address).with_role(Role::Backup));
    });
    let cluster = cluster.up()?;
    cluster.wait_healthy(STEP)?;
    cluster.wait_good(&cluster.others, 2 * STEP)?;
    cluster.wait_for("the first full backup", 2 * STEP, || {
        let notes = cluster.status(BKP)?.notes;
        ensure!(!notes.iter().any(|note| note.starts_with("backups:")), "{notes:?}");
        Ok(())
    })?;
    since("the cluster is healthy, its repository host good and settled");
    takes(&cluster, &good)?;
    since("all nodes have the version");
    archived(&cluster)?;
    since("the archive has no hole");
    refuses(&cluster, &broken, &good)?;
    since("the broken version was refused");
    keeps_its_tries(&cluster, &good)?;
    since("a boot without quorum kept its tries");
    for (service, version) in &without {
        falls_back(&cluster, service, version, &good)?;
        since(&format!("a version without {service} was left again"));
    }
    Ok(())
}

fn takes(cluster: &TestCluster, next: &Next) -> anyhow::Result<()> {
    let (before, leader) = (timeline(cluster)?, cluster.leader()?);
    let pgbackrest_before = pgbackrest(cluster)?;
    let writer = cluster.write_through(&cluster.slots)?;
    writer.wait_rows(100, Duration::from_secs(30))?;
    let started = Instant::now();
    wish_address(cluster, next, "next")?;
    let (mut order, mut notes) = (Vec::new(), BTreeSet::new());
    cluster.wait_for("the new version everywhere", ROLL, || {
        if let Ok(turn) = turn(cluster)
            && order.last() != Some(&turn)
        {
            order.push(turn);
        }
        for slot in every(cluster) {
            let status = cluster.status(&slot).ok().into_iter();
            let about = status.flat_map(|status| status.notes).filter(|note| note.starts_with("backups:"));
            notes.extend(about.map(|note| (slot.clone(), note)));
        }
        rolled(cluster, &next.version)
    })?;
    let took = started.elapsed();
    let log = writer.stop();
    let lost = cluster.lost(&cluster.slots[0], &log)?;
    eprintln!(
        "rolled in {:.1}s in the order {order:?}, longest pause {:.2}s, {} rows, {lost} lost; noted {notes:?}",
        took.as_secs_f64(),
        log.longest_pause.as_secs_f64(),
        log.acknowledged.len()
    );
    ensure!(lost == 0, "{lost} acknowledged rows are lost");
    paused(cluster, next, &pgbackrest_before, &notes)?;
    ensure!(timeline(cluster)? == before + 1, "timeline {before} became {}", timeline(cluster)?);
    let expected = order.len() == 4 && order[2] == leader && order[3] == BKP;
    ensure!(expected, "not the leader {leader} and then the repository host last: {order:?}");
    ensure!(log.longest_pause < LONGEST_PAUSE, "writes stopped for {:?}", log.longest_pause);
    for slot in every(cluster) {
        let loader = overview(cluster, &slot)?["node"]["loader"].clone();
        ensure!(loader[0]["tries_left"].is_null() && loader[0]["running"] == true, "{slot}: {loader}");
    }
    Ok(())
}

/// Two versions of pgBackRest do not talk to each other: from the leader's turn to the repository host's nothing is archived, and
/// both said so.
fn paused(cluster: &TestCluster, next: &Next, before: &str, notes: &BTreeSet<(String, String)>) -> anyhow::Result<()> {
    let Some(version) = &next.pgbackrest else { return Ok(()) };
    let (after, leader) = (pgbackrest(cluster)?, cluster.leader()?);
    ensure!(after != before && after.contains(version.as_str()), "`{before}` became `{after}`, not {version}");
    for (slot, words) in [(leader.as_str(), "until the update has reached"), (BKP, "archiving may pause until")] {
        let said =
            |(by, note): &(String, String)| by == slot && note.contains(words) && note.contains(version.as_str());
        ensure!(notes.iter().any(said), "{slot} never noted `{words}`: {notes:?}");
    }
    // A leader that was just promoted has a history to archive at once.
    let failed: u32 = cluster.psql(&leader, "SELECT failed_count FROM pg_stat_archiver")?.parse()?;
    eprintln!("{before} became {after}; meanwhile {failed} attempts to archive failed");
    ensure!(failed > 0, "nothing shows that archiving paused");
    Ok(())
}

/// What was written before, during and after the roll is in the repository, on both timelines and without a hole.
fn archived(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    cluster.psql(&leader, "SELECT pg_logical_emit_message(true, 'test', 'something')")?;
    let segment = cluster.psql(&leader, "SELECT pg_walfile_name(pg_switch_wal())")?;
    cluster.wait_for(&format!("{segment} in the repository"), STEP, || {
        let listed: Listed = serde_json::from_str(&cluster.output(BKP, &["firstboot", "backups", "--json"])?)?;
        let newest = listed.wal_max.unwrap_or_default();
        ensure!(newest >= segment, "the newest is {newest}");
        Ok(())
    })?;
    let find = ["find", "/var/lib/pgbackrest", "-path", "*/archive/*", "-type", "f", "-printf", "%f\n"];
    let found = cluster.output(BKP, &find)?;
    let whole = found.lines().filter_map(|name| name.split_once('-').map(|(segment, _)| segment));
    let whole = whole.filter(|segment| segment.len() == 24);
    // Log and segment; a log has 256 segments of 16 MiB.
    let number = |name: &str| {
        Some(u64::from_str_radix(&name[8..16], 16).ok()? * 256 + u64::from_str_radix(&name[16..], 16).ok()?)
    };
    let numbers: BTreeSet<u64> = whole.clone().filter_map(number).collect();
    let timelines: BTreeSet<&str> = whole.map(|name| &name[..8]).collect();
    let (first, last) = (numbers.first().context("a segment")?, numbers.last().context("a segment")?);
    ensure!(last - first + 1 == numbers.len() as u64, "holes between {first} and {last}: {numbers:?}");
    ensure!(timelines.len() == 2, "timelines {timelines:?}");
    Ok(())
}

fn refuses(cluster: &TestCluster, broken: &Next, good: &Next) -> anyhow::Result<()> {
    let before = timeline(cluster)?;
    wish_directory(cluster, broken, "broken")?;
    let slot = cluster.wait_for("a slot being written", STEP, || {
        let written = cluster.slots.iter().find(|slot| unfinished(cluster, slot).exists());
        written.cloned().context("none is")
    })?;
    // Power that fails meanwhile: the node comes back with what it had, and begins again.
    cluster.lab.kill(&slot)?;
    ensure!(!loader(cluster, &slot)?.iter().any(|name| name.contains("+3")), "too late: it was written already");
    fs_err::remove_file(unfinished(cluster, &slot))?;
    cluster.lab.start(&slot)?;
    let (others, leader) = (cluster.others(&slot), cluster.leader()?);
    let replica = others.iter().find(|other| **other != leader).context("a replica")?;
    cluster.wait_for("the same node at it again", STEP, || {
        ensure!(unfinished(cluster, &slot).exists(), "it is not");
        Ok(())
    })?;
    waits_without_quorum(cluster, &slot, replica)?;
    let stopped = cluster.wait_for("the roll to stop", ROLL, || {
        let nodes = seen(cluster)?["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|node| node["stopped"].is_string()).context("nobody has stopped it yet")
    })?;
    ensure!(stopped["slot"] == slot.as_str(), "{stopped}, it was {slot}'s turn");
    ensure!(stopped["stopped"].as_str().unwrap_or_default().contains("came back with"), "{stopped}");
    cluster.wait_healthy(STEP)?;
    rolled(cluster, &good.version)?;
    ensure!(timeline(cluster)? == before, "a replica's failure changed the leader");
    let notes = cluster.status(&cluster.leader()?)?.notes.join("; ");
    ensure!(notes.contains(&format!("stopped at {slot}")), "the leader notes {notes:?}");
    let loader = overview(cluster, &slot)?["node"]["loader"].clone();
    ensure!(loader[0]["running"] == true && loader[1]["tries_left"] == 0, "{slot}: {loader}");
    cluster.output(&cluster.slots[0], &["firstboot", "update", "--cancel"])?;
    Ok(())
}

/// Without etcd's quorum nobody restarts, even a node that has written its slot; with it the roll goes on, after a node whose
/// power failed meanwhile is back.
fn waits_without_quorum(cluster: &TestCluster, slot: &str, replica: &str) -> anyhow::Result<()> {
    let others = cluster.others(slot);
    kill_etcds(cluster, &others)?;
    cluster.wait_for("the version in the other slot", STEP, || {
        let names = loader(cluster, slot)?;
        ensure!(names.iter().any(|name| name.contains("+3")), "{names:?}");
        Ok(())
    })?;
    let known = starts(cluster, slot)?;
    cluster.wait_for("the node to say what it waits for", STEP, || {
        let notes = cluster.status(slot)?.notes.join("; ");
        ensure!(notes.contains("goes on when etcd answers"), "{slot} notes {notes:?}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(starts(cluster, slot)? == known, "{slot} restarted although etcd has no quorum");
    start_etcds(cluster, &others)?;
    cluster.lab.kill(replica)?;
    cluster.lab.start(replica)
}

/// At once: a slot is written within seconds.
fn kill_etcds(cluster: &TestCluster, slots: &[String]) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let killers: Vec<_> = slots.iter().map(|slot| scope.spawn(|| cluster.kill_etcd(slot))).collect();
        killers.into_iter().try_for_each(|killer| killer.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })
}

fn start_etcds(cluster: &TestCluster, slots: &[String]) -> anyhow::Result<()> {
    slots.iter().try_for_each(|slot| cluster.output(slot, &["systemctl", "start", "etcd"]).map(drop))
}

/// A node that boots a version which was never good there, while etcd has no quorum: it waits, and that is not the version's
/// fault.
fn keeps_its_tries(cluster: &TestCluster, good: &Next) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let slot = cluster.slots.iter().find(|slot| **slot != leader).context("a replica")?;
    let counts = |mark: &str| {
        let names = loader(cluster, slot)?;
        let of =
            |name: &&String| name.split('+').next().unwrap_or(name).trim_end_matches(".efi").ends_with(&good.version);
        let name = names.iter().find(of).context("no file of the version")?.clone();
        let fits = if mark.is_empty() { !name.contains('+') } else { name.contains(mark) };
        ensure!(fits, "the file is `{name}`");
        Ok(name)
    };
    let (others, name) = (cluster.others(slot), counts("")?);
    kill_etcds(cluster, &others)?;
    cluster.lab.kill(slot)?;
    let files = boot(cluster, slot).join("EFI/Linux");
    fs_err::rename(files.join(&name), files.join(name.replace(".efi", "+3.efi")))?;
    cluster.lab.start(slot)?;
    counts("+2-1.efi").context("this boot's try was not counted")?;
    cluster.wait_for("the try to be given back", STEP, || counts("+3.efi"))?;
    let waits = cluster.status(slot)?;
    ensure!(waits.verdict == Verdict::Undecided, "{waits:?}");
    start_etcds(cluster, &others)?;
    cluster.wait_healthy(STEP)?;
    cluster.wait_for("the version to be good", STEP, || counts(""))?;
    Ok(())
}

/// A version in which one service cannot start, on one node: that is its fault, whether the agent starts the service itself or
/// waits for it, and the node restarts into what it had.
fn falls_back(cluster: &TestCluster, service: &str, version: &Next, good: &Next) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let slot = cluster.slots.iter().find(|slot| **slot != leader).context("a replica")?;
    let name = format!("without-{service}");
    version.give(&cluster.var(slot).join("lib").join(&name))?;
    let known = starts(cluster, slot)?;
    cluster.output(slot, &["firstboot", "update", "--older", "--tries", "1", &format!("/var/lib/{name}")])?;
    cluster.output(slot, &["systemctl", "--no-block", "reboot"])?;
    let mut said = String::new();
    cluster.wait_for("the version before", STEP, || {
        if let Ok(status) = cluster.status(slot)
            && status.verdict == Verdict::Bad
        {
            said = status.error.map(|error| error.to_string()).unwrap_or_default();
        }
        let node = overview(cluster, slot)?["node"].clone();
        let given_up = node["loader"].as_array().is_some_and(|files| files.iter().any(|file| file["tries_left"] == 0));
        ensure!(node["running"] == good.version.as_str() && given_up, "{node}");
        Ok(())
    })?;
    eprintln!("without {service} the node said: {said}");
    ensure!(said.is_empty() || said.contains(service), "it named another reason: {said}");
    ensure!(starts(cluster, slot)? == known + 2, "{slot} started {} times", starts(cluster, slot)? - known);
    cluster.wait_healthy(STEP)
}
