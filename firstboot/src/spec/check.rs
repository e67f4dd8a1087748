//! What must hold between the fields of a specification.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine;
use sha2::{Digest, Sha256};

use super::reader::Reader;
use super::tree::Node;
use super::{Founding, NodeSpec, SCHEMA};
use crate::problem::Problem;

/// Parameters that decide whether a cluster works at all; the agent and Patroni set them.
pub(super) const OWNED_PARAMETERS: [&str; 22] = [
    "archive_command",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
];

pub(super) fn check(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    if spec.schema != SCHEMA {
        let remedy = format!("this image reads schema {SCHEMA}; use an image that fits the seed");
        r.problem(line(node, &["schema"]), format!("schema {} is not known", spec.schema), remedy);
    }
    names(r, node, spec);
    seeds(r, node, spec);
    if let Some(members) = node.get("members").filter(|_| !spec.members.is_empty()) {
        super::members::check(r, members, spec);
    }
    address(r, node, spec);
    postgres(r, node, spec);
    founding(r, node, spec);
    backup(r, node, spec);
}

fn backup(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let Some(backup) = &spec.backup else {
        if spec.role == super::Role::Backup {
            let remedy = "add `backup: {repository: {type: host, host: …}}` with this slot";
            r.problem(line(node, &["role"]), "role `backup` without `backup`", remedy);
        }
        return;
    };
    let at = line(node, &["backup", "repository"]);
    let hosts = spec.members_that(|role| role == super::Role::Backup);
    let known: Vec<_> = hosts.keys().map(String::as_str).collect();
    match backup.repository.host.as_deref() {
        None => r.problem(at, "`backup.repository` names no `host`", "name the slot of role `backup`"),
        Some(host) if hosts.iter().any(|(slot, ip)| slot == host || host.parse() == Ok(*ip)) => {}
        Some(host) if known.is_empty() => {
            let what = format!("repository host `{host}`: no node has role `backup`");
            r.problem(at, what, "add a node of role `backup`, or remove `backup`");
        }
        Some(host) => {
            let what = format!("repository host `{host}` is no node of role `backup`");
            r.problem(at, what, super::reader::suggestion(host, &known, "slot"));
        }
    }
    if !super::is_calendar(backup.full()) {
        let what = format!("`{}` is no time for backups", backup.full());
        r.problem(line(node, &["backup", "full"]), what, "write it like `Sun 02:00` or `daily` (systemd.time(7))");
    }
    if backup.retention_full() == 0 {
        let at = line(node, &["backup", "retention_full"]);
        r.problem(at, "`backup.retention_full` is 0: every backup would be deleted", "keep at least 1");
    }
}

/// On a first boot secrets must come from somewhere.
pub fn missing_secrets(spec: &NodeSpec, place: &str) -> Option<Problem> {
    match (spec.is_voter(), &spec.founding, &spec.join) {
        (true, Some(_), _) | (_, None, Some(_)) => None,
        (_, None, None) => Some(Problem::new(
            "missing secret: the specification has neither `founding` nor `join`",
            place,
            "write the seed again with `pgkiln cluster seed`: it carries a token, with `--embed-secrets` the secrets",
        )),
        // Refused by `check` already.
        (false, Some(_), _) => None,
    }
}

fn line(node: &Node, path: &[&str]) -> u64 {
    let mut node = node;
    for key in path {
        match node.get(key) {
            Some(inner) => node = inner,
            None => break,
        }
    }
    node.line
}

/// Lower-case letters, digits, hyphens: fits host names, etcd member names, Patroni scopes.
pub(super) fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
}

fn names(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let remedy = "use lower-case letters, digits and hyphens, beginning with a letter, at most 63";
    if !is_name(&spec.cluster.name) {
        let what = format!("`{}` cannot be a cluster's name", spec.cluster.name);
        r.problem(line(node, &["cluster", "name"]), what, remedy);
    }
    if !is_name(&spec.slot) {
        r.problem(line(node, &["slot"]), format!("`{}` cannot be a slot", spec.slot), remedy);
    }
    for slot in spec.seeds.keys().filter(|slot| !is_name(slot)) {
        r.problem(line(node, &["seeds", slot]), format!("`{slot}` cannot be a slot"), remedy);
    }
    let hash = &spec.cluster.ca_sha256;
    if hash.len() != 64 || !hash.chars().all(|c| c.is_ascii_hexdigit()) {
        let what = "`pgkiln.cluster.ca_sha256` is not a SHA-256 in hexadecimal";
        r.problem(line(node, &["cluster", "ca_sha256"]), what, "copy it from `pgkiln cluster new`: 64 digits");
    }
}

