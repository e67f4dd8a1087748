//! `cluster.toml` to [`Definition`]: unknown keys, wrong types and contradictions, all at once, each with its line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use firstboot::spec::{Database, Durability, PgRole, Postgres, Role, Rto, Tweaks, Vip, VipMode};
use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeTable;

use super::check;
use super::definition::{Backup, Definition, Node, SCHEMA};
use crate::problem::Problems;
use crate::strict::{Reader, Value};

const KEYS: [&str; 14] = [
    "schema",
    "name",
    "uuid",
    "role",
    "subnet",
    "gateway",
    "nameservers",
    "client_networks",
    "ssh_authorized_keys",
    "vip",
    "nodes",
    "postgres",
    "backup",
    "tweaks",
];

/// Reads `cluster.toml`; `file` is the name used in messages.
pub fn parse(text: &str, file: &str) -> Result<Definition, Problems> {
    let mut reader = Reader::new(file, text);
    let table = reader.document()?;
    let definition = document(&mut reader, &table);
    if let Some(definition) = &definition {
        check::places(&mut reader, &table, definition);
    }
    reader.finish()?;
    // Nothing was reported, so every required key was there.
    definition.ok_or_else(Problems::default)
}

fn document(r: &mut Reader<'_>, table: &Spanned<DeTable<'_>>) -> Option<Definition> {
    let top = table.get_ref();
    r.known(top, "", &KEYS);
    let schema = r.required(table, "", "schema").and_then(|value| schema(r, value));
    let name = r.required(table, "", "name").and_then(|value| r.text(value, "name"));
    let uuid = r.required(table, "", "uuid").and_then(|v| r.parsed(v, "uuid", "6f9c2d3e-1b2a-4c3d-8e4f-5a6b7c8d9e0f"));
    let role = top.get("role").map_or(Some(Role::Node), |value| r.choice(value, "role", &Role::NAMES));
    let subnet = r.required(table, "", "subnet").and_then(|v| r.parsed::<IpNet>(v, "subnet", "10.0.0.0/24"));
    let gateway = top.get("gateway").and_then(|value| r.parsed(value, "gateway", "10.0.0.1"));
    let nameservers = list(r, top, "nameservers", |r, item| r.parsed(item, "nameservers", "10.0.0.2"));
    let client_networks = list(r, top, "client_networks", |r, item| r.parsed(item, "client_networks", "10.0.0.0/16"));
    let ssh_authorized_keys = list(r, top, "ssh_authorized_keys", |r, item| r.text(item, "ssh_authorized_keys"));
    let vip = top.get("vip").and_then(|value| vip(r, value));
    let nodes = r.required(table, "", "nodes");
    let nodes = nodes.map(|value| r.array(value, "nodes").iter().map(|item| node(r, item)).collect::<Vec<_>>());
    let postgres = top.get("postgres").map_or_else(Postgres::default, |value| postgres(r, value));
    let backup = top.get("backup").map(|value| backup(r, value));
    let tweaks = top.get("tweaks").map_or_else(Tweaks::default, |value| tweaks(r, value));
    Some(Definition {
        schema: schema?,
        name: name?,
        uuid: uuid?,
        role: role?,
        subnet: subnet?,
        gateway,
        nameservers,
        client_networks,
        ssh_authorized_keys,
        vip,
        nodes: nodes?.into_iter().collect::<Option<_>>()?,
        postgres,
        backup,
        tweaks,
    })
}

fn backup(r: &mut Reader<'_>, value: &Value<'_>) -> Backup {
    let Some(table) = known_table(r, value, "backup", &["host", "full", "retention_full"]) else {
        return Backup::default();
    };
    let host = table.get("host").and_then(|value| r.text(value, "backup.host"));
    let full = table.get("full").and_then(|value| r.text(value, "backup.full"));
    let kept = table.get("retention_full").and_then(|value| Some((value, r.integer(value, "backup.retention_full")?)));
    let retention_full = kept.and_then(|(value, kept)| {
        let number = u32::try_from(kept).ok().filter(|kept| *kept > 0);
        if number.is_none() {
            r.problem(&value.span(), format!("{kept} full backups cannot be kept"), "keep at least 1");
        }
        number
    });
    Backup { host, full, retention_full }
}

fn tweaks(r: &mut Reader<'_>, value: &Value<'_>) -> Tweaks {
    let mut tweaks = Tweaks::default();
    let Some(table) = known_table(r, value, "tweaks", &Tweaks::KEYS) else { return tweaks };
    for key in Tweaks::KEYS {
        let given = table.get(key).and_then(|value| r.boolean(value, &format!("tweaks.{key}")));
        if let (Some(given), Some(switch)) = (given, tweaks.switch(key)) {
            *switch = given;
        }
    }
    tweaks
}

fn schema(r: &mut Reader<'_>, value: &Value<'_>) -> Option<i64> {
    let schema = r.integer(value, "schema")?;
    if schema != SCHEMA {
        let remedy = format!("this pgkiln reads schema {SCHEMA}; use the version that wrote the file");
        r.problem(&value.span(), format!("schema {schema} is not known"), remedy);
    }
    Some(schema)
}

