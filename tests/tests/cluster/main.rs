//! One real cluster of three nodes, from its birth to the loss of etcd: what it must be, what it must refuse, and what it
//! must survive. Run by `cargo selftest`; alone: `PGKILN_TEST_IMAGE=… cargo test -p pgkiln-tests --test cluster`.

use std::time::Duration;

use pgkiln_tests::cluster::{Story, TestCluster};

mod changes;
mod closed;
mod formed;
mod losses;
mod outages;
mod proxies;

/// A cluster with one of everything a specification can ask for.
fn full_cluster() -> anyhow::Result<TestCluster> {
    let cluster = TestCluster::builder().named("suite").define(|definition| {
        definition.client_networks = vec!["10.92.0.0/16".parse().expect("a network")];
        definition.postgres.parameters.insert("work_mem".to_owned(), "32MB".to_owned());
        let extensions = ["pg_stat_statements", "pgaudit", "pg_repack", "wal2json"];
        definition.postgres.extensions.extend(extensions.map(str::to_owned));
    });
    let cluster = cluster.up()?;
    cluster.wait_healthy(Duration::from_secs(90))?;
    eprintln!("healthy {:.1}s after the first node's start", cluster.started.elapsed().as_secs_f64());
    Ok(cluster)
}

#[test]
fn three_nodes_from_birth_to_the_loss_of_etcd() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    let cluster = full_cluster().unwrap_or_else(|error| panic!("{error:#}"));
    let mut story = Story::about(&cluster);
    story.look(&[
        ("three started voters, one etcd cluster, one system identifier", formed::three_voters),
        ("zero-loss: standbys confirm every commit, as a quorum where Patroni can", formed::durability),
        ("parameters, roles, databases and extensions of the specification", formed::specification),
        ("5000 leads to the leader, 5001 to replicas, on every node", formed::routing),
        ("`firstboot status --json` on every node", formed::status),
        ("two in the morning: commands without flags, as root and postgres", formed::commands),
        ("no failed unit, read-only root, persistent journal", formed::machine),
        ("the registry in etcd", formed::registry),
        ("plain text is refused everywhere", closed::plain_text),
        ("a client certificate is required where it must be", closed::client_certificates),
        ("etcd answers no one without name and password, and no one more than they may", closed::etcd_users),
        ("PostgreSQL wants TLS, a right password and a known network", closed::postgres),
        ("nothing listens beyond the contract", closed::listening),
        ("no secret is readable, logged or in an argument", closed::secrets),
    ]);
    story.act(&[
        ("stopping the leader's node is a handover", outages::handover),
        ("cutting the leader's power loses no acknowledged row", outages::power_loss),
        ("reboot of all nodes, one by one", outages::one_by_one),
        ("power loss of all nodes at once", outages::all_at_once),
        ("shutdown of all nodes at once", outages::all_stopped),
        ("HAProxy sends writers to the leader and readers to the replicas", proxies::routing),
        ("HAProxy: a node that registers and leaves 20 times leaves nothing behind", proxies::twenty_times),
        ("HAProxy: a server whose entry is gone stays while it serves", proxies::serving),
        ("HAProxy: a lease that ran out removes no server that serves", proxies::lease),
        ("HAProxy: a reload keeps what is known, a restart believes nobody", proxies::reload),
        ("HAProxy: without etcd's quorum nothing changes", proxies::quorum),
        ("HAProxy: sessions to a primary that is not heard any more end", proxies::blackhole),
        ("the leader's postmaster dies: writes go on, nothing is lost", proxies::postmaster),
        ("etcd's leader leaves the primary's machine", proxies::etcd_leader),
        ("a changed instance-id alone changes nothing", changes::instance_id),
        ("a missing seed: the stored specification, loudly", changes::seed_removed),
        ("another cluster, role or slot is refused", changes::refused),
        ("a node without etcd's data rejoins", losses::etcd_on_one),
        ("a node with an empty disk rejoins", losses::whole_var),
        ("a disk without etcd's data founds nothing, everywhere", losses::etcd_everywhere),
        ("PostgreSQL's data without anything else founds nothing", losses::only_postgres_left),
    ]);
    story.end();
}
