//! The `pgkiln:` section of a document to [`NodeSpec`]: every problem at once, each with its line.

use std::collections::BTreeMap;
use std::net::IpAddr;

use uuid::Uuid;

use super::reader::Reader;
use super::tree::{self, Node};
use super::{
    Backup, Cluster, Database, DiskMatch, Disks, Durability, Founding, Intermediate, Join, Joiner, NodeSpec, Passwords,
    PgRole, Pooler, PoolerKind, Postgres, Repository, Role, Rto, Secret, SystemDisk, Tweaks, Vip, VipMode,
};
use crate::problem::Problem;

const KEYS: [&str; 16] = [
    "schema",
    "cluster",
    "slot",
    "role",
    "address",
    "seeds",
    "members",
    "join",
    "vip",
    "client_networks",
    "postgres",
    "backup",
    "pooler",
    "disks",
    "tweaks",
    "founding",
];

/// Reads and checks the section at `node`; `place` names its document.
pub fn read(node: &Node, place: &str) -> Result<NodeSpec, Vec<Problem>> {
    let mut reader = Reader::new(place);
    let spec = section(&mut reader, node);
    if let Some(spec) = &spec {
        super::check::check(&mut reader, node, spec);
    }
    match spec {
        Some(spec) if reader.problems.is_empty() => Ok(spec),
        _ => Err(reader.problems),
    }
}

impl NodeSpec {
    /// Reads a document that consists of the section alone, YAML or JSON (the stored specification).
    pub fn from_text(text: &str, place: &str) -> Result<Self, Vec<Problem>> {
        read(&tree::parse(text, place).map_err(|problem| vec![problem])?, place)
    }
}

fn section(r: &mut Reader<'_>, node: &Node) -> Option<NodeSpec> {
    r.mapping(node, "pgkiln", &KEYS);
    // Every field is read before the first missing one ends the attempt: all problems at once.
    let schema = r.required(node, "pgkiln", "schema").and_then(|n| r.parsed(n, "pgkiln.schema", "1"));
    let cluster = r.required(node, "pgkiln", "cluster").and_then(|n| cluster(r, n));
    let slot = r.required(node, "pgkiln", "slot").and_then(|n| r.text(n, "pgkiln.slot"));
    let role = r.required(node, "pgkiln", "role").and_then(|n| r.choice(n, "pgkiln.role", &Role::NAMES));
    let address = r.optional(node, "address").map(|n| r.parsed(n, "pgkiln.address", "10.0.0.11/24"));
    let seeds = r.required(node, "pgkiln", "seeds").map(|n| seeds(r, n));
    let members = r.optional(node, "members").map(|n| super::members::read(r, n));
    let join = r.optional(node, "join").map(|n| join(r, n));
    let vip = r.optional(node, "vip").map(|n| vip(r, n));
    let client_networks = r.optional(node, "client_networks").map(|n| {
        let items = r.list(n, "pgkiln.client_networks").iter();
        items.filter_map(|item| r.parsed(item, "pgkiln.client_networks", "10.0.0.0/16")).collect()
    });
    let postgres = r.optional(node, "postgres").map(|n| postgres(r, n));
    let backup = r.optional(node, "backup").map(|n| backup(r, n));
    let pooler = r.optional(node, "pooler").map(|n| pooler(r, n));
    let disks = r.optional(node, "disks").map(|n| disks(r, n));
    let tweaks = r.optional(node, "tweaks").map(|n| tweaks(r, n));
    let founding = r.optional(node, "founding").map(|n| founding(r, n));
    Some(NodeSpec {
        schema: schema?,
        cluster: cluster?,
        slot: slot?,
        role: role?,
        address: match address {
            Some(address) => Some(address?),
            None => None,
        },
        seeds: seeds?,
        members: members.unwrap_or_default(),
        join: join.flatten(),
        vip: vip.flatten(),
        client_networks: client_networks.unwrap_or_default(),
        postgres: postgres.unwrap_or_default(),
        backup: backup.flatten(),
        pooler: pooler.flatten().unwrap_or_default(),
        disks: disks.unwrap_or_default(),
        tweaks: tweaks.unwrap_or_default(),
        founding: founding.flatten(),
    })
}

