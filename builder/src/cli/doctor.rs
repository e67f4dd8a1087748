//! `pgkiln doctor`: see [`crate::doctor`].

use crate::progress::Ui;

/// Arguments of `pgkiln doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: Args, ui: &Ui) -> anyhow::Result<()> {
    ui.say("");
    Ok(())
}
