//! `pgkiln verify`: see [`crate::verify`].

use std::path::PathBuf;

use crate::progress::Ui;
use crate::verify;

/// What to verify.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a bake's outputs (out/debian-13)
    dir: PathBuf,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let step = ui.step("verify");
    let verified = verify::verify(&args.dir)?;
    step.done();
    ui.say(format!("{} {}: {} files are what was baked", verified.image, verified.version, verified.files));
    if let Some(root_hash) = &verified.root_hash {
        ui.say(format!("root hash {root_hash}, computed from the disk"));
    }
    ui.result(&verified)
}