fn cluster(r: &mut Reader<'_>, node: &Node) -> Option<Cluster> {
    let path = "pgkiln.cluster";
    r.mapping(node, path, &["name", "uuid", "ca_sha256"]);
    let name = r.required(node, path, "name").and_then(|n| r.text(n, "pgkiln.cluster.name"));
    let like = "6f9c2d3e-1b2a-4c3d-8e4f-5a6b7c8d9e0f";
    let uuid = r.required(node, path, "uuid").and_then(|n| r.parsed::<Uuid>(n, "pgkiln.cluster.uuid", like));
    let ca_sha256 = r.required(node, path, "ca_sha256").and_then(|n| r.text(n, "pgkiln.cluster.ca_sha256"));
    Some(Cluster { name: name?, uuid: uuid?, ca_sha256: ca_sha256? })
}

fn seeds(r: &mut Reader<'_>, node: &Node) -> BTreeMap<String, IpAddr> {
    if node.entries().is_empty() {
        r.problem(node.line, "`pgkiln.seeds` names no node", "write `seeds: {pg-1: 10.0.0.11, …}`: 1, 3 or 5 voters");
    }
    let entries = node.entries().iter();
    entries
        .filter_map(|(key, value)| {
            let address = r.parsed(value, &format!("pgkiln.seeds.{}", key.name), "10.0.0.11")?;
            Some((key.name.clone(), address))
        })
        .collect()
}

fn join(r: &mut Reader<'_>, node: &Node) -> Option<Join> {
    r.mapping(node, "pgkiln.join", &["token"]);
    let token = r.required(node, "pgkiln.join", "token").and_then(|n| r.text(n, "pgkiln.join.token"))?;
    Some(Join { token: Secret::new(token) })
}

fn vip(r: &mut Reader<'_>, node: &Node) -> Option<Vip> {
    let path = "pgkiln.vip";
    r.mapping(node, path, &["address", "mode"]);
    let address = r.required(node, path, "address").and_then(|n| r.parsed(n, "pgkiln.vip.address", "10.0.0.10/24"));
    let modes = [("lan", VipMode::Lan), ("cloud", VipMode::Cloud), ("none", VipMode::None)];
    let mode = r.required(node, path, "mode").and_then(|n| r.choice(n, "pgkiln.vip.mode", &modes));
    Some(Vip { address: address?, mode: mode? })
}

