//! Patroni's local configuration.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{host, preset};
use crate::facts::Facts;
use crate::plan::Desired;
use crate::spec::{Durability, NodeSpec, Password, Secret, is_plugin, is_preloaded};

const PKI: &str = "/run/pgkiln/pki/patroni";
const PG_PKI: &str = "/run/pgkiln/pki/postgresql";

/// Commands of the image that PostgreSQL calls.
const PROGRAMS: &str = "/usr/lib/pgkiln";

/// The etcd user that Patroni logs in as; its role may write Patroni's own tree only.
const ETCD_USER: &str = "patroni";

/// `/run/pgkiln/patroni/patroni.yml`: holds passwords, 0600 postgres.
pub fn config(desired: &Desired, facts: &Facts) -> Result<String> {
    let spec = desired.spec();
    let secret = |name| desired.secrets.passwords.get(name).map(Secret::expose);
    let ip = host(desired.ip()?);
    let preset = preset::of(spec.postgres.rto);
    let major = desired.image.postgresql_major()?;
    let patroni = desired.image.version_of("patroni")?;
    let mut restapi = json!({
        "listen": "0.0.0.0:8008",
        "connect_address": format!("{ip}:8008"),
        "certfile": format!("{PKI}/patroni.pem"),
        "keyfile": format!("{PKI}/patroni.key"),
        "cafile": format!("{PKI}/ca.pem"),
        // Reads stay open for health checks; whatever changes something needs a client certificate.
        "verify_client": "optional",
        "authentication": {"username": "patroni", "password": secret(Password::PatroniRest)?},
        // Never an `allowlist` besides: where there is one, `POST /failsafe` is checked against it alone, and a primary
        // without etcd is refused by every member and demotes itself (`check_access` in Patroni's `api.py`).
        "allowlist_include_members": true,
    });
    if patroni >= (3, 0, 3) {
        restapi["request_queue_size"] = json!(64);
    }
    let watchdog = if facts.watchdog { "required" } else { "automatic" };
    let value = json!({
        "scope": spec.cluster.name,
        "namespace": "/service/",
        "name": spec.slot,
        "restapi": restapi,
        "ctl": {
            "insecure": false,
            "cacert": format!("{PKI}/ca.pem"),
            "certfile": format!("{PKI}/patroni.pem"),
            "keyfile": format!("{PKI}/patroni.key"),
        },
        "etcd3": {
            "hosts": spec.seeds.values().map(|ip| format!("{}:2379", host(*ip))).collect::<Vec<_>>(),
            "protocol": "https",
            "cacert": format!("{PKI}/ca.pem"),
            "cert": format!("{PKI}/patroni.pem"),
            "key": format!("{PKI}/patroni.key"),
            "username": ETCD_USER,
            "password": secret(Password::EtcdPatroni)?,
        },
        "watchdog": {"mode": watchdog, "device": "/dev/watchdog", "safety_margin": preset.safety_margin},
        "tags": {"nofailover": false, "noloadbalance": false, "clonefrom": true, "nosync": false},
        "bootstrap": {
            "dcs": dynamic(desired, facts)?,
            "initdb": initdb(major),
            "post_bootstrap": "/usr/bin/firstboot sql --bootstrap",
        },
        "postgresql": {
            "listen": "0.0.0.0:5432",
            "connect_address": format!("{ip}:5432"),
            "data_dir": format!("/var/lib/postgresql/{major}/main"),
            "bin_dir": desired.image.path("postgresql", "bin_dir")?,
            "pgpass": "/run/patroni/pgpass",
            "use_unix_socket": true,
            "use_unix_socket_repl": true,
            "authentication": {
                "superuser": {"username": "postgres", "password": secret(Password::Superuser)?},
                "replication": user("replicator", secret(Password::Replication)?),
                "rewind": user("rewind", secret(Password::Rewind)?),
            },
            "parameters": local_parameters(desired, facts),
            "create_replica_methods": ["basebackup"],
            "basebackup": [{"checkpoint": "fast"}],
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": true,
            "pg_hba": super::access::pg_hba(spec),
            "pg_ident": super::access::pg_ident(),
        },
    });
    let mut value = value;
    if spec.backup.is_some() {
        value["postgresql"]["recovery_conf"] =
            json!({"restore_command": format!("{PROGRAMS}/pgbackrest-archive-get %f %p")});
    }
    let text = serde_saphyr::to_string(&value).context("writing patroni.yml")?;
    Ok(format!("# Written by firstboot at every boot.\n{text}"))
}

