//! The larger layouts from the same image: three databases that vote with three proxies in front, and databases whose
//! voters are others. How nodes without a vote get in, and who does not. Run by `cargo selftest`; alone:
//! `PGKILN_TEST_IMAGE=… cargo test -p pgkiln-tests --test layout`.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use firstboot::spec::Role;
use firstboot::status::{Phase, Status, Verdict};
use pgkiln::cluster::{Node, SeedFormat};
use pgkiln_tests::cluster::{Story, TestCluster};

const FORMED: Duration = Duration::from_secs(120);
const BACK: Duration = Duration::from_secs(60);
/// What a node has kept of having joined; its keys are not among it.
const JOINED: [&str; 3] = ["spec.json", "secrets.json", "identity.json"];

fn node(slot: &str, last: u8, role: Role) -> Node {
    Node::new(slot, format!("10.91.0.{last}").parse().expect("an address")).with_role(role)
}

fn up(change: impl FnOnce(&mut pgkiln::cluster::Definition) + 'static) -> anyhow::Result<TestCluster> {
    let cluster = TestCluster::builder().named("layout").define(change).up()?;
    cluster.wait_healthy(FORMED)?;
    cluster.wait_good(&cluster.others, BACK)?;
    eprintln!("all nodes good {:.1}s after the first one's start", cluster.started.elapsed().as_secs_f64());
    Ok(cluster)
}

/// One lab at a time: two would only disturb each other's time limits.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn three_databases_three_proxies() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    let _alone = ALONE.lock();
    let cluster = up(|definition| {
        definition.role = Role::Database;
        let proxies = [("px-1", 21), ("px-2", 22), ("px-3", 23)];
        definition.nodes.extend(proxies.map(|(slot, last)| node(slot, last, Role::Proxy)));
    });
    let cluster = cluster.unwrap_or_else(|error| panic!("{error:#}"));
    let mut story = Story::about(&cluster);
    story.look(&[
        ("SQL through every proxy", routing),
        ("each role runs its own services", services),
        ("the registry knows every node and who joined", registry),
        ("a proxy holds nothing that is not its own", least_privilege),
    ]);
    story.act(&[
        ("a proxy's power cut: the others serve, it returns by itself", power_cut),
        ("killed while joining, again and again: the same machine is let in", killed_joining),
        ("a wrong token is refused", wrong_token),
        ("another machine with a used token is refused, with a new token it is let in", used_token),
        ("certificates near their end are renewed while everything runs", renewal),
        ("a new intermediate: voters renew at once, an old seed that comes again changes nothing", intermediate),
        ("all voters down: a proxy serves on and waits, a new one starts nothing", voters_down),
    ]);
    story.end();
}

#[test]
fn databases_whose_voters_are_others() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    let _alone = ALONE.lock();
    let cluster = up(|definition| {
        definition.role = Role::Database;
        definition.nodes.truncate(2);
        let etcd = [("etcd-1", 31), ("etcd-2", 32), ("etcd-3", 33)];
        definition.nodes.extend(etcd.map(|(slot, last)| node(slot, last, Role::Etcd)));
        definition.nodes.push(node("px-1", 21, Role::Proxy));
    });
    let cluster = cluster.unwrap_or_else(|error| panic!("{error:#}"));
    let mut story = Story::about(&cluster);
    story.look(&[("SQL through the proxy", routing), ("each role runs its own services", services)]);
    story.act(&[("a database without a vote loses its power and returns", database_power_cut)]);
    story.end();
}

