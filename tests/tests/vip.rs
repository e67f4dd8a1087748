//! The virtual IP of a real cluster: one owner, whatever dies, and none where somebody else has the address. A program of
//! its own, so that it does not share two cores with another cluster.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use firstboot::spec::{Vip, VipMode};
use firstboot::status::Verdict;
use pgkiln_tests::cluster::{Story, TestCluster};

const VIP: &str = "10.91.0.10";
/// Three advertisements of a second, and the largest skew (RFC 3768: (256 - priority) / 256) with priority 148.
const MASTER_DOWN: Duration = Duration::from_millis(3_422);
/// What looking at three nodes may be late by.
const LOOKING: Duration = Duration::from_millis(400);
/// Two failed checks a second apart, each with a second's time limit.
const CHECKS: Duration = Duration::from_secs(4);
/// For everything that has no bound of its own.
const SETTLED: Duration = Duration::from_secs(30);
const BACK: Duration = Duration::from_secs(60);

#[test]
fn the_virtual_ip_has_one_owner_whatever_dies() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    let cluster = TestCluster::builder().named("vip").define(|definition| {
        let address = format!("{VIP}/24").parse().expect("an address");
        definition.vip = Some(Vip { address, mode: VipMode::Lan });
    });
    let cluster = cluster.up().unwrap_or_else(|error| panic!("{error:#}"));
    cluster.wait_healthy(Duration::from_secs(90)).unwrap_or_else(|error| panic!("{error:#}"));
    let mut story = Story::about(&cluster);
    story.look(&[
        ("one node has the virtual IP, one MAC address answers for it", one_answer),
        ("SQL through the virtual IP, whose certificate names it", sql),
        ("`firstboot status` says who has the virtual IP", status),
        ("what Keepalived runs as, and what it may read", rights),
    ]);
    story.act(&[
        ("HAProxy dies on the owner: another takes over, and keeps the address", haproxy_dies),
        ("Keepalived is killed on the owner: nothing is left behind", keepalived_dies),
        ("cutting the owner's power", power_cut),
        ("an owner that cannot hear the primary leaves the address to one that can", primary_unheard),
        ("a partition ends with one owner", partition),
        ("an address that is in use is not claimed, and its user named", in_use),
    ]);
    story.end();
}

/// Every slot whose interface has the address.
fn owners(cluster: &TestCluster) -> anyhow::Result<Vec<String>> {
    let host = format!("{VIP}/");
    let nodes = cluster.lab.status()?.nodes.into_iter();
    let owners = nodes.filter(|node| node.addresses.iter().any(|address| address.starts_with(&host)));
    Ok(owners.map(|node| node.slot).collect())
}

fn owner(cluster: &TestCluster) -> anyhow::Result<String> {
    cluster.wait_for("one owner of the virtual IP", SETTLED, || {
        let owners = owners(cluster)?;
        ensure!(owners.len() == 1, "owners: {owners:?}");
        Ok(owners.concat())
    })
}

/// What was seen of the owners during something: moments and the owners then.
struct Seen(Vec<(Instant, Vec<String>)>);

impl Seen {
    /// Watches while `act` runs.
    fn during<T>(cluster: &TestCluster, act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Self, T)> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let mut seen = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    seen.extend(owners(cluster).map(|owners| (Instant::now(), owners)));
                }
                seen
            });
            let acted = act();
            done.store(true, Ordering::Relaxed);
            let seen = watching.join().map_err(|_| anyhow::anyhow!("the watching thread panicked"))?;
            Ok((Self(seen), acted?))
        })
    }

    /// The longest time in which `wrong` was true at every look, from the first look to the last.
    fn longest(&self, wrong: impl Fn(&[String]) -> bool) -> Duration {
        let (mut longest, mut since) = (Duration::ZERO, None);
        for (at, owners) in &self.0 {
            match (wrong(owners), since) {
                (true, None) => since = Some(*at),
                (true, Some(first)) => longest = longest.max(*at - first),
                (false, _) => since = None,
            }
        }
        longest
    }

    fn tell(&self, what: &str) -> (Duration, Duration) {
        let (none, several) = (self.longest(<[String]>::is_empty), self.longest(|owners| owners.len() > 1));
        eprintln!(
            "       {what}: no owner for {:.2}s, several for {:.2}s ({} looks)",
            none.as_secs_f64(),
            several.as_secs_f64(),
            self.0.len()
        );
        (none, several)
    }
}

