//! What a formed cluster must be.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use firstboot::status::{Phase, StepState, Verdict};
use pgkiln_tests::cluster::TestCluster;

pub(crate) fn three_voters(cluster: &TestCluster) -> anyhow::Result<()> {
    let first = &cluster.slots[0];
    let (members, id, system) =
        (cluster.check_voters(first)?, cluster.etcd_cluster_id(first)?, cluster.system_identifier(first)?);
    for slot in &cluster.slots {
        ensure!(cluster.check_voters(slot)? == members, "{slot} knows other members");
        ensure!(cluster.etcd_cluster_id(slot)? == id, "{slot} is in another etcd cluster");
        ensure!(cluster.system_identifier(slot)? == system, "{slot} has another system identifier");
    }
    cluster.check_healthy(&cluster.slots)
}

/// Patroni before 4.0 knows no quorum: one standby, which it chooses, has every acknowledged row, and `/sync` names it.
pub(crate) fn durability(cluster: &TestCluster) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    let quorum = cluster.image_info(&leader)?.version_of("patroni")? >= (4, 0, 0);
    let expected = if quorum { "quorum quorum" } else { "async sync" };
    // Patroni adds a standby to the quorum one after the other, in its own rhythm.
    cluster.wait_for("standbys that confirm commits", Duration::from_secs(40), || {
        let states = "SELECT string_agg(sync_state, ' ' ORDER BY sync_state) FROM pg_stat_replication";
        let states = cluster.psql(&leader, states)?;
        ensure!(states == expected, "sync states: {states}");
        Ok(())
    })?;
    let names = cluster.psql(&leader, "SHOW synchronous_standby_names")?;
    let successors = cluster.successors(&leader)?;
    if quorum {
        ensure!(names.starts_with("ANY 1 ("), "synchronous_standby_names: {names}");
    } else {
        let sync = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'sync'";
        let sync = cluster.psql(&leader, sync)?;
        ensure!(names.trim_matches('"') == sync, "synchronous_standby_names: {names}, synchronous: {sync}");
        ensure!(successors == [sync], "who may take over: {successors:?}, synchronous_standby_names: {names}");
    }
    let commit = cluster.psql(&leader, "SHOW synchronous_commit")?;
    ensure!(commit == "on", "synchronous_commit: {commit}");
    Ok(())
}

pub(crate) fn specification(cluster: &TestCluster) -> anyhow::Result<()> {
    // Collations of the server's own where it has them, else the C library's, which never change for this locale.
    let (column, locale) = match cluster.image_info(&cluster.slots[0])?.postgresql_major()? {
        17.. => ("datlocale", "b C.UTF-8"),
        _ => ("datcollate", "c C.UTF-8"),
    };
    let collation = format!("SELECT datlocprovider::text || ' ' || {column} FROM pg_database WHERE datname = 'orders'");
    for slot in &cluster.slots {
        for (sql, expected) in [
            ("SHOW work_mem", "32MB"),
            ("SHOW data_checksums", "on"),
            ("SHOW password_encryption", "scram-sha-256"),
            ("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'orders'", "orders_app"),
            (&collation, locale),
            ("SELECT rolcanlogin, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = 'orders_app'", "t|f|f"),
            ("SELECT left(rolpassword, 13) FROM pg_authid WHERE rolname = 'orders_app'", "SCRAM-SHA-256"),
            ("SELECT count(*) FROM pg_hba_file_rules WHERE address = '10.92.0.0' AND type = 'hostssl'", "1"),
            ("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL", "0"),
            ("SELECT count(*) FROM pg_hba_file_rules WHERE auth_method IN ('trust', 'md5', 'password')", "0"),
        ] {
            let got = cluster.psql(slot, sql)?;
            ensure!(got == expected, "{slot}: {sql}: {got:?} instead of {expected:?}");
        }
    }
    let leader = cluster.leader()?;
    let created = "SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension WHERE extname <> 'plpgsql'";
    let found = cluster.psql_in(&leader, "orders", created)?;
    ensure!(found == "pg_repack pg_stat_statements pgaudit", "extensions in `orders`: {found}");
    let audited = "SET pgaudit.log = 'ddl'; CREATE TEMPORARY TABLE audited (n int)";
    cluster.psql_in(&leader, "orders", audited).context("pgaudit is not loaded")?;
    let decoded = "SELECT slot_name FROM pg_create_logical_replication_slot('decoded', 'wal2json', temporary => true)";
    let found = cluster.psql_in(&leader, "orders", decoded)?;
    ensure!(found == "decoded", "no slot for wal2json: {found}");
    Ok(())
}

