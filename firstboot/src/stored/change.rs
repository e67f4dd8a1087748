//! What changed metadata means for a node that exists: which key may change, and when the change takes effect.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Accepted;
use crate::problem::Problem;
use crate::spec::NodeSpec;

/// One changed value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// Dotted path.
    pub(super) path: String,
    before: String,
    after: String,
}

/// Keys that may change while the node lives, and what becomes of the change; the first match counts.
const RELOADABLE: [(&str, &str); 10] = [
    ("config", "applied at this boot"),
    ("spec.tweaks", "applied to this node at this boot"),
    ("spec.members", "applied to this node at this boot"),
    ("spec.client_networks", "applied to this node at this boot"),
    (
        "spec.postgres.parameters",
        "applied to this node at this boot; cluster-wide ones go to Patroni and, if they need it, wait for \
         PostgreSQL's next restart: `patronictl list` says so",
    ),
    ("spec.postgres.durability", "goes to Patroni, for the whole cluster, once PostgreSQL runs here"),
    ("spec.postgres.rto", "goes to Patroni, for the whole cluster, once PostgreSQL runs here"),
    ("spec.postgres.roles", "created or altered when this node leads; removed ones stay in the database"),
    ("spec.postgres.databases", "created or altered when this node leads; removed ones stay"),
    ("spec.postgres.extensions", "created when this node leads; removed ones stay in the databases"),
];

impl Change {
    /// When it takes effect; `None`: never on this node.
    pub(super) fn effect(&self) -> Option<&'static str> {
        let within =
            |key: &str| self.path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        RELOADABLE.iter().find(|(key, _)| within(key)).map(|(_, effect)| *effect)
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let effect = self.effect().unwrap_or("NOT applied: needs a new node");
        write!(f, "{}: {} -> {} ({effect})", self.path, self.before, self.after)
    }
}

/// Metadata of another node must not change this one.
pub(super) fn refuse_another_node(stored: &NodeSpec, fresh: &NodeSpec, place: &str) -> Result<(), Vec<Problem>> {
    let name = |spec: &NodeSpec| format!("{} {}", spec.cluster.name, spec.cluster.uuid);
    let pairs = [
        ("cluster", name(stored), name(fresh)),
        ("role", stored.role.name().to_owned(), fresh.role.name().to_owned()),
        ("slot", stored.slot.clone(), fresh.slot.clone()),
    ];
    let changed = pairs.into_iter().filter(|(_, before, after)| before != after);
    let problems: Vec<_> = changed
        .map(|(key, before, after)| {
            let what = format!("this disk belongs to {key} `{before}`, the metadata says `{after}`");
            Problem::new(what, place, "attach this node's own seed, or give the new node an empty disk")
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// What differs, in the order of the paths.
pub(super) fn changes(stored: &Accepted, fresh: &Accepted) -> Vec<Change> {
    let value = |accepted: &Accepted| {
        serde_json::json!({
            "spec": accepted.spec, "config": accepted.config, "network_config": accepted.network_config,
        })
    };
    let mut found = Vec::new();
    walk("", &value(stored), &value(fresh), &mut found);
    found
}

fn walk(path: &str, a: &Value, b: &Value, found: &mut Vec<Change>) {
    if a == b {
        return;
    }
    // A mapping that comes or goes is shown key by key, too.
    let empty = serde_json::Map::new();
    let object = |value: &'_ Value| match value {
        Value::Object(map) => Some(map.clone()),
        Value::Null => Some(empty.clone()),
        _ => None,
    };
    let (Some(left), Some(right)) = (object(a), object(b)) else {
        found.push(Change { path: path.to_owned(), before: a.to_string(), after: b.to_string() });
        return;
    };
    let keys: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    for key in keys {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        walk(&inner, left.get(key).unwrap_or(&Value::Null), right.get(key).unwrap_or(&Value::Null), found);
    }
}