/// Asks three times who has the address, from a node that does not.
fn check_one_answer(cluster: &TestCluster) -> anyhow::Result<()> {
    let owner = owner(cluster)?;
    let asker = cluster.others(&owner).into_iter().find(|slot| cluster.output(slot, &["true"]).is_ok());
    let asker = asker.context("no node to ask from")?;
    let said = cluster.output(&asker, &["arping", "-c", "3", "-w", "5", "-I", "host0", VIP])?;
    let macs: std::collections::BTreeSet<&str> =
        said.lines().filter_map(|line| line.split_once('[')?.1.split(']').next()).collect();
    ensure!(macs.len() == 1, "not one MAC address answers for {VIP}: {said}");
    ensure!(said.contains("Received 3 response"), "duplicate or missing ARP replies: {said}");
    let mac = cluster.output(&owner, &["cat", "/sys/class/net/host0/address"])?;
    ensure!(macs.iter().all(|answered| answered.eq_ignore_ascii_case(&mac)), "{owner} has {mac}: {said}");
    Ok(())
}

fn one_answer(cluster: &TestCluster) -> anyhow::Result<()> {
    check_one_answer(cluster)
}

fn sql(cluster: &TestCluster) -> anyhow::Result<()> {
    let said = cluster.ask(VIP, 5000, "SELECT 'written by ' || current_user || ' ' || pg_is_in_recovery()")?;
    ensure!(said == "written by orders_app false", "{said}");
    for slot in &cluster.slots {
        let names = "openssl x509 -in /run/pgkiln/pki/postgresql/postgresql.pem -noout -ext subjectAltName";
        let names = cluster.output(slot, &["sh", "-c", names])?;
        for name in [slot.as_str(), "DNS:orders", VIP] {
            ensure!(names.contains(name), "{slot}'s certificate does not name {name}: {names}");
        }
    }
    Ok(())
}

fn status(cluster: &TestCluster) -> anyhow::Result<()> {
    let owner = owner(cluster)?;
    for slot in &cluster.slots {
        cluster.wait_for("the status to follow", Duration::from_secs(3), || {
            let vip = cluster.status(slot)?.vip.context("no `vip` in the status")?;
            ensure!(vip.address.to_string() == VIP && vip.here == (*slot == owner), "{slot}: {vip:?}");
            ensure!(vip.problem.is_none() && vip.mac.is_some(), "{slot}: {vip:?}");
            Ok(())
        })?;
    }
    let text = cluster.output(&owner, &["firstboot", "status"])?;
    ensure!(text.contains(&format!("virtual IP {VIP}: here")), "{text}");
    Ok(())
}

fn rights(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = &cluster.slots[0];
    let mode = cluster.output(slot, &["stat", "-c", "%a %U", "/run/pgkiln/keepalived/keepalived.conf"])?;
    ensure!(mode == "600 root", "keepalived.conf is {mode}");
    let journal = cluster.output(slot, &["journalctl", "-u", "keepalived", "--no-pager", "-o", "cat"])?;
    ensure!(!journal.contains("WARNING") && !journal.contains("SECURITY VIOLATION"), "{journal}");
    cluster.output_as(slot, "keepalived_script", &["/usr/bin/firstboot", "vip-check"])?;
    let nonlocal = cluster.output(slot, &["cat", "/proc/sys/net/ipv4/ip_nonlocal_bind"])?;
    ensure!(nonlocal == "1", "ip_nonlocal_bind is {nonlocal}");
    Ok(())
}

/// Waits until a node other than `before` is the owner.
fn moved(cluster: &TestCluster, before: &str) -> anyhow::Result<String> {
    cluster.wait_for("another owner", SETTLED, || {
        let owners = owners(cluster)?;
        ensure!(owners.len() == 1 && owners[0] != before, "owners: {owners:?}");
        Ok(owners.concat())
    })
}