pub(crate) fn routing(cluster: &TestCluster) -> anyhow::Result<()> {
    let where_am_i = "SELECT host(inet_server_addr()) || ' ' || pg_is_in_recovery()";
    let leader = cluster.leader()?;
    let address = cluster.cluster.definition.node(&leader).map(|node| node.address.to_string()).unwrap_or_default();
    let mut read_from = std::collections::BTreeSet::new();
    for slot in &cluster.slots {
        let got = cluster.ask(slot, 5000, where_am_i)?;
        ensure!(got == format!("{address} false"), "{slot}:5000 leads to {got}, the leader is {address}");
        for _ in 0..4 {
            let got = cluster.ask(slot, 5001, where_am_i)?;
            ensure!(got.ends_with(" true") && !got.starts_with(&address), "{slot}:5001 leads to {got}");
            read_from.insert(got);
        }
    }
    ensure!(read_from.len() == 2, "5001 does not use both replicas: {read_from:?}");
    Ok(())
}

pub(crate) fn status(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        let text = cluster.output(slot, &["firstboot", "status", "--json"])?;
        let object: serde_json::Value = serde_json::from_str(&text)?;
        for field in ["waiting_for", "since", "error", "ignored_keys"] {
            ensure!(object.get(field).is_some(), "{slot}: no `{field}` in {text}");
        }
        let status = cluster.status(slot)?;
        ensure!((status.schema, status.phase, status.verdict) == (1, Phase::Running, Verdict::Good), "{slot}: {text}");
        ensure!(status.waiting_for.is_none() && status.error.is_none(), "{slot}: {text}");
        ensure!(status.cluster.as_deref() == Some("orders") && status.slot.as_ref() == Some(slot), "{slot}: {text}");
        ensure!(status.role.as_deref() == Some("node"), "{slot}: {text}");
        let done = status.steps.iter().all(|s| matches!(s.state, StepState::Done | StepState::Unchanged));
        ensure!(done && !status.steps.is_empty(), "{slot}: {text}");
    }
    Ok(())
}

pub(crate) fn commands(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        for user in ["root", "postgres"] {
            let patroni = cluster.output_as(slot, user, &["patronictl", "list"])?;
            ensure!(cluster.slots.iter().all(|name| patroni.contains(name)), "{patroni}");
            let etcd = cluster.output_as(slot, user, &["etcdctl", "member", "list"])?;
            ensure!(etcd.lines().count() == cluster.slots.len(), "{etcd}");
            ensure!(cluster.output_as(slot, user, &["psql", "-XAtc", "SELECT current_user"])? == "postgres");
            cluster.output_as(slot, user, &["pgbackrest", "info"])?;
        }
    }
    Ok(())
}

pub(crate) fn machine(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        let failed = cluster.output(slot, &["systemctl", "--failed", "--no-legend", "--plain"])?;
        ensure!(failed.is_empty(), "{slot}: {failed}");
        let state = cluster.output(slot, &["systemctl", "is-system-running"])?;
        ensure!(state == "running", "{slot}: {state}");
        let mounts = cluster.output(slot, &["cat", "/proc/mounts"])?;
        let root = mounts.lines().rfind(|line| line.split(' ').nth(1) == Some("/")).unwrap_or_default();
        let read_only = root.split(' ').nth(3).is_some_and(|options| options.split(',').any(|o| o == "ro"));
        ensure!(read_only, "{slot}: root is {root:?}");
        ensure!(!cluster.run(slot, &["touch", "/usr/bin/new"])?.status.success(), "{slot}: /usr can be written to");
        let journal = cluster.output(slot, &["sh", "-c", "ls /var/log/journal/*/*.journal"])?;
        ensure!(!journal.is_empty(), "{slot}: the journal does not persist");
    }
    Ok(())
}

pub(crate) fn registry(cluster: &TestCluster) -> anyhow::Result<()> {
    let uuid = cluster.cluster.definition.uuid;
    let slot = &cluster.slots[0];
    let keys = cluster.output(slot, &["etcdctl", "get", "--prefix", "--keys-only", &format!("/pgkiln/{uuid}/")])?;
    let keys: std::collections::BTreeSet<&str> = keys.lines().filter(|line| !line.is_empty()).collect();
    for name in &cluster.slots {
        for kind in ["slots", "nodes"] {
            let key = format!("/pgkiln/{uuid}/{kind}/{name}");
            ensure!(keys.contains(key.as_str()), "{key} is not in {keys:?}");
        }
    }
    let born = cluster.output(slot, &["etcdctl", "get", "--print-value-only", &format!("/pgkiln/{uuid}/cluster")])?;
    let born: serde_json::Value = serde_json::from_str(&born)?;
    let system = cluster.system_identifier(slot)?;
    let recorded = born["pg_system_id"].as_str().map_or_else(|| born["pg_system_id"].to_string(), str::to_owned);
    ensure!(recorded == system, "the registry says system identifier {recorded}, PostgreSQL {system}");
    Ok(())
}
