//! Seeds without secrets: three voters wait, the operator brings the founding bundle once, and they are a cluster.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use firstboot::status::{Phase, Verdict};
use pgkiln::cluster::{self, SeedFormat};
use pgkiln_tests::binary;
use pgkiln_tests::cluster::TestCluster;

type Result<T = ()> = anyhow::Result<T>;

const BACK: Duration = Duration::from_secs(90);

/// `pgkiln cluster form`, through the ports that the lab publishes.
fn form(cluster: &TestCluster, dir: &std::path::Path, wait: u64) -> Result<(bool, String)> {
    let mut at = Vec::new();
    for slot in &cluster.slots {
        at.push(format!("{slot}={}", SocketAddr::from((Ipv4Addr::LOCALHOST, cluster.port(slot, 8443)?))));
    }
    let wait = wait.to_string();
    let args = ["--json", "cluster", "form"].map(str::to_owned).into_iter().chain([dir.display().to_string()]);
    let args = args.chain(["--wait".to_owned(), wait, "--at".to_owned(), at.join(",")]);
    let done = binary::pgkiln().args(args).captured()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    Ok((done.status.success(), said))
}

fn waits(cluster: &TestCluster, slot: &str) -> Result {
    cluster.wait_for(&format!("{slot} to wait for the bundle"), BACK, || {
        let status = cluster.status(slot)?;
        let why = status.waiting_for.clone().unwrap_or_default();
        let waits = why.contains("`pgkiln cluster form orders`") && status.verdict == Verdict::Undecided;
        ensure!(waits && status.phase == Phase::Waiting, "{status:?}");
        Ok(())
    })
}

fn nothing_runs(cluster: &TestCluster) -> Result {
    for slot in &cluster.slots {
        for left in ["lib/pgkiln/secrets.json", "lib/pgkiln/birth", "lib/etcd/default/member"] {
            ensure!(!cluster.var(slot).join(left).exists(), "{slot} has {left}");
        }
    }
    Ok(())
}

#[test]
fn three_voters_wait_for_their_secrets_and_found_one_cluster() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    story().unwrap_or_else(|error| panic!("{error:#}"));
}

fn story() -> Result {
    let cluster = TestCluster::builder().named("form").without_secrets().up()?;
    for slot in &cluster.slots {
        waits(&cluster, slot)?;
        let seed = fs_err::read_to_string(cluster.var(slot).join("lib/cloud/seed/nocloud/user-data"))?;
        ensure!(!seed.contains("founding") && !seed.contains("PRIVATE"), "{slot}'s seed has secrets");
    }

    // Another cluster of the same name, slots and tokens: its root is another.
    let other = cluster.dir().join("other");
    let twin = cluster::create(&other, pgkiln_tests::cluster::definition(3)?)?;
    fs_err::copy(cluster.cluster.dir().join("tokens.toml"), twin.dir().join("tokens.toml"))?;
    let (done, said) = form(&cluster, &other, 1)?;
    ensure!(!done && said.contains("does not wait for the bundle"), "{said}");
    nothing_runs(&cluster)?;

    // A node that was booted with a token of somebody's invention: the others get theirs, and nothing is founded.
    let wrong = &cluster.slots[2];
    cluster.lab.kill(wrong)?;
    let user_data = cluster.var(wrong).join("lib/cloud/seed/nocloud/user-data");
    let right = fs_err::read_to_string(&user_data)?;
    fs_err::write(&user_data, right.replace(&format!("token: {wrong}."), &format!("token: {wrong}.x")))?;
    cluster.lab.start(wrong)?;
    waits(&cluster, wrong)?;
    let (done, said) = form(&cluster, cluster.cluster.dir(), 30)?;
    ensure!(!done && said.contains("does not know this slot's token: nothing was sent"), "{said}");
    ensure!(!cluster.var(wrong).join("lib/pgkiln/secrets.json").exists(), "{wrong} was sent something");
    cluster.lab.kill(wrong)?;
    fs_err::write(&user_data, right)?;
    cluster.lab.start(wrong)?;
    waits(&cluster, wrong)?;

    let started = std::time::Instant::now();
    let (done, said) = form(&cluster, cluster.cluster.dir(), 30)?;
    ensure!(done, "{said}");
    let outcomes: BTreeMap<String, usize> = ["brought", "present"]
        .map(|outcome| (outcome.to_owned(), said.matches(&format!("\"outcome\":\"{outcome}\"")).count()))
        .into();
    ensure!(outcomes["brought"] == 1 && outcomes["present"] == 2, "{said}");
    cluster.wait_healthy(BACK)?;
    eprintln!("healthy {:.1}s after the bundle was brought", started.elapsed().as_secs_f64());

    // Again: nothing is sent to a cluster that is born; the token that was used is gone from writable seeds at the next boot.
    let (done, said) = form(&cluster, cluster.cluster.dir(), 30)?;
    ensure!(done && said.matches("\"outcome\":\"born\"").count() == 3, "{said}");
    for slot in &cluster.slots {
        let journal = cluster.output(slot, &["journalctl", "-b", "-o", "cat", "--no-pager"])?;
        let secrets = fs_err::read_to_string(cluster.var(slot).join("lib/pgkiln/secrets.json"))?;
        let secrets: serde_json::Value = serde_json::from_str(&secrets)?;
        let password = secrets["passwords"]["superuser"].as_str().context("a password")?;
        ensure!(!journal.contains(password), "{slot} logged a password");
    }

    // A voter's disk is lost: its old token is good for no other machine, a new one is, and the cluster takes it back.
    let lost = cluster.slots.iter().find(|slot| cluster.leader().is_ok_and(|leader| leader != **slot));
    let lost = lost.context("a replica")?;
    cluster.lab.kill(lost)?;
    fs_err::remove_dir_all(cluster.var(lost))?;
    let seed = cluster.var(lost).join("lib/cloud/seed/nocloud");
    fs_err::create_dir_all(seed.parent().context("a parent")?)?;
    cluster.cluster.write_seed(lost, SeedFormat::Directory, &seed, false)?;
    cluster.lab.start(lost)?;
    waits(&cluster, lost)?;
    let (done, said) = form(&cluster, cluster.cluster.dir(), 30)?;
    ensure!(!done && said.contains("already used by another machine"), "{said}");
    cluster.lab.kill(lost)?;
    cluster.cluster.issue_token(lost)?;
    fs_err::remove_dir_all(&seed)?;
    cluster.cluster.write_seed(lost, SeedFormat::Directory, &seed, false)?;
    cluster.lab.start(lost)?;
    waits(&cluster, lost)?;
    let (done, said) = form(&cluster, cluster.cluster.dir(), 30)?;
    ensure!(done && said.contains("\"outcome\":\"brought\""), "{said}");
    cluster.wait_healthy(BACK)
}
