//! Profiles (`/usr/share/pgkiln/profiles/<role>.toml`): which services a role runs, in what order, and their tuning as
//! functions of the machine. Data of the agent, not code: adding a role starts with a file.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use fs_err as fs;
use serde::Deserialize;

use crate::facts::Facts;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::spec::Role;

/// What a role runs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the format.
    pub schema: u32,
    /// The role.
    pub role: Role,
    /// Components started in this order.
    pub services: Vec<String>,
    /// Fields the specification must give.
    #[serde(default)]
    pub needs: Vec<String>,
    /// Server parameters of this node.
    #[serde(default)]
    pub parameters: BTreeMap<String, Formula>,
    /// Server parameters that must be equal on all nodes; the founding node's values go to etcd.
    #[serde(default)]
    pub cluster_parameters: BTreeMap<String, Formula>,
}

/// A number as a function of memory and processors, clamped: the sum of the given terms.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Formula {
    /// This share of memory, in MiB.
    pub ram_percent: f64,
    /// One for each so many MiB of memory.
    pub ram_mib_each: Option<u64>,
    /// This many per processor.
    pub per_cpu: f64,
    /// A constant.
    pub plus: f64,
    /// Never less.
    pub min: Option<u64>,
    /// Never more.
    pub max: Option<u64>,
    /// `MB` or nothing.
    pub unit: String,
    /// Who found it out, for `firstboot tune --explain`.
    pub source: String,
}

impl Formula {
    /// The value for a machine, as it stands in `postgresql.conf`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "clamped")]
    pub fn value(&self, facts: &Facts) -> String {
        let ram = facts.memory_mib as f64;
        let each = self.ram_mib_each.map_or(0.0, |each| ram / each.max(1) as f64);
        let sum = ram * self.ram_percent / 100.0 + each + f64::from(facts.cpus) * self.per_cpu + self.plus;
        let value = (sum.max(0.0) as u64).clamp(self.min.unwrap_or(0), self.max.unwrap_or(u64::MAX));
        format!("{value}{}", self.unit)
    }
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut terms = Vec::new();
        if self.ram_percent > 0.0 {
            terms.push(format!("{} % of memory", self.ram_percent));
        }
        if let Some(each) = self.ram_mib_each {
            terms.push(format!("1 for each {each} MiB of memory"));
        }
        if self.per_cpu > 0.0 {
            terms.push(format!("{} for each processor", self.per_cpu));
        }
        if self.plus > 0.0 {
            terms.push(self.plus.to_string());
        }
        f.write_str(&terms.join(" + "))?;
        for (word, bound) in [("at least", self.min), ("at most", self.max)] {
            if let Some(bound) = bound {
                write!(f, ", {word} {bound}")?;
            }
        }
        let bounded = self.min.is_some() || self.max.is_some();
        if bounded && !self.unit.is_empty() { write!(f, " {}", self.unit) } else { Ok(()) }
    }
}

impl Profile {
    /// Reads a profile's text.
    pub fn parse(text: &str) -> Result<Self> {
        let profile: Self = toml::from_str(text)?;
        anyhow::ensure!(profile.schema == 1, "schema {} is not known", profile.schema);
        Ok(profile)
    }

    /// The profile of a role; its absence says what this image cannot do.
    pub fn load(layout: &Layout, role: Role) -> Result<Self> {
        let path = layout.profiles().join(format!("{}.toml", role.name()));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let what = format!("role `{}` is not supported by this image", role.name());
                let remedy = format!("use role `node`; {} does not exist", path.display());
                return Err(Problem::new(what, "pgkiln.role", remedy).into());
            }
            Err(e) => return Err(e.into()),
        };
        let profile = Self::parse(&text).with_context(|| format!("reading {}", path.display()))?;
        anyhow::ensure!(profile.role == role, "{}: is of role `{}`", path.display(), profile.role.name());
        Ok(profile)
    }

    /// Whether the role runs a component.
    pub fn runs(&self, component: &str) -> bool {
        self.services.iter().any(|service| service == component)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(memory_mib: u64, cpus: u32) -> String {
        let profile = Profile::parse(include_str!("../../profiles/node.toml")).unwrap();
        let facts = Facts { memory_mib, cpus, ..Facts::default() };
        let all = profile.parameters.iter().chain(&profile.cluster_parameters);
        all.map(|(name, formula)| format!("{name} = {}\n", formula.value(&facts))).collect()
    }

    #[test]
    fn tuning_of_a_small_and_a_large_machine() {
        insta::assert_snapshot!(values(1024, 1), @"
        effective_cache_size = 768MB
        maintenance_work_mem = 64MB
        max_parallel_maintenance_workers = 1
        max_parallel_workers = 2
        max_parallel_workers_per_gather = 1
        shared_buffers = 256MB
        work_mem = 4MB
        max_connections = 100
        max_worker_processes = 16
        ");
        insta::assert_snapshot!(values(262_144, 64), @"
        effective_cache_size = 196608MB
        maintenance_work_mem = 2048MB
        max_parallel_maintenance_workers = 8
        max_parallel_workers = 64
        max_parallel_workers_per_gather = 8
        shared_buffers = 65536MB
        work_mem = 524MB
        max_connections = 1000
        max_worker_processes = 72
        ");
    }
}