/// Ten days before their end, on a voter that leads, on a replica and on a node that joined.
fn renewal(cluster: &TestCluster) -> anyhow::Result<()> {
    const TEN_DAYS: Duration = Duration::from_hours(10 * 24);
    let leader = cluster.leader()?;
    let proxy = cluster.others[0].clone();
    let database = [("postgresql", 5432), ("patroni", 8008), ("etcd", 2379), ("agent", 8443)];
    let nodes = cluster.slots.iter().map(|slot| (slot, &database[..])).chain([(&proxy, &[("agent", 8443)][..])]);
    let nodes: Vec<_> = nodes.collect();
    let mut before = Vec::new();
    for (slot, served) in &nodes {
        for (name, port) in *served {
            before.push((*slot, *name, *port, cluster.served_certificate(slot, *port)?));
        }
    }
    let writer = cluster.write_through(&proxies(cluster))?;
    writer.wait_rows(50, BACK)?;
    for (slot, _) in &nodes {
        cluster.age_certificates(slot, TEN_DAYS)?;
        ensure!(cluster.days_left(slot, "agent")? < 11, "{slot}: the test did nothing");
        let pid = cluster.output(slot, &["systemctl", "show", "--property=MainPID", "firstboot"])?;
        cluster.output(slot, &["systemctl", "restart", "firstboot"])?;
        ensure!(pid != cluster.output(slot, &["systemctl", "show", "--property=MainPID", "firstboot"])?, "{slot}");
    }
    for (slot, name, port, old) in &before {
        cluster.wait_for("a new certificate", BACK, || {
            let (kept, now) = (cluster.kept_certificate(slot, name)?, cluster.served_certificate(slot, *port)?);
            ensure!(cluster.days_left(slot, name)? > 80, "{slot}: `{name}` is not renewed");
            ensure!(now == kept && now != *old, "{slot}:{port} serves an older certificate");
            Ok(())
        })?;
        let marks = cluster.run(slot, &["test", "-e", "/run/pgkiln/pki/renewing"])?;
        ensure!(!marks.status.success(), "{slot}: renewing never ended");
    }
    writer.wait_write_after(Instant::now(), BACK)?;
    let pause = writer.stop().longest_pause;
    ensure!(pause < Duration::from_secs(3), "no write for {pause:.1?} while certificates were renewed");
    ensure!(cluster.leader()? == leader, "the leader changed");
    cluster.wait_good(&cluster.others, BACK)?;
    cluster.wait_healthy(BACK)
}

fn intermediate(cluster: &TestCluster) -> anyhow::Result<()> {
    let (leader, voters) = (cluster.leader()?, cluster.slots.clone());
    let stale = cluster.slots[2].clone();
    let old_seed = cluster.dir().join("old-seed");
    cluster.cluster.write_seed(&stale, SeedFormat::Directory, &old_seed, true)?;
    cluster.cluster.renew_intermediate()?;
    let started = "SELECT pg_postmaster_start_time()::text";
    for voter in &voters {
        let (before, old) = (cluster.psql(voter, started)?, cluster.served_certificate(voter, 5432)?);
        cluster.reseed(voter, |_| Ok(()))?;
        cluster.output(voter, &["systemctl", "restart", "firstboot"])?;
        cluster.wait_for("a certificate of the new intermediate", BACK, || {
            ensure!(cluster.served_certificate(voter, 5432)? != old, "{voter} serves the old certificate");
            ensure!(cluster.served_certificate(voter, 8443)? == cluster.kept_certificate(voter, "agent")?, "{voter}");
            Ok(())
        })?;
        ensure!(cluster.psql(voter, started)? == before, "{voter}: PostgreSQL was restarted");
    }
    let new = cluster.kept_certificate(&stale, "agent")?;
    cluster.reseed(&stale, |seed| Ok(fs_err::copy(old_seed.join("user-data"), seed.join("user-data")).map(drop)?))?;
    cluster.output(&stale, &["systemctl", "restart", "firstboot"])?;
    cluster.wait_healthy(BACK)?;
    ensure!(cluster.kept_certificate(&stale, "agent")? == new, "an old seed brought the old intermediate back");
    ensure!(cluster.leader()? == leader, "the leader changed");
    routing(cluster)
}

fn proxies(cluster: &TestCluster) -> Vec<String> {
    cluster.others.iter().filter(|slot| slot.starts_with("px-")).cloned().collect()
}

fn routing(cluster: &TestCluster) -> anyhow::Result<()> {
    let where_am_i = "SELECT host(inet_server_addr()) || ' ' || pg_is_in_recovery()";
    let leader = cluster.leader()?;
    let address = cluster.cluster.definition.node(&leader).map(|node| node.address.to_string()).unwrap_or_default();
    for slot in proxies(cluster) {
        let got = cluster.ask(&slot, 5000, where_am_i)?;
        ensure!(got == format!("{address} false"), "{slot}:5000 leads to {got}, the leader is {address}");
        let got = cluster.ask(&slot, 5001, where_am_i)?;
        ensure!(got.ends_with(" true"), "{slot}:5001 leads to {got}");
    }
    Ok(())
}

