//! What this node's settings are, and why: the values that are written, explained. Nothing is computed here that is not
//! computed for the real files; the explanation cannot say something else than what runs.

use serde::Serialize;
use serde_json::Value;

use crate::facts::Facts;
use crate::plan::Desired;
use crate::render::patroni;

pub mod hugepages;
pub mod kernel;

/// One setting with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// `postgresql` (this node), `cluster` (the same on all nodes, in etcd) or `kernel`.
    pub scope: &'static str,
    /// Its name.
    pub name: String,
    /// What is set.
    pub value: String,
    /// How it was computed, or why it is fixed.
    pub formula: String,
    /// Where the formula comes from.
    pub source: String,
    /// `formula`, `user` (the specification's parameter won) or `agent` (fixed; part of how a cluster works).
    pub by: &'static str,
    /// Why it is not in effect, if it is not.
    pub note: Option<String>,
}

/// PostgreSQL's settings as they are written for this node and, at its founding, for the cluster.
pub fn postgresql(desired: &Desired, facts: &Facts) -> Vec<Setting> {
    let scopes = [
        ("postgresql", patroni::local_parameters(desired, facts), &desired.profile.parameters),
        ("cluster", patroni::cluster_parameters(desired, facts), &desired.profile.cluster_parameters),
    ];
    let user = &desired.spec().postgres.parameters;
    let mut settings = Vec::new();
    for (scope, values, formulas) in scopes {
        for (name, value) in values {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let formula = formulas.get(&name);
            let own = user.get(&name).is_some_and(|own| *own == value);
            let (by, why, source) = match formula {
                _ if own => {
                    let instead = formula.map(|formula| format!(", instead of {} ({formula})", formula.value(facts)));
                    ("user", format!("`postgres.parameters`{}", instead.unwrap_or_default()), String::new())
                }
                Some(formula) => ("formula", formula.to_string(), formula.source.clone()),
                None => ("agent", "fixed".to_owned(), String::new()),
            };
            // A user's parameter stands in both places; once is enough.
            if scope == "cluster" && own && formula.is_none() {
                continue;
            }
            settings.push(Setting { scope, name, value, formula: why, source, by, note: None });
        }
    }
    settings
}

/// What a reader of the status should know about how this machine is set up.
pub fn notes(desired: &Desired, facts: &Facts) -> Vec<String> {
    let mut notes = Vec::new();
    if desired.profile.runs("patroni") && !facts.watchdog {
        notes.push(
            "unfenced: this machine has no watchdog (/dev/watchdog). Should Patroni hang here while this node leads, \
             nothing resets the machine; give it a watchdog device (QEMU: i6300esb) where that matters"
                .to_owned(),
        );
    }
    notes
}

/// A number of MiB as `postgresql.conf` has it: `2048MB`, `2GB`; without a unit it is blocks of 8 kB.
pub(crate) fn mebibytes(value: &Value) -> Option<u64> {
    let text = value.as_str()?.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "" => Some(number * 8 / 1024),
        "kB" => Some(number / 1024),
        "MB" => Some(number),
        "GB" => Some(number * 1024),
        "TB" => Some(number * 1024 * 1024),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{desired, facts};

    #[test]
    fn a_users_parameter_says_what_it_replaced() {
        let mut desired = desired();
        desired.accepted.spec.postgres.parameters.insert("shared_buffers".into(), "64MB".into());
        let settings = postgresql(&desired, &facts());
        let lines = ["shared_buffers", "effective_cache_size", "max_connections", "ssl"].map(|name| {
            let found = settings.iter().find(|setting| setting.name == name).unwrap();
            format!("{} {} = {} [{}] {} ({})\n", found.scope, name, found.value, found.by, found.formula, found.source)
        });
        insta::assert_snapshot!(lines.concat(), @"
        postgresql shared_buffers = 64MB [user] `postgres.parameters`, instead of 2048MB (25 % of memory, at least 32, at most 65536 MB) ()
        postgresql effective_cache_size = 6144MB [formula] 75 % of memory, at least 96 MB (Ubicloud, autobase: what the page cache will hold)
        cluster max_connections = 273 [formula] 1 for each 30 MiB of memory, at least 100, at most 1000 (Spilo)
        postgresql ssl = on [agent] fixed ()
        ");
    }

    #[test]
    fn sizes() {
        let size = |text: &str| mebibytes(&Value::from(text));
        assert_eq!((size("2048MB"), size("2 GB"), size("131072")), (Some(2048), Some(2048), Some(1024)));
        assert_eq!((size("512kB"), size("x")), (Some(0), None));
    }

    #[test]
    fn a_watchdog_or_a_note() {
        let with = Facts { watchdog: true, ..facts() };
        assert!(notes(&desired(), &with).is_empty());
        assert!(notes(&desired(), &facts())[0].starts_with("unfenced: "));
    }
}