fn postgres(r: &mut Reader<'_>, node: &Node) -> Postgres {
    let path = "pgkiln.postgres";
    r.mapping(node, path, &["durability", "rto", "parameters", "databases", "roles", "extensions"]);
    let durabilities = [("zero-loss", Durability::ZeroLoss), ("available", Durability::Available)];
    let durability =
        r.optional(node, "durability").and_then(|n| r.choice(n, "pgkiln.postgres.durability", &durabilities));
    let presets = [("fast", Rto::Fast), ("norm", Rto::Norm), ("wide", Rto::Wide)];
    let rto = r.optional(node, "rto").and_then(|n| r.choice(n, "pgkiln.postgres.rto", &presets));
    let mut parameters = BTreeMap::new();
    for (key, value) in r.optional(node, "parameters").map_or(&[][..], Node::entries) {
        if let Some(value) = r.text(value, &format!("{path}.parameters.{}", key.name)) {
            parameters.insert(key.name.clone(), value);
        }
    }
    let mut databases = Vec::new();
    for item in r.optional(node, "databases").map_or(&[][..], |n| r.list(n, "pgkiln.postgres.databases")) {
        let path = "pgkiln.postgres.databases";
        r.mapping(item, path, &["name", "owner"]);
        let owner = r.optional(item, "owner").and_then(|n| r.text(n, "pgkiln.postgres.databases.owner"));
        if let Some(name) = r.required(item, path, "name").and_then(|n| r.text(n, path)) {
            databases.push(Database { name, owner });
        }
    }
    let mut roles = Vec::new();
    for item in r.optional(node, "roles").map_or(&[][..], |n| r.list(n, "pgkiln.postgres.roles")) {
        let path = "pgkiln.postgres.roles";
        r.mapping(item, path, &["name", "login"]);
        let login = r.optional(item, "login").and_then(|n| r.boolean(n, "pgkiln.postgres.roles.login"));
        if let Some(name) = r.required(item, path, "name").and_then(|n| r.text(n, path)) {
            roles.push(PgRole { name, login: login.unwrap_or(false) });
        }
    }
    let extensions = r.optional(node, "extensions").map_or(&[][..], |n| r.list(n, "pgkiln.postgres.extensions"));
    let extensions = extensions.iter().filter_map(|n| r.text(n, "pgkiln.postgres.extensions")).collect();
    Postgres {
        durability: durability.unwrap_or_default(),
        rto: rto.unwrap_or_default(),
        parameters,
        databases,
        roles,
        extensions,
    }
}

fn backup(r: &mut Reader<'_>, node: &Node) -> Option<Backup> {
    let path = "pgkiln.backup";
    r.mapping(node, path, &["repository", "full", "retention_full"]);
    let full = r.optional(node, "full").and_then(|n| r.text(n, "pgkiln.backup.full"));
    let retention_full = r.optional(node, "retention_full").and_then(|n| r.parsed(n, "retention_full", "2"));
    let repository = r.required(node, path, "repository")?;
    let path = "pgkiln.backup.repository";
    r.mapping(repository, path, &["type", "host"]);
    let host = r.optional(repository, "host").and_then(|n| r.text(n, "pgkiln.backup.repository.host"));
    let kind = r.required(repository, path, "type").and_then(|n| r.choice(n, path, &[("host", "host")]))?;
    Some(Backup { repository: Repository { kind: kind.to_owned(), host }, full, retention_full })
}

fn pooler(r: &mut Reader<'_>, node: &Node) -> Option<Pooler> {
    r.mapping(node, "pgkiln.pooler", &["kind"]);
    let kinds = [
        ("none", PoolerKind::None),
        ("pgbouncer", PoolerKind::Pgbouncer),
        ("pgpool", PoolerKind::Pgpool),
        ("pgagroal", PoolerKind::Pgagroal),
    ];
    let kind = r.required(node, "pgkiln.pooler", "kind").and_then(|n| r.choice(n, "pgkiln.pooler.kind", &kinds))?;
    Some(Pooler { kind })
}

fn disks(r: &mut Reader<'_>, node: &Node) -> Disks {
    r.mapping(node, "pgkiln.disks", &["data", "system"]);
    let data = r.optional(node, "data").and_then(|data| {
        r.mapping(data, "pgkiln.disks.data", &["serial"]);
        let serial = r.required(data, "pgkiln.disks.data", "serial")?;
        Some(DiskMatch { serial: r.text(serial, "pgkiln.disks.data.serial")? })
    });
    let system = r.optional(node, "system").map(|system| system_disk(r, system));
    Disks { data, system }
}

fn system_disk(r: &mut Reader<'_>, node: &Node) -> SystemDisk {
    let path = "pgkiln.disks.system";
    r.mapping(node, path, &["serial", "wwn", "path", "overwrite"]);
    let mut text = |key: &str| r.optional(node, key).and_then(|n| r.text(n, &format!("{path}.{key}")));
    SystemDisk { serial: text("serial"), wwn: text("wwn"), path: text("path"), overwrite: text("overwrite") }
}