fn active(cluster: &TestCluster, slot: &str) -> anyhow::Result<Vec<String>> {
    const SERVICES: [&str; 3] = ["etcd", "patroni", "haproxy"];
    let said = cluster.run(slot, &[&["systemctl", "is-active"][..], &SERVICES].concat())?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let active = said.lines().zip(SERVICES).filter(|(state, _)| *state == "active");
    Ok(active.map(|(_, service)| service.to_owned()).collect())
}

fn services(cluster: &TestCluster) -> anyhow::Result<()> {
    let definition = &cluster.cluster.definition;
    for node in &definition.nodes {
        let expected: &[&str] = match (definition.role_of(node), definition.is_voter(&node.slot)) {
            (Role::Database, true) => &["etcd", "patroni"],
            (Role::Database, false) => &["patroni"],
            (Role::Etcd, _) => &["etcd"],
            _ => &["haproxy"],
        };
        let active = active(cluster, &node.slot)?;
        ensure!(active == expected, "{}: {active:?} instead of {expected:?}", node.slot);
        let status = cluster.status(&node.slot)?;
        ensure!(status.phase == Phase::Running, "{}: {status:?}", node.slot);
        let failed = cluster.output(&node.slot, &["systemctl", "--failed", "--no-legend", "--plain"])?;
        ensure!(failed.is_empty(), "{}: {failed}", node.slot);
    }
    Ok(())
}

fn registry(cluster: &TestCluster) -> anyhow::Result<()> {
    let uuid = cluster.cluster.definition.uuid;
    let keys = ["etcdctl", "get", "--prefix", "--keys-only", &format!("/pgkiln/{uuid}/")];
    // The same from a voter and from a node that may only read.
    for slot in [&cluster.slots[0], &cluster.others[0]] {
        let keys = cluster.output(slot, &keys)?;
        for node in &cluster.cluster.definition.nodes {
            for kind in ["slots", "nodes"] {
                let key = format!("/pgkiln/{uuid}/{kind}/{}", node.slot);
                ensure!(keys.lines().any(|line| line == key), "{slot} does not see {key}: {keys}");
            }
            let joined = keys.lines().any(|line| line == format!("/pgkiln/{uuid}/joined/{}", node.slot));
            ensure!(joined != cluster.cluster.definition.is_voter(&node.slot), "{}: joined is {joined}", node.slot);
        }
    }
    Ok(())
}

fn least_privilege(cluster: &TestCluster) -> anyhow::Result<()> {
    let uuid = cluster.cluster.definition.uuid;
    let slot = "px-1";
    for (command, allowed) in [
        (vec!["put", "/service/orders/leader", "px-1"], false),
        (vec!["del", "--prefix", "/pgkiln/"], false),
        (vec!["put", "/pgkiln/UUID/nodes/px-2", "x"], false),
        (vec!["put", "/pgkiln/UUID/joined/px-2", "x"], false),
        (vec!["member", "add", "x", "--peer-urls=https://10.91.0.99:2380"], false),
        (vec!["auth", "disable"], false),
        (vec!["user", "list"], false),
        (vec!["get", "/service/orders/leader"], true),
    ] {
        let command: Vec<String> = command.iter().map(|part| part.replace("UUID", &uuid.to_string())).collect();
        let argv: Vec<&str> = ["etcdctl"].into_iter().chain(command.iter().map(String::as_str)).collect();
        let done = cluster.run(slot, &argv)?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success() == allowed, "{command:?} on a proxy: {said}");
        ensure!(allowed || said.contains("permission denied"), "{command:?} is refused for another reason: {said}");
    }
    let toml = fs_err::read_to_string(cluster.cluster.dir().join("secrets.toml"))?;
    let key = fs_err::read_to_string(cluster.cluster.dir().join("pki/intermediate.key"))?;
    let tokens = fs_err::read_to_string(cluster.cluster.dir().join("tokens.toml"))?;
    // The proxies' user, which may only read, is theirs.
    let secret = toml.lines().filter(|line| !line.starts_with("etcd_proxy"));
    let values = secret.chain(tokens.lines()).filter_map(|line| line.split('"').nth(1));
    let patterns: Vec<&str> = values.filter(|value| value.len() >= 32).chain(key.lines().nth(1)).collect();
    ensure!(patterns.len() > 10, "the operator's files have another shape than this test knows");
    let list = "grep -raslFf /run/patterns /var/lib /var/log /run/pgkiln /etc /tmp; rm /run/patterns";
    let script = format!("umask 077; cat > /run/patterns; {list}");
    for slot in proxies(cluster) {
        let found = cluster.lab.exec_with_input(&slot, ["sh", "-c", &script], patterns.join("\n"))?;
        ensure!(found.stdout.is_empty(), "{slot} holds secrets: {}", String::from_utf8_lossy(&found.stdout));
    }
    // The same search does find something where it is.
    let voter = cluster.lab.exec_with_input(&cluster.slots[0], ["sh", "-c", &script], patterns.join("\n"))?;
    let voter = String::from_utf8_lossy(&voter.stdout).into_owned();
    ensure!(voter.contains("secrets.json") && !voter.contains("/var/log"), "on a voter: {voter}");
    Ok(())
}

