//! Golden files of everything rendered for one node, and what must hold for all.

use serde_json::json;

use super::*;
use crate::facts::Link;
use crate::fixtures::{desired, facts};

#[test]
fn etcd_environment() {
    let desired = desired();
    insta::assert_snapshot!(etcd::environment(&desired.input().unwrap(), etcd::InitialState::Existing));
}

#[test]
fn patroni_config() {
    insta::assert_snapshot!(patroni::config(&desired(), &facts()).unwrap());
}

/// What the oldest supported components are told, where that differs from what the newest ones are.
#[test]
fn differences_for_the_oldest_components() {
    use crate::fixtures::{desired_as, of_oldest_image};
    type Render = fn(&crate::plan::Desired) -> String;
    let renders: [(&str, &str, Render); 4] = [
        ("etcd.env", "pg-1", |node| etcd::environment(&node.input().unwrap(), etcd::InitialState::New)),
        ("patroni.yml", "pg-1", |node| patroni::config(node, &facts()).unwrap()),
        ("pgbackrest.conf", "pg-1", |node| of_pgbackrest(node, "/run/pgkiln/pgbackrest/pgbackrest.conf")),
        ("pgbackrest.conf", "bkp-1", |node| of_pgbackrest(node, "/run/pgkiln/pgbackrest/pgbackrest.conf")),
    ];
    let mut text = String::new();
    for (name, slot, render) in renders {
        let (newest, oldest) = (render(&desired_as(slot)), render(&of_oldest_image(desired_as(slot))));
        text.push_str(&format!("## {name} of {slot}\n"));
        let (new, old): (Vec<_>, Vec<_>) = (newest.lines().collect(), oldest.lines().collect());
        text.extend(new.iter().filter(|line| !old.contains(line)).map(|line| format!("- {line}\n")));
        text.extend(old.iter().filter(|line| !new.contains(line)).map(|line| format!("+ {line}\n")));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn zero_loss_is_a_quorum_where_patroni_knows_one() {
    for (version, mode) in [("3.0.2-1", json!(true)), ("3.3.2-1", json!(true)), ("4.0.0-1", json!("quorum"))] {
        let mut desired = desired();
        desired.image.components.get_mut("patroni").unwrap().version = version.to_owned();
        let dynamic = patroni::dynamic(&desired, &facts()).unwrap();
        assert_eq!((&dynamic["synchronous_mode"], &dynamic["synchronous_node_count"]), (&mode, &json!(1)), "{version}");
        assert_eq!(dynamic["member_slots_ttl"].is_null(), mode == json!(true), "{version}");
        assert_eq!(dynamic["primary_start_timeout"], 20, "{version}");
    }
}

#[test]
fn haproxy_config() {
    let spec = desired().accepted.spec;
    insta::assert_snapshot!(haproxy::config(&spec, &crate::proxy::servers::unregistered(&spec.seeds)));
}

#[test]
fn reconcile_script() {
    let desired = desired();
    insta::assert_snapshot!(sql::reconcile(desired.spec(), &desired.secrets));
}

#[test]
fn a_users_parameter_wins_here_and_in_the_cluster() {
    let mut desired = desired();
    let parameters = &mut desired.accepted.spec.postgres.parameters;
    parameters.insert("shared_buffers".into(), "64MB".into());
    parameters.insert("max_connections".into(), "321".into());
    parameters.insert("shared_preload_libraries".into(), "auto_explain".into());
    let text = patroni::config(&desired, &facts()).unwrap();
    let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let here = &config["postgresql"]["parameters"];
    let cluster = &config["bootstrap"]["dcs"]["postgresql"]["parameters"];
    let chosen = ["max_connections", "shared_buffers", "shared_preload_libraries", "ssl", "wal_level", "work_mem"];
    let lines = chosen.map(|name| format!("{name}: {} / {}\n", here[name], cluster[name])).concat();
    // Patroni ignores `max_connections` and `wal_level` in a node's own file: they stand in the cluster's settings only.
    insta::assert_snapshot!(lines, @r#"
    max_connections: null / "321"
    shared_buffers: "64MB" / "64MB"
    shared_preload_libraries: "auto_explain,pg_stat_statements" / "auto_explain"
    ssl: "on" / null
    wal_level: null / "logical"
    work_mem: "32MB" / "32MB"
    "#);
}

#[test]
fn what_extensions_need_at_start_comes_along() {
    let mut desired = desired();
    let extensions = ["pgaudit", "pg_stat_monitor", "pg_repack", "wal2json"].map(str::to_owned);
    desired.accepted.spec.postgres.extensions = extensions.into();
    let config: serde_json::Value = serde_saphyr::from_str(&patroni::config(&desired, &facts()).unwrap()).unwrap();
    let parameters = &config["postgresql"]["parameters"];
    let loaded = parameters["shared_preload_libraries"].as_str().unwrap();
    assert!(loaded.ends_with("pgaudit,pg_stat_monitor"), "{loaded}");
    assert_eq!(parameters["output_plugin_libraries"], "pgoutput,test_decoding,wal2json");
    let script = sql::reconcile(desired.spec(), &desired.secrets);
    assert!(script.contains("CREATE EXTENSION IF NOT EXISTS \"pg_repack\""), "{script}");
    assert!(!script.contains("wal2json"), "nothing to create for an output plugin: {script}");
}

#[test]
fn a_changed_specification_patches_what_it_changed() {
    let before = desired();
    let mut after = desired();
    let postgres = &mut after.accepted.spec.postgres;
    assert_eq!(patroni::patch(before.spec(), &before, &facts()).unwrap(), None);
    postgres.parameters.remove("work_mem");
    postgres.parameters.insert("max_connections".into(), "321".into());
    postgres.durability = crate::spec::Durability::Available;
    let patch = patroni::patch(before.spec(), &after, &facts()).unwrap().unwrap();
    let parameters = json!({"max_connections": "321", "work_mem": null});
    assert_eq!(
        patch,
        json!({
            "synchronous_mode": null,
            "synchronous_node_count": null,
            "maximum_lag_on_syncnode": null,
            "postgresql": {"parameters": parameters},
        })
    );
}

#[test]
fn no_entry_lets_anybody_in_without_tls_and_password() {
    let lines = access::pg_hba(desired().spec());
    for line in &lines {
        let network = !line.starts_with("local ");
        let safe = line.starts_with("hostssl ") && line.ends_with(" scram-sha-256") || line.ends_with(" reject");
        assert!(!network || safe, "{line}");
    }
    assert!(lines.contains(&"hostssl all all 10.0.0.0/16 scram-sha-256".to_owned()));
}

fn links() -> Vec<Link> {
    let link = |name: &str, mac: &str| Link { name: name.into(), mac: mac.into() };
    vec![link("eth0", "02:00:00:00:00:01"), link("eth1", "02:00:00:00:00:02")]
}

#[test]
fn network_config_version_2() {
    let text = "version: 2\nethernets:\n  lan:\n    match: {macaddress: '02:00:00:00:00:02'}\n    \
                addresses: [10.0.0.11/24]\n    gateway4: 10.0.0.1\n    nameservers: {addresses: [10.0.0.2], search: [example.org]}\n    \
                routes: [{to: 10.1.0.0/16, via: 10.0.0.3}]\n  eth0: {dhcp4: yes}\n";
    let files = network::files(desired().spec(), Some(text), &links(), "network-config").unwrap();
    let all: String = files.iter().map(|(name, text)| format!("## {name}\n{text}")).collect();
    insta::assert_snapshot!(all);
}

#[test]
fn network_config_problems_name_the_line() {
    let text = "network:\n  version: 2\n  ethernets:\n    eth7: {dhcp4: true}\n    eth0: {addresses: [10.0.0.11/33], mtuu: 9}\n";
    let problems = network::files(desired().spec(), Some(text), &links(), "network-config").unwrap_err();
    let places: Vec<_> = problems.iter().map(|p| p.place.as_str()).collect();
    assert_eq!(places, ["network-config:4", "network-config:5", "network-config:5"], "{problems:#?}");
    let version = network::files(desired().spec(), Some("version: 1\nconfig: []\n"), &links(), "network-config");
    assert!(version.unwrap_err()[0].remedy.contains("version 2"));
}

fn of_pgbackrest(desired: &crate::plan::Desired, path: &str) -> String {
    let files = pgbackrest::files(desired, &crate::backup::members(desired.spec()), 4096).unwrap();
    files.iter().find(|file| file.path == path).map(|file| file.text.clone()).unwrap_or_default()
}

#[test]
fn pgbackrest_on_a_database_node() {
    let desired = crate::fixtures::desired_as("pg-1");
    insta::assert_snapshot!(of_pgbackrest(&desired, "/run/pgkiln/pgbackrest/pgbackrest.conf"));
}

#[test]
fn pgbackrest_on_the_repository_host() {
    let mut desired = crate::fixtures::desired_as("bkp-1");
    let files = ["pgbackrest/pgbackrest.conf", "pgbackrest/environment"].map(|name| format!("/run/pgkiln/{name}"));
    let units = ["full.service", "full.timer", "diff.service", "diff.timer"];
    let units = units.map(|name| format!("/run/systemd/system/pgkiln-backup-{name}"));
    let text = |desired: &_| -> String {
        files.iter().chain(&units).map(|path| format!("## {path}\n{}\n", of_pgbackrest(desired, path))).collect()
    };
    insta::assert_snapshot!(text(&desired));
    // Options that older releases refuse.
    desired.image.components.get_mut("pgbackrest").unwrap().version = "2.38-1".to_owned();
    let old = text(&desired);
    assert!(!["repo1-bundle", "repo1-block", "backup-standby"].iter().any(|option| old.contains(option)), "{old}");
}

#[test]
fn patroni_archives_where_there_are_backups() {
    let text = patroni::config(&crate::fixtures::desired_as("pg-1"), &facts()).unwrap();
    let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let (here, recovery) = (&config["postgresql"]["parameters"], &config["postgresql"]["recovery_conf"]);
    assert_eq!(here["archive_command"], "/usr/lib/pgkiln/pgbackrest-archive-push %p");
    assert_eq!(here["archive_mode"], "on");
    assert_eq!(recovery["restore_command"], "/usr/lib/pgkiln/pgbackrest-archive-get %f %p");
}

#[test]
fn hosts_follow_the_registry() {
    let peer = |role, address: &str| pgbackrest::Peer { role, address: address.parse().unwrap() };
    let role = crate::spec::Role::Backup;
    let peers = [("pg-1".into(), peer(role, "10.0.0.11")), ("bkp-1".into(), peer(role, "10.0.0.99"))].into();
    let before = "127.0.0.1 localhost\n127.0.1.1 pg-1\n10.0.0.11 pg-1\n10.0.0.31 bkp-1\n10.0.0.50 monitor\n";
    let after = pgbackrest::hosts(before, &peers);
    assert_eq!(after, "127.0.0.1 localhost\n127.0.1.1 pg-1\n10.0.0.50 monitor\n10.0.0.99 bkp-1\n10.0.0.11 pg-1\n");
    assert_eq!(pgbackrest::hosts(&after, &peers), after);
}

#[test]
fn segments_are_thrown_away_only_by_a_leader_that_knows_of_no_repository() {
    use pgbackrest::Gate;
    assert_eq!(Gate::default().text(), "STANZA=unknown\nLEADS=no\nREPOSITORY=\nQUEUE_FULL=no\n");
    let gate = Gate { stanza: Some(true), leads: true, repository: Some("fd00::31".parse().unwrap()), full: false };
    assert_eq!(gate.text(), "STANZA=yes\nLEADS=yes\nREPOSITORY=fd00::31\nQUEUE_FULL=no\n");
}
