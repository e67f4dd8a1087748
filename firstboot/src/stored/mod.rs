//! What the node was told, kept: the first boot accepts a specification and stores it; later boots compare. Metadata
//! that is gone or broken later must not stop a database, and metadata that suddenly means another node must not
//! change this one.

mod change;
mod wipe;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::datasource::Seed;
use crate::durable;
use crate::facts::{Facts, Machine};
use crate::layout::Layout;
use crate::pki;
use crate::problem::Problem;
use crate::spec::{self, Founding, Intermediate, NodeSpec, Secrets};
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
        None => first_boot(layout, found, facts, board),
        Some(stored) => {
            check_machine(layout, facts)?;
            let accepted = later_boot(layout, found, stored, board)?;
            let secrets = durable::read_json(&layout.secrets()).and_then(|s| s.context("secrets.json is gone"));
            Ok((accepted, secrets.map_err(failed)?))
        }
    }
}

/// Reads a seed; all problems at once. What `check` and `inspect` do, too.
pub fn read_seed(seed: &Seed) -> Result<(Accepted, Option<Founding>), Vec<Problem>> {
    let data = user_data::read(&seed.user_data, &seed.place)?;
    let founding = data.spec.founding.clone();
    if seed.network && founding.is_some() {
        let what = "the metadata carries the cluster's secrets over a network, where others can read them";
        let remedy = "write the seeds without `--embed-secrets` and found the cluster with `pgkiln cluster form`. Secrets \
                      that were served are not secret any more: make a new cluster (`pgkiln cluster new`)";
        return Err(vec![Problem::new(what, format!("{}:{}", seed.place, user_data::section_line(seed)), remedy)]);
    }
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

/// On a first boot secrets must come with the seed, or a token that gets them: none are here then.
pub fn require_secrets(spec: &NodeSpec, founding: Option<Founding>, seed: &Seed) -> Result<Secrets, Vec<Problem>> {
    let place = format!("{}:{}", seed.place, user_data::section_line(seed));
    match spec::missing_secrets(spec, &place) {
        Some(problem) => Err(vec![problem]),
        None => Ok(founding.map(Secrets::from).unwrap_or_default()),
    }
}

fn first_boot(
    layout: &Layout,
    found: Result<Option<Seed>, Problem>,
    facts: &Facts,
    board: &Board,
) -> Result<(Accepted, Secrets), Vec<Problem>> {
    let seed = found.map_err(|problem| vec![problem])?.ok_or_else(|| {
        let remedy = "attach a seed volume labelled `cidata`, or put one into /var/lib/cloud/seed/nocloud";
        vec![Problem::new("no metadata found", "datasources", remedy)]
    })?;
    let (mut accepted, founding) = read_seed(&seed)?;
    let secrets = require_secrets(&accepted.spec, founding, &seed)?;
    if !secrets.are_here() {
        // Accepted once the voters let it in: until then every boot is the first, with the same seed.
        return Ok((accepted, secrets));
    }
    accepted.spec = accepted.spec.without_secrets();
    keep(layout, &accepted, &secrets, facts).map_err(|error| unwritable(layout, &error))?;
    wipe(&seed, board);
    Ok((accepted, secrets))
}

/// Keeps an accepted specification: from now on boots are later ones.
pub fn keep(layout: &Layout, accepted: &Accepted, secrets: &Secrets, facts: &Facts) -> Result<()> {
    let accepted = Accepted { spec: accepted.spec.without_secrets(), ..accepted.clone() };
    durable::create_dir(&layout.lib(), 0o700)?;
    durable::write_json(&layout.secrets(), secrets, 0o600)?;
    durable::write_json(&layout.identity(), &Identity { machine: facts.machine.clone() }, 0o600)?;
    // Last: its presence is what makes the next boot a later one.
    durable::write_json(&layout.spec(), &accepted, 0o600)
}

fn unwritable(layout: &Layout, error: &anyhow::Error) -> Vec<Problem> {
    vec![Problem::new(format!("{error:#}"), layout.lib().display().to_string(), "make room or check the disk")]
}

/// Secrets that stay in a seed do not stop a database, but everybody who looks is told.
fn wipe(seed: &Seed, board: &Board) {
    // No secret is taken from a network, and a token that was used is none.
    if seed.network {
        return;
    }
    if let Err(error) = wipe::wipe(seed) {
        let note = format!("secrets are still in {}: {error:#}", seed.source);
        tracing::warn!("{note}");
        board.note(note);
    }
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
    fresh.spec = fresh.spec.without_secrets();
    change::refuse_another_node(&stored.spec, &fresh.spec, &seed.place)?;
    if fresh.instance_id != stored.instance_id {
        tracing::info!("instance-id changed from {} to {}: no effect by itself", stored.instance_id, fresh.instance_id);
    }
    let changes = change::changes(&stored, &fresh);
    for change in &changes {
        tracing::warn!("metadata changed: {change}");
        if change.effect().is_none() {
            board.note(format!("changed in metadata but not applied: {}", change.path));
        }
    }
    let mut merged = stored.clone();
    merged.spec.client_networks = fresh.spec.client_networks;
    merged.spec.members = fresh.spec.members;
    merged.spec.tweaks = fresh.spec.tweaks;
    merged.spec.postgres = fresh.spec.postgres;
    merged.config = fresh.config;
    merged.ignored = fresh.ignored;
    remember(layout, &stored, &merged, founding).map_err(|error| unwritable(layout, &error))?;
    // After the passwords in it are kept, and only now that it is known to be this node's.
    wipe(&seed, board);
    Ok(merged)
}

/// Whether a seed's intermediate replaces the present one. A seed on a medium that cannot be written comes again at every
/// boot, long after it was outdated.
fn is_newer(new: &Intermediate, secrets: &Secrets) -> bool {
    let Some(present) = &secrets.intermediate else { return false };
    let ends = |cert: &str| pki::ends_pem(cert).ok();
    let newer = ends(&new.cert) > ends(&present.cert);
    let issued = pki::is_issued_by(&new.cert, &secrets.ca).unwrap_or(false);
    if newer && !issued {
        tracing::warn!("the seed's intermediate certificate is ignored: the cluster's root did not sign it");
    }
    newer && issued
}

/// Keeps what the seed changed. Until Patroni has the cluster-wide part, the specification it works with is kept, too.
fn remember(layout: &Layout, stored: &Accepted, merged: &Accepted, founding: Option<Founding>) -> Result<()> {
    if let Some(founding) = founding {
        let mut secrets: Secrets = durable::read_json(&layout.secrets())?.context("secrets.json is gone")?;
        let before = secrets.clone();
        secrets.roles.extend(founding.roles);
        if secrets.roles != before.roles {
            tracing::warn!("passwords of roles changed (set when this node leads)");
        }
        secrets.joiners = founding.joiners;
        if is_newer(&founding.intermediate, &secrets) {
            tracing::warn!("a new intermediate certificate: this node's own are issued anew");
            secrets.intermediate = Some(founding.intermediate);
        }
        if secrets.joiners != before.joiners {
            tracing::warn!("nodes that may join: {}", Vec::from_iter(secrets.joiners.keys().cloned()).join(", "));
        }
        if secrets != before {
            durable::write_json(&layout.secrets(), &secrets, 0o600)?;
        }
    }
    if merged == stored {
        return Ok(());
    }
    if merged.spec.postgres != stored.spec.postgres && !layout.previous_spec().exists() {
        durable::write_json(&layout.previous_spec(), &stored.spec, 0o600)?;
    }
    durable::write_json(&layout.spec(), merged, 0o600)
}

/// The same disk in another machine may be a clone of a living node: start nothing.
fn check_machine(layout: &Layout, facts: &Facts) -> Result<(), Vec<Problem>> {
    let path = layout.identity();
    let unreadable =
        |e: anyhow::Error| vec![Problem::new(format!("{e:#}"), path.display().to_string(), "check the data disk")];
    let identity: Option<Identity> = durable::read_json(&path).map_err(unreadable)?;
    let Some(identity) = identity else {
        // Removed by somebody who made sure: this is the machine from now on.
        let identity = Identity { machine: facts.machine.clone() };
        return durable::write_json(&path, &identity, 0o600).map_err(|error| unwritable(layout, &error));
    };
    if identity.machine.is(&facts.machine) {
        return Ok(());
    }
    let what = "this disk belongs to another machine: it may be a clone of a node that is alive";
    let remedy = format!(
        "make sure the old machine is off for good, then remove {} and restart firstboot.service",
        path.display()
    );
    Err(vec![Problem::new(what, path.display().to_string(), remedy)])
}

impl Accepted {
    /// How problems name another file of the same seed.
    pub fn source_of(&self, file: &str) -> String {
        let directory = self.source.strip_prefix("NoCloud, ").unwrap_or(&self.source);
        format!("{directory}/{file}")
    }
}

#[cfg(test)]
mod tests;
