//! `pgkiln sign`: see [`crate::signature`].

use std::path::PathBuf;

use serde_json::json;

use crate::progress::Ui;
use crate::signature;

/// What to sign, and with what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a bake's outputs (out/debian-13)
    dir: PathBuf,
    /// Secret key of `minisign -G`; its password is asked for, or read from standard input
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let signed = signature::sign(&args.dir, &args.key)?;
    ui.say(format!("{}: {}", signed.file.display(), signed.comment));
    ui.result(&json!({ "signature": signed.file, "comment": signed.comment }))
}
