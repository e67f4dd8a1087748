//! `pgkiln doctor`: see [`crate::doctor`].

use crate::doctor::{self, Install, Purpose};
use crate::progress::Ui;

/// Arguments of `pgkiln doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the host must be able to do [default: bake,lab]
    #[arg(long = "for", value_name = "PURPOSE", value_delimiter = ',')]
    purposes: Vec<Purpose>,
    /// Install missing packages with apt-get; asks first
    #[arg(long)]
    install: bool,
    /// Do not ask before installing
    #[arg(long, requires = "install")]
    yes: bool,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let purposes = if args.purposes.is_empty() { vec![Purpose::Bake, Purpose::Lab] } else { args.purposes };
    let install = match (args.install, args.yes) {
        (false, _) => Install::No,
        (true, false) => Install::Ask,
        (true, true) => Install::Yes,
    };
    // The table is the answer in both cases; what is missing is told once more with remedies, as the error.
    let outcome = doctor::ensure(&purposes, install, ui);
    let report = match &outcome {
        Ok(report) => report,
        Err(_) => &doctor::check(&purposes, ui),
    };
    ui.say(report.table());
    if ui.json() {
        ui.result(report)?;
        return outcome.map(drop).map_err(super::AlreadyTold::in_the_result);
    }
    if let Some(command) = &report.install {
        ui.say(format!("\nTo install what is missing: {command}\n(or: pgkiln doctor --install)"));
    }
    outcome.map(drop)
}