/// The items of an optional array that could be read; the others are reported by `item`.
fn list<'i, T>(
    r: &mut Reader<'_>,
    table: &DeTable<'i>,
    key: &str,
    item: impl Fn(&mut Reader<'_>, &Value<'i>) -> Option<T>,
) -> Vec<T> {
    let Some(value) = table.get(key) else { return Vec::new() };
    r.array(value, key).iter().filter_map(|value| item(r, value)).collect()
}

/// A table with no keys but `known`.
fn known_table<'v, 'i>(
    r: &mut Reader<'_>,
    value: &'v Value<'i>,
    path: &str,
    known: &[&str],
) -> Option<&'v DeTable<'i>> {
    let table = r.table(value, path)?;
    r.known(table, path, known);
    Some(table)
}

fn required_text(r: &mut Reader<'_>, value: &Value<'_>, path: &str, key: &str) -> Option<String> {
    let table = r.table(value, path)?;
    let Some(text) = table.get(key) else {
        r.problem(&value.span(), format!("`{path}` has no `{key}`"), format!("add `{key} = \"…\"`"));
        return None;
    };
    r.text(text, &format!("{path}.{key}"))
}

fn node(r: &mut Reader<'_>, value: &Value<'_>) -> Option<Node> {
    let table = known_table(r, value, "nodes", &["slot", "address", "role", "mac"])?;
    let slot = required_text(r, value, "nodes", "slot");
    let address = match table.get("address") {
        Some(address) => r.parsed::<IpAddr>(address, "nodes.address", "10.0.0.11"),
        None => {
            r.problem(&value.span(), "`nodes` has no `address`", "add `address = \"10.0.0.11\"`");
            None
        }
    };
    let role = table.get("role").map(|role| r.choice(role, "nodes.role", &Role::NAMES));
    let mac = table.get("mac").and_then(|mac| r.text(mac, "nodes.mac"));
    let role = match role {
        Some(role) => Some(role?),
        None => None,
    };
    Some(Node { slot: slot?, address: address?, role, mac })
}

fn vip(r: &mut Reader<'_>, value: &Value<'_>) -> Option<Vip> {
    let table = known_table(r, value, "vip", &["address", "mode"])?;
    let address = table.get("address").and_then(|address| r.parsed(address, "vip.address", "10.0.0.10/24"));
    if !table.contains_key("address") {
        r.problem(&value.span(), "`vip` has no `address`", "add `address = \"10.0.0.10/24\"`");
    }
    let modes = [("lan", VipMode::Lan), ("cloud", VipMode::Cloud), ("none", VipMode::None)];
    let mode = table.get("mode").map_or(Some(VipMode::Lan), |mode| r.choice(mode, "vip.mode", &modes));
    Some(Vip { address: address?, mode: mode? })
}

fn postgres(r: &mut Reader<'_>, value: &Value<'_>) -> Postgres {
    let Some(table) = r.table(value, "postgres") else { return Postgres::default() };
    r.known(table, "postgres", &["durability", "rto", "parameters", "databases", "roles", "extensions"]);
    let durabilities = [("zero-loss", Durability::ZeroLoss), ("available", Durability::Available)];
    let durability = table.get("durability").and_then(|v| r.choice(v, "postgres.durability", &durabilities));
    let presets = [("fast", Rto::Fast), ("norm", Rto::Norm), ("wide", Rto::Wide)];
    let rto = table.get("rto").and_then(|v| r.choice(v, "postgres.rto", &presets));
    let databases = list(r, table, "databases", |r, item| {
        let table = known_table(r, item, "postgres.databases", &["name", "owner"])?;
        let name = required_text(r, item, "postgres.databases", "name");
        let owner = table.get("owner").and_then(|owner| r.text(owner, "postgres.databases.owner"));
        Some(Database { name: name?, owner })
    });
    let roles = list(r, table, "roles", |r, item| {
        let table = known_table(r, item, "postgres.roles", &["name", "login"])?;
        let name = required_text(r, item, "postgres.roles", "name");
        let login = table.get("login").and_then(|login| r.boolean(login, "postgres.roles.login"));
        Some(PgRole { name: name?, login: login.unwrap_or(false) })
    });
    let extensions = list(r, table, "extensions", |r, item| r.text(item, "postgres.extensions"));
    let mut parameters = BTreeMap::new();
    let given = table.get("parameters").and_then(|value| r.table(value, "postgres.parameters"));
    for (key, value) in given.into_iter().flatten() {
        if let Some(text) = r.text(value, &format!("postgres.parameters.{}", key.get_ref())) {
            parameters.insert(key.get_ref().to_string(), text);
        }
    }
    Postgres {
        durability: durability.unwrap_or_default(),
        rto: rto.unwrap_or_default(),
        parameters,
        databases,
        roles,
        extensions,
    }
}
