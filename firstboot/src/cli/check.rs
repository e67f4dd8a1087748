//! `check` and `plan`: everything a first boot would refuse, without changing anything.

use std::path::PathBuf;

use fs_err as fs;

use super::Outcome;
use crate::datasource::{self, Seed};
use crate::facts::Facts;
use crate::image_info::ImageInfo;
use crate::layout::Layout;
use crate::plan::{self, Desired};
use crate::problem::Problem;
use crate::profile::Profile;
use crate::spec::Secrets;
use crate::state::State;
use crate::stored::{self, Accepted};

/// Where the metadata is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Read this user-data instead of asking the datasources
    #[arg(long, value_name = "FILE")]
    pub(super) user_data: Option<PathBuf>,
}

/// The seed the arguments name.
pub(super) fn seed(layout: &Layout, args: &Args) -> Result<Seed, Vec<Problem>> {
    if let Some(path) = &args.user_data {
        let place = path.display().to_string();
        let user_data = fs::read(path)
            .map_err(|e| vec![Problem::new(format!("unreadable: {e}"), &place, "name a readable file")])?;
        let instance_id = "none".to_owned();
        return Ok(Seed { source: place.clone(), place, user_data, instance_id, ..Seed::default() });
    }
    let found = datasource::find(layout).map_err(|problem| vec![problem])?;
    found.ok_or_else(|| {
        let remedy = "put a seed into var/lib/cloud/seed/nocloud, or name a file with --user-data";
        vec![Problem::new("no metadata found", layout.root().display().to_string(), remedy)]
    })
}

/// What the node would run: stored once accepted, else the seed.
fn specification(layout: &Layout, args: &Args) -> Result<(Accepted, Secrets), Vec<Problem>> {
    let damaged =
        |e: anyhow::Error| vec![Problem::new(format!("{e:#}"), layout.lib().display().to_string(), "check the disk")];
    if args.user_data.is_none()
        && let Some(accepted) = crate::durable::read_json(&layout.spec()).map_err(damaged)?
        && let Some(secrets) = crate::durable::read_json(&layout.secrets()).map_err(damaged)?
    {
        return Ok((accepted, secrets));
    }
    let seed = seed(layout, args)?;
    let (mut accepted, founding) = stored::read_seed(&seed)?;
    let secrets = stored::require_secrets(&accepted.spec, founding, &seed)?;
    accepted.spec = accepted.spec.without_secrets();
    Ok((accepted, secrets))
}

/// Everything that determines what the node would become.
pub(super) fn desired(layout: &Layout, args: &Args) -> Result<Desired, Vec<Problem>> {
    let (accepted, secrets) = specification(layout, args)?;
    let image = ImageInfo::load(layout).map_err(super::problems)?;
    let profile = Profile::load(layout, accepted.spec.role).map_err(super::problems)?;
    Ok(Desired { accepted, secrets, image, profile })
}

fn compute(layout: &Layout, args: &Args) -> Result<(plan::Plan, Accepted), Vec<Problem>> {
    let desired = desired(layout, args)?;
    let state = State::load(layout).map_err(super::problems)?;
    let plan = plan::plan(&desired, &Facts::gather(layout), &state)?;
    Ok((plan, desired.accepted))
}

/// Prints the plan.
pub(super) fn plan(layout: &Layout, args: &Args, json: bool) -> Outcome {
    let (plan, _) = compute(layout, args)?;
    if json {
        let steps = plan.steps.iter().map(|step| {
            let files: Vec<_> = step.action.files().iter().map(|file| &file.path).collect();
            serde_json::json!({"id": step.id, "due": format!("{:?}", step.due).to_lowercase(),
                "summary": step.summary, "input_digest": step.digest, "files": files})
        });
        println!("{}", serde_json::json!({"schema": 1, "steps": steps.collect::<Vec<_>>()}));
    } else {
        print!("{plan}");
    }
    Ok(())
}

/// Checks the metadata alone: works on any machine, with or without an image.
pub(super) fn check(layout: &Layout, args: &Args, json: bool) -> Outcome {
    let (accepted, ignored) = if layout.image_json().exists() {
        let (_, accepted) = compute(layout, args)?;
        let ignored = accepted.ignored.clone();
        (accepted, ignored)
    } else {
        let (accepted, _) = specification(layout, args)?;
        let ignored = accepted.ignored.clone();
        (accepted, ignored)
    };
    let spec = &accepted.spec;
    if json {
        println!("{}", serde_json::json!({"ok": true, "spec": spec, "ignored_keys": ignored}));
        return Ok(());
    }
    println!("{}: good: {} {} in cluster {}", accepted.source, spec.role.name(), spec.slot, spec.cluster.name);
    for key in ignored {
        println!("  ignored: `{}` (line {})", key.key, key.line);
    }
    Ok(())
}
