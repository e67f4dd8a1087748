//! `run`, `handover`, `sql`, `backups`: what systemd and Patroni start on a node.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Outcome;
use crate::apply::After;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::run::Ended;
use crate::status::{Board, Verdict};
use crate::step::Host;

/// Exit status of failures that another attempt may cure; firstboot.service restarts on it.
const TEMPORARY: i32 = 75;

/// Runs the agent until it is stopped.
pub(super) fn run(layout: Layout) -> Outcome {
    log();
    let board = Board::new(Some(layout.status()));
    let host = Host { layout, board: board.clone() };
    let ended = runtime()?.block_on(crate::run::run(&host, crate::member::Member::new));
    let (problems, temporary, verdict) = match ended {
        Ok(After::End) => return Ok(()),
        Ok(After::StartAnew) => return start_anew(),
        Err(Ended::Refused(problems)) => (problems, false, Verdict::Bad),
        // Another version of the image would not know either.
        Err(Ended::Unasked(problems)) => (problems, false, Verdict::Undecided),
        Err(Ended::Failed(problems)) => (problems, true, Verdict::Undecided),
        Err(Ended::Broken(problems)) => (problems, true, Verdict::Bad),
    };
    if let Some(first) = problems.first() {
        board.failed(first.clone(), verdict);
        crate::notify::notify(&format!("STATUS={}", first.what));
    }
    if temporary {
        super::report(&problems, false);
        std::process::exit(TEMPORARY);
    }
    tracing::error!("nothing was started");
    Err(problems)
}

/// The same process, from its beginning: for systemd nothing ends.
fn start_anew() -> Outcome {
    let arguments: Vec<_> = std::env::args_os().filter_map(|text| CString::new(text.into_vec()).ok()).collect();
    let failed = nix::unistd::execv(c"/proc/self/exe", &arguments).err();
    let why = failed.map(|error| error.to_string()).unwrap_or_default();
    Err(super::problems(anyhow::anyhow!("the agent cannot start itself anew: {why}")))
}

/// Hands leadership over before services stop.
pub(super) fn handover(layout: &Layout) -> Outcome {
    log();
    runtime()?.block_on(crate::handover::run(layout)).map_err(super::problems)
}

/// Waits for the boot's verdict: success is good.
pub(super) fn verdict(layout: &Layout) -> Outcome {
    log();
    runtime()?.block_on(crate::verdict::wait(layout)).map_err(|problem| vec![problem])
}

/// Chooses the disk for `/var`.
pub(super) fn state_disk(layout: &Layout) -> Outcome {
    log();
    runtime()?.block_on(crate::install::state::run(layout)).map_err(super::problems)
}

/// Writes the image to a disk.
pub(super) fn install(layout: &Layout) -> Outcome {
    log();
    runtime()?.block_on(crate::install::machine::run(layout)).map_err(super::problems)
}

/// Saves what HAProxy knows of its servers.
pub(super) fn haproxy_states(layout: &Layout) -> Outcome {
    runtime()?.block_on(crate::proxy::save_states(layout)).map_err(super::problems)
}

/// Creates roles, databases and extensions.
pub(super) fn sql(layout: &Layout, connection: Option<&str>) -> Outcome {
    runtime()?.block_on(crate::sql::reconcile(layout, connection)).map_err(super::problems)
}

/// Lists the cluster's backups.
pub(super) fn backups(layout: &Layout, json: bool) -> Outcome {
    let listed = runtime()?.block_on(crate::backup::list(layout)).map_err(super::problems)?;
    match json {
        true => println!("{}", serde_json::to_string(&listed).unwrap_or_default()),
        false => print!("{listed}"),
    }
    Ok(())
}

/// One thread: the agent waits far more than it computes.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Vec<Problem>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| super::problems(error.into()))
}

fn log() {
    // Not `EnvFilter`: its patterns would bring an engine for regular expressions into the image.
    let asked = std::env::var("FIRSTBOOT_LOG").map(|text| text.parse::<Targets>());
    let filter = match &asked {
        Ok(Ok(filter)) => filter.clone(),
        _ => Targets::new().with_default(LevelFilter::INFO),
    };
    // The journal adds time and origin itself.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    tracing_subscriber::registry().with(lines.without_time().with_ansi(false)).with(filter).init();
    if let Ok(Err(error)) = asked {
        tracing::warn!("FIRSTBOOT_LOG is left aside, `info` is meant: {error}");
    }
}
