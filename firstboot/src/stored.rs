//! What the node was told, kept: the first boot accepts a specification and stores it; later boots compare. Metadata
//! that is gone or broken later must not stop a database, and metadata that suddenly means another node must not
//! change this one.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::datasource::Seed;
use crate::durable;
use crate::facts::{Facts, Machine};
use crate::layout::Layout;
use crate::problem::Problem;
use crate::spec::{self, NodeSpec, Secrets};
use crate::status::{Board, IgnoredKey};
use crate::user_data::{self, CloudConfig};

/// The accepted specification with everything else the metadata said; no secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// Version of the format.
    pub schema: u32,
    /// Where it came from.
    pub source: String,
    /// Instance id at acceptance: recorded, never acted upon alone.
    pub instance_id: String,
    /// Our section.
    pub spec: NodeSpec,
    /// Declarative keys.
    pub config: CloudConfig,
    /// Network configuration, version 2.
    pub network_config: Option<String>,
    /// Keys without effect.
    #[serde(default)]
    pub ignored: Vec<IgnoredKey>,
}

/// Which machine the disk belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    machine: Machine,
}

/// Decides what this boot runs: a first boot accepts the seed or fails, a later one never runs anything else than what
/// was accepted plus the changes that may be made while running.
pub fn accept(
    layout: &Layout,
    found: Result<Option<Seed>, Problem>,
    facts: &Facts,
    board: &Board,
) -> Result<(Accepted, Secrets), Vec<Problem>> {
    let failed = |error: anyhow::Error| {
        vec![Problem::new(format!("{error:#}"), layout.lib().display().to_string(), "check the data disk")]
    };
    let stored: Option<Accepted> = durable::read_json(&layout.spec()).map_err(failed)?;
    match stored {
        None => first_boot(layout, found, facts),
        Some(stored) => {
            check_machine(layout, facts)?;
            let accepted = later_boot(layout, found, stored, board)?;
            let secrets = durable::read_json(&layout.secrets()).and_then(|s| s.context("secrets.json is gone"));
            Ok((accepted, secrets.map_err(failed)?))
        }
    }
}

/// Reads a seed; all problems at once. What `check` and `inspect` do, too.
pub fn read_seed(seed: &Seed) -> Result<(Accepted, Option<Secrets>), Vec<Problem>> {
    let data = user_data::read(&seed.user_data, &seed.place)?;
    let founding = data.spec.founding.clone();
    let mut config = data.config;
    config.hostname = config.hostname.or_else(|| seed.hostname.clone());
    let accepted = Accepted {
        schema: 1,
        source: seed.source.clone(),
        instance_id: seed.instance_id.clone(),
        spec: data.spec,
        config,
        network_config: seed.network_config.clone(),
        ignored: data.ignored,
    };
    Ok((accepted, founding))
}

fn first_boot(
    layout: &Layout,
    found: Result<Option<Seed>, Problem>,
    facts: &Facts,
) -> Result<(Accepted, Secrets), Vec<Problem>> {
    let seed = found.map_err(|problem| vec![problem])?.ok_or_else(|| {
        let remedy = "attach a seed volume labelled `cidata`, or put one into /var/lib/cloud/seed/nocloud";
        vec![Problem::new("no metadata found", "datasources", remedy)]
    })?;
    let (mut accepted, founding) = read_seed(&seed)?;
    if let Some(problem) = spec::missing_secrets(&accepted.spec, &seed.place) {
        return Err(vec![problem]);
    }
    let founding = founding.ok_or_else(|| {
        let remedy = "write the seed with `pgkiln cluster seed --embed-secrets`";
        vec![Problem::new("joining with a token is not supported by this image yet", &seed.place, remedy)]
    })?;
    accepted.spec = accepted.spec.without_secrets();
    let store = || -> Result<()> {
        durable::create_dir(&layout.lib(), 0o700)?;
        durable::write_json(&layout.secrets(), &founding, 0o600)?;
        durable::write_json(&layout.identity(), &Identity { machine: facts.machine.clone() }, 0o600)?;
        // Last: its presence is what makes the next boot a later one.
        durable::write_json(&layout.spec(), &accepted, 0o600)?;
        wipe(&seed)
    };
    store().map_err(|e| {
        vec![Problem::new(format!("{e:#}"), layout.lib().display().to_string(), "make room or check the disk")]
    })?;
    Ok((accepted, founding))
}