/// Servers are verified by name and by our CA, wherever Patroni connects to.
fn user(name: &str, password: &str) -> Value {
    json!({
        "username": name,
        "password": password,
        "sslmode": "verify-full",
        "sslrootcert": format!("{PG_PKI}/ca.pem"),
    })
}

fn initdb(major: u32) -> Value {
    let mut options = vec![json!({"encoding": "UTF8"})];
    if major >= 17 {
        // Collations of the server's own: neither the C library nor ICU can change them under the data.
        options.extend([json!({"locale-provider": "builtin"}), json!({"builtin-locale": "C.UTF-8"})]);
    }
    options.extend([json!({"locale": "C.UTF-8"}), json!("data-checksums")]);
    options.extend([json!({"auth-host": "scram-sha-256"}), json!({"auth-local": "peer"})]);
    Value::Array(options)
}

/// Adds names to a parameter that is a list, each once.
fn lengthen<'n>(parameters: &mut BTreeMap<String, String>, name: &str, more: impl Iterator<Item = &'n String>) {
    let old = parameters.get(name).cloned().unwrap_or_default();
    let mut all: Vec<&str> = old.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    for one in more {
        if !all.contains(&one.as_str()) {
            all.push(one);
        }
    }
    if !all.is_empty() {
        parameters.insert(name.to_owned(), all.join(","));
    }
}

/// Settings of the whole cluster. Patroni takes them from here once, when the cluster is founded; afterwards they live
/// in etcd.
pub fn dynamic(desired: &Desired, facts: &Facts) -> Result<Value> {
    let spec = desired.spec();
    let preset = preset::of(spec.postgres.rto);
    if let Some(why) = preset.unsafe_because() {
        anyhow::bail!("preset {:?}: {why}", spec.postgres.rto);
    }
    let patroni = desired.image.version_of("patroni")?;
    let mut value = json!({
        "ttl": preset.ttl,
        "loop_wait": preset.loop_wait,
        "retry_timeout": preset.retry_timeout,
        "maximum_lag_on_failover": 16_777_216,
        "failsafe_mode": true,
        "check_timeline": true,
        "postgresql": {"use_pg_rewind": true, "use_slots": true, "parameters": cluster_parameters(desired, facts)},
    });
    // Renamed in 3.0.0; later releases take the old name for some time.
    let start_timeout = if patroni >= (3, 0, 0) { "primary_start_timeout" } else { "master_start_timeout" };
    value[start_timeout] = json!(preset.primary_start_timeout);
    if spec.postgres.durability == Durability::ZeroLoss {
        let mode = if patroni >= (4, 0, 0) { json!("quorum") } else { json!(true) };
        value["synchronous_mode"] = mode;
        value["synchronous_node_count"] = json!(1);
        value["maximum_lag_on_syncnode"] = json!(67_108_864);
    }
    if patroni >= (4, 0, 0) {
        value["member_slots_ttl"] = json!("30min");
    }
    Ok(value)
}

/// What must change in Patroni's settings when the specification changes from `before`: for `PATCH /config`, where
/// `null` removes. `None`: nothing. Settings that did not change in the specification are left to their operator.
pub fn patch(before: &NodeSpec, desired: &Desired, facts: &Facts) -> Result<Option<Value>> {
    let mut old = desired.clone();
    old.accepted.spec.postgres = before.postgres.clone();
    Ok(merge_patch(&dynamic(&old, facts)?, &dynamic(desired, facts)?))
}

fn merge_patch(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        _ if before == after => None,
        (Value::Object(old), Value::Object(new)) => {
            let removed = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
            let changed = new.iter().filter_map(|(key, value)| {
                Some((key.clone(), merge_patch(old.get(key).unwrap_or(&Value::Null), value)?))
            });
            Some(Value::Object(removed.chain(changed).collect()))
        }
        _ => Some(after.clone()),
    }
}