fn seeds(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let at = line(node, &["seeds"]);
    if ![0, 1, 3, 5].contains(&spec.seeds.len()) {
        let word = match spec.seeds.len() {
            2 => "two".to_owned(),
            4 => "four".to_owned(),
            n => n.to_string(),
        };
        let what = format!("{word} seeds: the voters must be 1, 3 or 5");
        r.problem(at, what, "leave one out or add one; an even number survives no more failures than one less");
    }
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (slot, address) in &spec.seeds {
        if let Some(other) = owners.insert(*address, slot) {
            let what = format!("slots `{other}` and `{slot}` have the same address {address}");
            r.problem(line(node, &["seeds", slot]), what, "give every slot its own address");
        }
    }
    if spec.is_voter() && !spec.role.may_vote() {
        let what = format!("slot `{}` of role `{}` is among the seeds", spec.slot, spec.role.name());
        r.problem(at, what, "seeds are the voters: role node, database or etcd");
    }
    if !spec.seeds.is_empty() && !spec.is_voter() && matches!(spec.role, super::Role::Node | super::Role::Etcd) {
        let known: Vec<_> = spec.seeds.keys().map(String::as_str).collect();
        let what = format!("slot `{}` is not among the seeds", spec.slot);
        r.problem(line(node, &["slot"]), what, super::reader::suggestion(&spec.slot, &known, "slot"));
    }
}

fn address(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let at = line(node, &["address"]);
    if let Some(address) = spec.address {
        if let Some(seed) = spec.seeds.get(&spec.slot).filter(|seed| **seed != address.addr()) {
            let what = format!("address {} differs from seed `{}` ({seed})", address.addr(), spec.slot);
            r.problem(at, what, "both must name this node's address");
        }
        for (slot, seed) in &spec.seeds {
            if !address.contains(seed) {
                let what = format!("seed `{slot}` ({seed}) is outside the subnet of address {address}");
                let remedy =
                    "correct address or prefix; for routed networks leave `address` out and use network-config";
                r.problem(line(node, &["seeds", slot]), what, remedy);
            }
        }
    }
    if let Some(vip) = &spec.vip {
        let at = line(node, &["vip", "address"]);
        if let Some((slot, _)) = spec.seeds.iter().find(|(_, seed)| **seed == vip.address.addr()) {
            let what = format!("the virtual IP {} is the address of slot `{slot}`", vip.address.addr());
            r.problem(at, what, "use a free address of the subnet");
        }
        if let Some(address) = spec.address.filter(|address| !address.contains(&vip.address.addr())) {
            let what = format!("the virtual IP {} is outside the subnet {}", vip.address.addr(), address.trunc());
            r.problem(at, what, "use a free address of the subnet");
        }
        if vip.mode == super::VipMode::Lan && spec.all_members().len() == 1 {
            let what = format!("the virtual IP {} has nowhere to move to: there is one node", vip.address.addr());
            let remedy = "remove `vip` (clients use the node's own address), or name three `seeds`";
            r.problem(line(node, &["vip"]), what, remedy);
        }
    }
}