fn power_cut(cluster: &TestCluster) -> anyhow::Result<()> {
    cluster.lab.kill("px-1")?;
    cluster.ask("px-2", 5000, "SELECT 'served'")?;
    let start = Instant::now();
    cluster.lab.start("px-1")?;
    cluster.wait_good(&["px-1".to_owned()], BACK)?;
    eprintln!("       good again {:.1}s after its start", start.elapsed().as_secs_f64());
    cluster.ask("px-1", 5000, "SELECT 'served'").map(drop)
}

fn database_power_cut(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    cluster.lab.kill(&leader)?;
    cluster.wait_for("another leader", BACK, || {
        let address = cluster.ask("px-1", 5000, "SELECT host(inet_server_addr())")?;
        let was = cluster.cluster.definition.node(&leader).map(|node| node.address.to_string());
        ensure!(Some(&address) != was.as_ref(), "still {address}");
        Ok(())
    })?;
    cluster.lab.start(&leader)?;
    cluster.wait_healthy(BACK)
}

/// As if a node had been killed before it stored what the voters answered; its keys stay.
fn forget_joining(cluster: &TestCluster, slot: &str) -> anyhow::Result<()> {
    let lib = cluster.var(slot).join("lib/pgkiln");
    for name in JOINED.into_iter().map(|name| lib.join(name)) {
        if name.exists() {
            fs_err::remove_file(name)?;
        }
    }
    for entry in fs_err::read_dir(lib.join("pki"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            fs_err::remove_file(path)?;
        }
    }
    cluster.reseed(slot, |_| Ok(()))
}

fn killed_joining(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = "px-1";
    cluster.lab.kill(slot)?;
    forget_joining(cluster, slot)?;
    for pause in [700, 900, 1100, 1300, 1500, 1800, 2200] {
        cluster.lab.start(slot)?;
        std::thread::sleep(Duration::from_millis(pause));
        cluster.lab.kill(slot)?;
        if cluster.var(slot).join("lib/pgkiln/spec.json").exists() {
            eprintln!("       had joined {pause} ms after its start");
            forget_joining(cluster, slot)?;
        }
    }
    cluster.lab.start(slot)?;
    cluster.wait_good(&[slot.to_owned()], BACK)?;
    cluster.ask(slot, 5000, "SELECT 'served'").map(drop)
}

fn wait_refusal(cluster: &TestCluster, slot: &str, what: &str) -> anyhow::Result<Status> {
    let status = cluster.wait_for(&format!("a refusal of {slot}"), BACK, || {
        let status = cluster.status(slot)?;
        ensure!(status.phase == Phase::Failed, "{slot} is {:?}: {:?}", status.phase, status.waiting_for);
        Ok(status)
    })?;
    let error = status.error.clone().context("a failed agent says why")?;
    ensure!(error.what.contains(what) && error.remedy.len() > 40, "{error}");
    ensure!(status.verdict == Verdict::Bad, "{status:?}");
    ensure!(active(cluster, slot)?.is_empty(), "{slot}: services run");
    Ok(status)
}