fn later_boot(
    layout: &Layout,
    found: Result<Option<Seed>, Problem>,
    stored: Accepted,
    board: &Board,
) -> Result<Accepted, Vec<Problem>> {
    let keep = |why: String| {
        let note = format!("running the stored specification: {why}");
        tracing::warn!("{note}");
        board.note(note);
    };
    let seed = match found {
        Ok(Some(seed)) => seed,
        Ok(None) => {
            keep("no metadata found".to_owned());
            return Ok(stored);
        }
        Err(problem) => {
            keep(format!("metadata is broken: {}: {}", problem.place, problem.what));
            return Ok(stored);
        }
    };
    let (mut fresh, founding) = match read_seed(&seed) {
        Ok(read) => read,
        Err(problems) => {
            let all: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.place, p.what)).collect();
            keep(format!("metadata is invalid: {}", all.join("; ")));
            return Ok(stored);
        }
    };
    if let Err(e) = wipe(&seed) {
        tracing::warn!("secrets are still in {}: {e:#}", seed.source);
    }
    fresh.spec = fresh.spec.without_secrets();
    refuse_another_node(&stored.spec, &fresh.spec, &seed.place)?;
    if fresh.instance_id != stored.instance_id {
        tracing::info!("instance-id changed from {} to {}: no effect by itself", stored.instance_id, fresh.instance_id);
    }
    let differences = differences(&stored, &fresh);
    if differences.is_empty() {
        return Ok(stored);
    }
    let mut merged = stored.clone();
    for (path, before, after) in &differences {
        let reloadable = RELOADABLE.iter().any(|key| path == key || path.starts_with(&format!("{key}.")));
        let verb = if reloadable { "applied" } else { "NOT applied: needs a new node" };
        tracing::warn!("metadata changed: {path}: {before} -> {after} ({verb})");
        if !reloadable {
            board.note(format!("changed in metadata but not applied: {path}"));
        }
    }
    merged.spec.client_networks = fresh.spec.client_networks;
    merged.spec.postgres = fresh.spec.postgres;
    merged.config = fresh.config;
    let store = || -> Result<()> {
        if let Some(founding) = founding {
            let mut secrets: Secrets = durable::read_json(&layout.secrets())?.context("secrets.json is gone")?;
            secrets.roles.extend(founding.roles);
            durable::write_json(&layout.secrets(), &secrets, 0o600)?;
        }
        durable::write_json(&layout.spec(), &merged, 0o600)
    };
    store().map_err(|e| vec![Problem::new(format!("{e:#}"), "/var/lib/pgkiln", "make room or check the disk")])?;
    Ok(merged)
}

/// Keys that may change while the node lives.
const RELOADABLE: [&str; 3] = ["spec.client_networks", "spec.postgres", "config"];

fn refuse_another_node(stored: &NodeSpec, fresh: &NodeSpec, place: &str) -> Result<(), Vec<Problem>> {
    let pairs = [
        ("cluster", format!("{} {}", stored.cluster.name, stored.cluster.uuid), {
            format!("{} {}", fresh.cluster.name, fresh.cluster.uuid)
        }),
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

/// The same disk in another machine may be a clone of a living node: start nothing.
fn check_machine(layout: &Layout, facts: &Facts) -> Result<(), Vec<Problem>> {
    let identity: Option<Identity> = durable::read_json(&layout.identity()).unwrap_or(None);
    let Some(identity) = identity else { return Ok(()) };
    if identity.machine.is(&facts.machine) {
        return Ok(());
    }
    let what = "this disk belongs to another machine: it may be a clone of a node that is alive";
    let remedy = format!(
        "make sure the old machine is off for good, then remove {} and restart firstboot.service",
        layout.identity().display()
    );
    Err(vec![Problem::new(what, layout.identity().display().to_string(), remedy)])
}

/// Dotted paths whose values differ.
fn differences(a: &Accepted, b: &Accepted) -> Vec<(String, String, String)> {
    let value = |accepted: &Accepted| {
        let mut value = serde_json::to_value(accepted).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.retain(|key, _| ["spec", "config", "network_config"].contains(&key.as_str()));
        }
        value
    };
    let mut found = Vec::new();
    walk("", &value(a), &value(b), &mut found);
    found
}

fn walk(path: &str, a: &serde_json::Value, b: &serde_json::Value, found: &mut Vec<(String, String, String)>) {
    if a == b {
        return;
    }
    let (Some(left), Some(right)) = (a.as_object(), b.as_object()) else {
        found.push((path.to_owned(), a.to_string(), b.to_string()));
        return;
    };
    let keys: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    for key in keys {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let null = serde_json::Value::Null;
        walk(&inner, left.get(key).unwrap_or(&null), right.get(key).unwrap_or(&null), found);
    }
}

/// Removes the founding secrets from a seed we can write to.
fn wipe(seed: &Seed) -> Result<()> {
    let text = user_data::decode(&seed.user_data, &seed.place)?;
    let Some(path) = &seed.wipeable else {
        if text.lines().any(|line| line.trim_start().starts_with("founding:")) {
            tracing::warn!("{} still carries the founding secrets: detach it", seed.source);
        }
        return Ok(());
    };
    let wiped = without_founding(&text);
    if wiped == text {
        return Ok(());
    }
    durable::write(path, wiped.as_bytes(), 0o600).context("wiping the founding secrets from the seed")?;
    tracing::info!("founding secrets wiped from {}", path.display());
    Ok(())
}

/// The document without the `founding:` block of its `pgkiln:` section: that line and everything indented deeper.
fn without_founding(text: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut kept = String::new();
    let mut skipping: Option<usize> = None;
    for line in text.split_inclusive('\n') {
        let blank = line.trim().is_empty();
        if let Some(depth) = skipping {
            if blank || indent(line) > depth {
                continue;
            }
            skipping = None;
        }
        if line.trim_start().starts_with("founding:") {
            skipping = Some(indent(line));
            continue;
        }
        kept.push_str(line);
    }
    kept
}

impl Accepted {
    /// How problems name another file of the same seed.
    pub fn source_of(&self, file: &str) -> String {
        let directory = self.source.strip_prefix("NoCloud, ").unwrap_or(&self.source);
        format!("{directory}/{file}")
    }
}