fn postgres(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let postgres = &spec.postgres;
    let data = spec.members_that(super::Role::stores_data);
    if postgres.durability == super::Durability::ZeroLoss && data.len() == 1 {
        // Patroni would go on without a synchronous standby and without a word.
        let what = "durability zero-loss with one node that stores data: nobody could confirm a write";
        let remedy = "write `durability: available`, or name a second node that stores data";
        r.problem(line(node, &["postgres", "durability"]), what, remedy);
    }
    for (name, value) in &postgres.parameters {
        let at = line(node, &["postgres", "parameters", name]);
        if OWNED_PARAMETERS.contains(&name.as_str()) {
            r.problem(at, format!("parameter `{name}` is set by the agent"), "remove it from `postgres.parameters`");
        }
        let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.');
        if !plain || name.is_empty() || value.contains(['\n', '\0']) {
            r.problem(at, format!("parameter `{name}` is not valid"), "write `name: value` as in postgresql.conf");
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for database in &postgres.databases {
        let at = line(node, &["postgres", "databases"]);
        if !seen.insert(("database", database.name.as_str())) {
            r.problem(at, format!("database `{}` is listed twice", database.name), "list it once");
        }
        if !is_identifier(&database.name) || ["template0", "template1"].contains(&database.name.as_str()) {
            r.problem(at, format!("`{}` cannot be a database's name", database.name), "choose another name");
        }
        let owner = database.owner.as_deref().unwrap_or("postgres");
        if owner != "postgres" && !postgres.roles.iter().any(|role| role.name == owner) {
            let what = format!("database `{}` belongs to `{owner}`, which is not listed", database.name);
            r.problem(at, what, format!("add `{owner}` to `postgres.roles`"));
        }
    }
    for role in &postgres.roles {
        let at = line(node, &["postgres", "roles"]);
        if !seen.insert(("role", role.name.as_str())) {
            r.problem(at, format!("role `{}` is listed twice", role.name), "list it once");
        }
        let reserved = ["postgres", "replicator", "rewind", "public", "none"].contains(&role.name.as_str());
        if reserved || role.name.starts_with("pg_") || !is_identifier(&role.name) {
            r.problem(at, format!("`{}` cannot be a role's name", role.name), "choose another name");
        }
    }
    for extension in postgres.extensions.iter().filter(|name| !is_identifier(name)) {
        let at = line(node, &["postgres", "extensions"]);
        r.problem(
            at,
            format!("`{extension}` cannot be an extension's name"),
            "write its name as in `CREATE EXTENSION`",
        );
    }
}

/// Names are quoted wherever they are used; this keeps out what nobody means.
fn is_identifier(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.chars().any(|c| c.is_control() || "\"'\\$".contains(c))
}

fn founding(r: &mut Reader<'_>, node: &Node, spec: &NodeSpec) {
    let Some(founding) = &spec.founding else { return };
    if !spec.is_voter() {
        let what = format!("`{}` has no vote, but its seed carries the founding bundle", spec.slot);
        let remedy = "write its seed again with `pgkiln cluster seed`: it gets a token, and no secret";
        r.problem(line(node, &["founding"]), what, remedy);
    }
    for (path, what) in faults(spec, founding) {
        let path: Vec<&str> = ["founding"].into_iter().chain(path.iter().map(String::as_str)).collect();
        r.problem(line(node, &path), what, "write the seed again with `pgkiln cluster seed --embed-secrets`");
    }
}

/// Whether a bundle that did not come with the specification fits it.
pub fn founding_fits(spec: &NodeSpec, founding: &Founding) -> Result<(), Problem> {
    match faults(spec, founding).into_iter().next() {
        None => Ok(()),
        Some((path, what)) => {
            let remedy = "this node's seed and the bundle are of different definitions: write the seeds again with \
                          `pgkiln cluster seed`, boot the node with its own, and form again";
            Err(Problem::new(what, format!("founding.{}", path.join(".")), remedy))
        }
    }
}

/// What is wrong between a specification and a bundle, and where in the bundle.
fn faults(spec: &NodeSpec, founding: &Founding) -> Vec<(Vec<String>, String)> {
    let mut faults = Vec::new();
    let mut fault = |path: &[&str], what: String| faults.push((path.iter().map(ToString::to_string).collect(), what));
    for role in spec.postgres.roles.iter().filter(|role| role.login) {
        match founding.roles.get(&role.name) {
            Some(verifier) if verifier.starts_with("SCRAM-SHA-256$") => {}
            Some(_) => {
                let what = format!("the verifier of role `{}` is not SCRAM-SHA-256", role.name);
                fault(&["roles", &role.name], what);
            }
            None => fault(&["roles"], format!("missing secret: no verifier for role `{}`", role.name)),
        }
    }
    match pem_sha256(&founding.ca) {
        Some(hash) if hash == spec.cluster.ca_sha256.to_ascii_lowercase() => {}
        Some(hash) => {
            let what = format!("the CA of `founding` has SHA-256 {hash}, `cluster.ca_sha256` names another");
            fault(&["ca"], what);
        }
        None => fault(&["ca"], "`founding.ca` is not a PEM certificate".to_owned()),
    }
    faults
}

/// SHA-256 of the first certificate in `pem`, in hexadecimal.
pub fn pem_sha256(pem: &str) -> Option<String> {
    let body = pem.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END CERTIFICATE-----").next()?;
    let body: String = body.split_whitespace().collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).ok()?;
    Some(Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect())
}
