//! `inspect`: what the datasource says, as one JSON object; secrets are shown as their digest only.

use std::process::ExitCode;

use sha2::{Digest, Sha256};

use super::check;
use crate::facts::Facts;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::{render, stored, user_data};

/// Prints the object; exit 1 if it lists errors.
pub(super) fn run(layout: &Layout, args: &check::Args, json: bool) -> ExitCode {
    let (value, good) = inspect(layout, args);
    let text = if json { serde_json::to_string(&value) } else { serde_json::to_string_pretty(&value) };
    println!("{}", text.unwrap_or_default());
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn inspect(layout: &Layout, args: &check::Args) -> (serde_json::Value, bool) {
    let seed = match check::seed(layout, args) {
        Ok(seed) => seed,
        Err(problems) => return (serde_json::json!({"datasource": null, "errors": errors(&problems)}), false),
    };
    let text = user_data::decode(&seed.user_data, &seed.place).unwrap_or_default();
    let sha256: String = Sha256::digest(&seed.user_data).iter().map(|byte| format!("{byte:02x}")).collect();
    let kind = if text.starts_with("#cloud-config") { "text/cloud-config" } else { "unknown" };
    let mut value = serde_json::json!({
        "datasource": seed.source,
        "instance_id": seed.instance_id,
        "hostname": seed.hostname,
        "fqdn": null,
        "ssh_keys": [],
        "user_data": [{"type": kind, "bytes": seed.user_data.len(), "sha256": sha256}],
        "spec": null,
        "network": {"source": null, "files": {}},
        "ignored_keys": [],
        "errors": [],
    });
    let accepted = match stored::read_seed(&seed) {
        Ok((accepted, _)) => accepted,
        Err(problems) => {
            value["errors"] = errors(&problems);
            return (value, false);
        }
    };
    let spec = accepted.spec.without_secrets();
    value["hostname"] = accepted.config.hostname.clone().into();
    value["fqdn"] = accepted.config.fqdn.clone().into();
    value["ssh_keys"] = accepted.config.ssh_authorized_keys.clone().into();
    value["spec"] = serde_json::to_value(&spec).unwrap_or_default();
    value["ignored_keys"] = serde_json::to_value(&accepted.ignored).unwrap_or_default();
    let facts = Facts::gather(layout);
    let network = accepted.network_config.as_deref();
    value["network"]["source"] = if network.is_some() { "network-config" } else { "pgkiln.address" }.into();
    match render::network::files(&spec, network, &facts.links, &accepted.source_of("network-config")) {
        Ok(files) => {
            let files = files.into_iter().map(|(name, text)| (name, serde_json::Value::from(text)));
            value["network"]["files"] = files.collect::<serde_json::Map<_, _>>().into();
            (value, true)
        }
        Err(problems) => {
            value["errors"] = errors(&problems);
            (value, false)
        }
    }
}

fn errors(problems: &[Problem]) -> serde_json::Value {
    let one = |problem: &Problem| {
        let (field, line) = match problem.place.rsplit_once(':') {
            Some((place, line)) if line.parse::<u64>().is_ok() => (place.to_owned(), line.parse::<u64>().ok()),
            _ => (problem.place.clone(), None),
        };
        let message = format!("{}; hint: {}", problem.what, problem.remedy);
        serde_json::json!({"field": field, "line": line, "column": null, "message": message})
    };
    problems.iter().map(one).collect()
}
