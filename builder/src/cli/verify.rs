//! `pgkiln verify`: see [`crate::verify`].

use std::path::PathBuf;

use crate::progress::Ui;
use crate::verify::{self, Signed};

/// What to verify.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of a bake's outputs (out/debian-13)
    dir: PathBuf,
    /// Public key of `minisign -G` (a file, or the key itself) that must have signed the sums (`pgkiln sign`)
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let step = ui.step("verify");
    let verified = verify::verify(&args.dir, args.public_key.as_deref())?;
    step.done();
    ui.say(format!("{} {}: {} files are what was baked", verified.image, verified.version, verified.files));
    if !verified.unlisted.is_empty() {
        let names = verified.unlisted.join(", ");
        ui.say(format!("not of this bake, and not looked at: {names} (`--format` names all that a bake is to make)"));
    }
    if let Some(root_hash) = &verified.root_hash {
        ui.say(format!("root hash {root_hash}, computed from the root itself"));
    }
    ui.say(match verified.signed {
        Signed::Yes => "signed by the given key",
        Signed::Unchecked => "signed; by whom was not checked: give `--public-key`",
        Signed::No => "not signed: this says that the files fit together, not whose they are",
    });
    ui.result(&verified)
}