/// An empty disk in a slot, with a seed; what was there before is put aside.
fn new_machine(cluster: &TestCluster, slot: &str, aside: &str) -> anyhow::Result<()> {
    cluster.lab.kill(slot)?;
    fs_err::rename(cluster.var(slot), cluster.dir().join(aside))?;
    fs_err::create_dir(cluster.var(slot))?;
    cluster.reseed(slot, |_| Ok(()))
}

fn wrong_token(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = "px-2";
    new_machine(cluster, slot, "px-2-right")?;
    cluster.reseed(slot, |seed| {
        let path = seed.join("user-data");
        let text = fs_err::read_to_string(&path)?;
        let wrong = text.replace("token: px-2.", "token: px-2.x");
        ensure!(wrong != text, "no token in {text}");
        Ok(fs_err::write(path, wrong)?)
    })?;
    cluster.lab.start(slot)?;
    wait_refusal(cluster, slot, "the token is not the one of slot `px-2`")?;
    for voter in &cluster.slots {
        let journal = cluster.output(voter, &["journalctl", "-b", "-o", "cat", "--no-pager"])?;
        ensure!(!journal.contains("px-2.x"), "{voter} logged the token");
    }
    // The machine that has joined is not disturbed by who tries.
    cluster.lab.kill(slot)?;
    fs_err::remove_dir_all(cluster.var(slot))?;
    fs_err::rename(cluster.dir().join("px-2-right"), cluster.var(slot))?;
    cluster.lab.start(slot)?;
    cluster.wait_good(&[slot.to_owned()], BACK)
}

fn used_token(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = "px-3";
    new_machine(cluster, slot, "px-3-first")?;
    cluster.lab.start(slot)?;
    let status = wait_refusal(cluster, slot, "was already used by another machine")?;
    let remedy = status.error.map(|error| error.remedy).unwrap_or_default();
    ensure!(remedy.contains("pgkiln cluster token px-3"), "{remedy}");

    cluster.cluster.issue_token(slot)?;
    let backends = "SELECT pg_postmaster_start_time()::text";
    for voter in &cluster.slots {
        let before = cluster.psql(voter, backends)?;
        cluster.reseed(voter, |_| Ok(()))?;
        cluster.output(voter, &["systemctl", "restart", "firstboot"])?;
        ensure!(cluster.psql(voter, backends)? == before, "{voter}: PostgreSQL was restarted");
    }
    cluster.lab.kill(slot)?;
    cluster.reseed(slot, |_| Ok(()))?;
    cluster.lab.start(slot)?;
    cluster.wait_good(&[slot.to_owned()], BACK)?;
    cluster.ask(slot, 5000, "SELECT 'served'")?;
    cluster.wait_healthy(BACK)
}

fn voters_down(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        cluster.lab.kill(slot)?;
    }
    for slot in ["px-1", "px-2"] {
        cluster.lab.kill(slot)?;
    }
    forget_joining(cluster, "px-2")?;
    for slot in ["px-1", "px-2"] {
        cluster.lab.start(slot)?;
    }
    let waits = |slot: &str, what: &str| {
        cluster.wait_for(&format!("{slot} to say what it waits for"), BACK, || {
            let status = cluster.status(slot)?;
            let why = status.waiting_for.clone().unwrap_or_default();
            ensure!(why.contains(what) && status.verdict == Verdict::Undecided, "{status:?}");
            Ok(())
        })
    };
    waits("px-1", "the lease of slot px-1")?;
    waits("px-2", "a voter to let this node in")?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(active(cluster, "px-1")? == ["haproxy"], "px-1 runs {:?}", active(cluster, "px-1")?);
    ensure!(active(cluster, "px-2")?.is_empty(), "px-2 runs {:?}", active(cluster, "px-2")?);
    for slot in ["px-1", "px-2"] {
        for left in ["lib/pgkiln/birth", "lib/etcd/default/member"] {
            ensure!(!cluster.var(slot).join(left).exists(), "{slot} has {left}: it founded something");
        }
    }
    for slot in &cluster.slots {
        cluster.lab.start(slot)?;
    }
    cluster.wait_healthy(FORMED)?;
    cluster.wait_good(&cluster.others, BACK)?;
    // The leader has only just been promoted: a proxy sees that at its next check.
    cluster.wait_for("SQL through every proxy", BACK, || routing(cluster))
}