fn haproxy_dies(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = owner(cluster)?;
    let start = Instant::now();
    let (seen, after) = Seen::during(cluster, || {
        // Masked, or it would be back before the second check.
        cluster.output(&before, &["systemctl", "mask", "--runtime", "haproxy"])?;
        cluster.output(&before, &["systemctl", "kill", "--signal=KILL", "haproxy"])?;
        moved(cluster, &before)
    })?;
    let (none, several) = seen.tell(&format!("{before} to {after} in {:.2}s", start.elapsed().as_secs_f64()));
    ensure!(none <= MASTER_DOWN + LOOKING, "no owner for {none:?}");
    ensure!(several <= LOOKING, "several owners for {several:?}");
    ensure!(start.elapsed() <= CHECKS + MASTER_DOWN + Duration::from_secs(2), "after {:?}", start.elapsed());
    check_one_answer(cluster)?;
    cluster.output(&before, &["systemctl", "unmask", "--runtime", "haproxy"])?;
    let (seen, ()) = Seen::during(cluster, || {
        cluster.output(&before, &["systemctl", "start", "haproxy"])?;
        cluster.wait_healthy(BACK)?;
        // Three good checks and an election later, had it wanted the address back.
        std::thread::sleep(Duration::from_secs(8));
        Ok(())
    })?;
    let stayed = seen.0.iter().all(|(_, owners)| *owners == [after.clone()]);
    ensure!(stayed, "the address did not stay with {after} when {before} was healthy again");
    Ok(())
}

fn keepalived_dies(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = owner(cluster)?;
    let (seen, ()) = Seen::during(cluster, || {
        cluster.output(&before, &["sh", "-c", "kill -KILL $(cat /run/keepalived.pid)"])?;
        moved(cluster, &before)?;
        Ok(())
    })?;
    let (none, several) = seen.tell("Keepalived killed");
    ensure!(none <= MASTER_DOWN + LOOKING && several <= LOOKING, "none for {none:?}, several for {several:?}");
    check_one_answer(cluster)?;
    cluster
        .wait_for("Keepalived again", SETTLED, || cluster.output(&before, &["systemctl", "is-active", "keepalived"]))?;
    cluster.wait_healthy(BACK)
}

fn power_cut(cluster: &TestCluster) -> anyhow::Result<()> {
    let before = owner(cluster)?;
    let (seen, after) = Seen::during(cluster, || {
        cluster.lab.kill(&before)?;
        moved(cluster, &before)
    })?;
    let (none, several) = seen.tell("power cut");
    ensure!(none <= MASTER_DOWN + LOOKING && several <= LOOKING, "none for {none:?}, several for {several:?}");
    check_one_answer(cluster)?;
    cluster.wait_for("SQL through the virtual IP", BACK, || cluster.ask(VIP, 5000, "SELECT 'back'"))?;
    cluster.lab.start(&before)?;
    cluster.wait_healthy(BACK)?;
    // The returned node finds the address answered, by a peer: no reason not to take part.
    cluster
        .wait_for("Keepalived again", SETTLED, || cluster.output(&before, &["systemctl", "is-active", "keepalived"]))?;
    ensure!(owner(cluster)? == after, "the address moved back");
    Ok(())
}

