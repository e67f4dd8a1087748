//! `pgkiln demo`: see [`crate::demo`].

use std::path::{Path, PathBuf};

use crate::demo::{self, Options};
use crate::doctor::Install;
use crate::problem::Problem;
use crate::progress::Ui;

/// Arguments of `pgkiln demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the cluster up at the end and say how to connect
    #[arg(long)]
    keep: bool,
    /// Install missing packages without asking
    #[arg(long)]
    yes: bool,
    /// Directory of the image to bake [default: images/debian-13 of this checkout]
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let image = match args.image {
        Some(image) => image,
        None => default_image(&std::env::current_dir()?)?,
    };
    let install = if args.yes { Install::Yes } else { Install::Ask };
    let outcome = demo::run(&Options { image, keep: args.keep, install }, ui)?;
    ui.result(&outcome)
}

/// The image of the checkout that `cwd` is in.
fn default_image(cwd: &Path) -> Result<PathBuf, Problem> {
    let found = cwd.ancestors().map(|dir| dir.join("images/debian-13")).find(|dir| dir.join("image.toml").exists());
    found.ok_or_else(|| {
        let remedy = "run it inside a checkout of pgkiln, or name an image with --image DIR";
        Problem::new("there is no images/debian-13 here", cwd.display().to_string(), remedy)
    })
}