/// Parameters that only take effect cluster-wide (Patroni ignores them in the local file).
const CLUSTER_WIDE: [&str; 10] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "track_commit_timestamp",
    "wal_keep_segments",
    "wal_keep_size",
    "wal_level",
];

pub(crate) fn cluster_parameters(desired: &Desired, facts: &Facts) -> Map<String, Value> {
    let mut parameters: BTreeMap<String, String> = BTreeMap::new();
    let fixed = [
        ("wal_level", "logical"),
        ("hot_standby", "on"),
        ("wal_log_hints", "on"),
        ("max_wal_senders", "16"),
        ("max_replication_slots", "16"),
        ("wal_keep_size", "256MB"),
        ("max_slot_wal_keep_size", "10GB"),
        // A primary that steps down because it is cut off waits for its standbys' last word this long.
        ("wal_sender_timeout", "15s"),
        // With zero-loss nobody writes until a standby is back; PostgreSQL's own five seconds would be most of the pause
        // after a postmaster's death.
        ("wal_retrieve_retry_interval", "500ms"),
        ("password_encryption", "scram-sha-256"),
        ("tcp_keepalives_idle", "30"),
        ("tcp_keepalives_interval", "10"),
        ("tcp_keepalives_count", "3"),
    ];
    parameters.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
    if desired.spec().backup.is_some() {
        // What may be lost with the whole cluster.
        parameters.insert("archive_timeout".to_owned(), "60s".to_owned());
    }
    for (name, formula) in &desired.profile.cluster_parameters {
        parameters.insert(name.clone(), formula.value(facts));
    }
    parameters.extend(desired.spec().postgres.parameters.clone());
    parameters.into_iter().map(|(name, value)| (name, json!(value))).collect()
}

/// What the program of ours that starts Patroni reads (`/usr/lib/pgkiln/patroni`).
pub fn environment(spec: &NodeSpec) -> String {
    if spec.tweaks.quick_switchover { "PGKILN_QUICK_SWITCHOVER=1\n".to_owned() } else { String::new() }
}

/// Parameters of this node; the specification's win, the agent's own come last.
pub(crate) fn local_parameters(desired: &Desired, facts: &Facts) -> Map<String, Value> {
    let spec = desired.spec();
    let mut parameters: BTreeMap<String, String> = BTreeMap::new();
    // Used where the agent could reserve them, done without where not.
    parameters.insert("huge_pages".to_owned(), "try".to_owned());
    for (name, formula) in &desired.profile.parameters {
        parameters.insert(name.clone(), formula.value(facts));
    }
    let user = spec.postgres.parameters.iter().filter(|(name, _)| !CLUSTER_WIDE.contains(&name.as_str()));
    parameters.extend(user.map(|(name, value)| (name.clone(), value.clone())));
    let wanted = |is: fn(&str) -> bool| spec.postgres.extensions.iter().filter(move |name| is(name));
    lengthen(&mut parameters, "shared_preload_libraries", wanted(is_preloaded));
    if wanted(is_plugin).next().is_some() {
        // The server's own default (17.12) stays. Patroni leaves the parameter out where the server does not know it.
        parameters.entry("output_plugin_libraries".to_owned()).or_insert_with(|| "pgoutput,test_decoding".to_owned());
    }
    lengthen(&mut parameters, "output_plugin_libraries", wanted(is_plugin));
    let archive = match spec.backup {
        Some(_) => format!("{PROGRAMS}/pgbackrest-archive-push %p"),
        // Backups may come later; `archive_mode` would need a restart then.
        None => "/bin/true".to_owned(),
    };
    let owned = [
        ("archive_mode", "on".to_owned()),
        ("archive_command", archive),
        ("unix_socket_directories", "/run/postgresql".to_owned()),
        ("ssl", "on".to_owned()),
        ("ssl_min_protocol_version", "TLSv1.2".to_owned()),
        ("ssl_cert_file", format!("{PG_PKI}/postgresql.pem")),
        ("ssl_key_file", format!("{PG_PKI}/postgresql.key")),
        ("ssl_ca_file", format!("{PG_PKI}/ca.pem")),
        // The journal is the log.
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
    ];
    parameters.extend(owned.map(|(name, value)| (name.to_owned(), value)));
    parameters.into_iter().map(|(name, value)| (name, json!(value))).collect()
}