/// What the primary sends reaches the owner no more; VRRP and HAProxy itself are as well as before.
fn primary_unheard(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let before = owner(cluster)?;
    if before == leader {
        cluster.output(&before, &["systemctl", "restart", "keepalived"])?;
        moved(cluster, &before)?;
    }
    let before = owner(cluster)?;
    cluster.lab.partition(&leader, &before, true)?;
    let start = Instant::now();
    let (seen, after) = Seen::during(cluster, || moved(cluster, &before))?;
    let took = start.elapsed();
    let (_, several) =
        seen.tell(&format!("{before} no longer hears {leader}: to {after} in {:.2}s", took.as_secs_f64()));
    ensure!(several <= LOOKING, "several owners for {several:?}");
    cluster.wait_for("SQL through the virtual IP", SETTLED, || cluster.ask(VIP, 5000, "SELECT 'reached'"))?;
    let problem = cluster.status(&before)?.vip.and_then(|vip| vip.problem).context("no word of it in the status")?;
    ensure!(problem.what.contains("HAProxy here reaches no primary"), "{problem}");
    cluster.lab.heal(None)?;
    cluster.wait_for("a candidate again", SETTLED, || {
        let vip = cluster.status(&before)?.vip.context("no virtual IP")?;
        ensure!(vip.problem.is_none() && vip.leads == Some(true), "{vip:?}");
        Ok(())
    })?;
    cluster.wait_healthy(BACK)?;
    ensure!(owner(cluster)? == after, "the address did not stay");
    Ok(())
}

fn partition(cluster: &TestCluster) -> anyhow::Result<()> {
    let alone = owner(cluster)?;
    for other in cluster.others(&alone) {
        cluster.lab.partition(&alone, &other, false)?;
    }
    // The sides do not hear each other: there is an owner on each until the one without a primary sees that it has none.
    cluster.wait_for("an owner on the side of the many", SETTLED, || {
        let owners = owners(cluster)?;
        ensure!(owners.iter().any(|owner| *owner != alone), "owners: {owners:?}");
        Ok(())
    })?;
    cluster.wait_for("no owner that is cut off", SETTLED * 2, || {
        let owners = owners(cluster)?;
        ensure!(owners.len() == 1 && owners[0] != alone, "owners: {owners:?}");
        Ok(())
    })?;
    let (seen, ()) = Seen::during(cluster, || {
        cluster.lab.heal(None)?;
        owner(cluster)?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    let (none, several) = seen.tell("healed");
    ensure!(several <= Duration::from_secs(1) + LOOKING, "several owners for {several:?} after healing");
    ensure!(none <= LOOKING, "no owner for {none:?} after healing");
    check_one_answer(cluster)?;
    cluster.wait_healthy(BACK)
}

fn in_use(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        cluster.output(slot, &["systemctl", "stop", "keepalived"])?;
    }
    // By now the agents have noticed and looked for what was left behind.
    std::thread::sleep(Duration::from_secs(6));
    let (claimant, user) = (&cluster.slots[0], &cluster.slots[1]);
    cluster.output(user, &["ip", "address", "add", &format!("{VIP}/32"), "dev", "host0"])?;
    cluster.output(claimant, &["systemctl", "restart", "firstboot"])?;
    cluster.wait_for("a refusal that names the user", SETTLED, || {
        let status = cluster.status(claimant)?;
        let problem = status.vip.and_then(|vip| vip.problem).context("no problem with the virtual IP")?;
        ensure!(problem.what.contains(&format!("of `{user}`")) && !problem.remedy.is_empty(), "{problem}");
        ensure!(status.verdict == Verdict::Undecided, "{:?}", status.verdict);
        ensure!(status.waiting_for.as_ref().is_some_and(|why| why.contains(VIP)), "{:?}", status.waiting_for);
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(5));
    ensure!(owners(cluster)? == [user.clone()], "{:?} have the address", owners(cluster)?);
    // On the user's own machine it is refused, too.
    cluster.output(user, &["systemctl", "restart", "firstboot"])?;
    cluster.wait_for("a refusal by its user", SETTLED, || {
        let problem = cluster.status(user)?.vip.and_then(|vip| vip.problem).context("no problem")?;
        ensure!(problem.what.contains("not by Keepalived"), "{problem}");
        Ok(())
    })?;
    cluster.output(user, &["ip", "address", "del", &format!("{VIP}/32"), "dev", "host0"])?;
    for slot in &cluster.slots {
        let start = || cluster.output(slot, &["systemctl", "start", "keepalived"]);
        // Those whose agent watched it being stopped leave it so; the others start it by themselves.
        start().map(drop)?;
    }
    owner(cluster)?;
    cluster.wait_healthy(BACK)?;
    check_one_answer(cluster)
}