fn tweaks(r: &mut Reader<'_>, node: &Node) -> Tweaks {
    r.mapping(node, "pgkiln.tweaks", &Tweaks::KEYS);
    let mut tweaks = Tweaks::default();
    for key in Tweaks::KEYS {
        let given = r.optional(node, key).and_then(|n| r.boolean(n, &format!("pgkiln.tweaks.{key}")));
        if let (Some(given), Some(switch)) = (given, tweaks.switch(key)) {
            *switch = given;
        }
    }
    tweaks
}

fn founding(r: &mut Reader<'_>, node: &Node) -> Option<Founding> {
    let path = "pgkiln.founding";
    r.mapping(node, path, &["schema", "ca", "intermediate", "passwords", "roles", "joiners"]);
    let schema = r.required(node, path, "schema").and_then(|n| r.parsed(n, "pgkiln.founding.schema", "1"));
    let ca = r.required(node, path, "ca").and_then(|n| r.text(n, "pgkiln.founding.ca"));
    let intermediate = r.required(node, path, "intermediate").and_then(|node| {
        let path = "pgkiln.founding.intermediate";
        r.mapping(node, path, &["cert", "key"]);
        let cert = r.required(node, path, "cert").and_then(|n| r.text(n, path));
        let key = r.required(node, path, "key").and_then(|n| r.text(n, path));
        Some(Intermediate { cert: cert?, key: Secret::new(key?) })
    });
    let passwords = r.required(node, path, "passwords").and_then(|n| passwords(r, n));
    let mut roles = BTreeMap::new();
    for (key, value) in r.optional(node, "roles").map_or(&[][..], Node::entries) {
        if let Some(verifier) = r.text(value, "pgkiln.founding.roles") {
            roles.insert(key.name.clone(), verifier);
        }
    }
    let joiners = r.optional(node, "joiners").map(|n| joiners(r, n)).unwrap_or_default();
    Some(Founding { schema: schema?, ca: ca?, intermediate: intermediate?, passwords: passwords?, roles, joiners })
}

fn joiners(r: &mut Reader<'_>, node: &Node) -> BTreeMap<String, Joiner> {
    r.mapping_of_names(node, "pgkiln.founding.joiners");
    let joiner = |(key, value): &(tree::Key, Node)| {
        let path = format!("pgkiln.founding.joiners.{}", key.name);
        r.mapping(value, &path, &["token_sha256", "issue"]);
        let token_sha256 = r.required(value, &path, "token_sha256").and_then(|n| r.text(n, &path));
        let issue = r.required(value, &path, "issue").and_then(|n| r.parsed(n, &path, "1"));
        Some((key.name.clone(), Joiner { token_sha256: token_sha256?, issue: issue? }))
    };
    node.entries().iter().filter_map(joiner).collect()
}

fn passwords(r: &mut Reader<'_>, node: &Node) -> Option<Passwords> {
    let keys = [
        "superuser",
        "replication",
        "rewind",
        "patroni_rest",
        "etcd_root",
        "etcd_agent",
        "etcd_patroni",
        "etcd_proxy",
        "repository",
    ];
    r.mapping(node, "pgkiln.founding.passwords", &keys);
    let [superuser, replication, rewind, patroni_rest, etcd_root, etcd_agent, etcd_patroni, etcd_proxy, repository] =
        keys.map(|key| {
            let Some(value) = r.optional(node, key) else {
                let remedy = "write the seed again with `pgkiln cluster seed --embed-secrets`";
                r.problem(node.line, format!("missing secret: password `{key}`"), remedy);
                return None;
            };
            r.text(value, "pgkiln.founding.passwords").map(Secret::new)
        });
    Some(Passwords {
        superuser: superuser?,
        replication: replication?,
        rewind: rewind?,
        patroni_rest: patroni_rest?,
        etcd_root: etcd_root?,
        etcd_agent: etcd_agent?,
        etcd_patroni: etcd_patroni?,
        etcd_proxy: etcd_proxy?,
        repository: repository?,
    })
}
