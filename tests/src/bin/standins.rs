//! Serves stand-in archives for an Ubuntu recipe, so that it can be locked and baked by hand where its archives cannot be
//! reached: `cargo run --release -p pgkiln-tests --bin standins -- ubuntu-24.04-percona-17`.

use std::process::ExitCode;

use clap::Parser;
use pgkiln::cache::Cache;
use pgkiln::progress::Ui;
use pgkiln_tests::standin::{RECIPES, Recipe, STATEMENT, Served};
use pgkiln_tests::workspace;

/// Serve stand-ins for the archives of a recipe, until standard input ends.
#[derive(Debug, Parser)]
#[command(name = "standins", after_help = STATEMENT)]
struct Args {
    /// The recipe's name
    #[arg(value_parser = RECIPES.each_ref().map(|recipe| recipe.name))]
    recipe: String,
}

fn main() -> ExitCode {
    let ui = Ui::new(false, pgkiln::cli::default_cache_dir());
    match run(&Args::parse(), &ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            pgkiln::cli::report(&error, false);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let Some(recipe) = Recipe::find(&args.recipe) else { return Ok(()) };
    let served = Served::start(recipe, &Cache::open(ui.cache_dir())?, ui)?;
    let (image, overlay) = (workspace::image(recipe.name), served.overlay.display());
    let lock = served.work().join("image.lock");
    ui.say(format!("\n{STATEMENT}\n"));
    for command in ["lock", "bake"] {
        ui.say(format!("pgkiln {command} {} --overlay {overlay} --lock {}", image.display(), lock.display()));
    }
    ui.say("\nserved until standard input ends (Ctrl-D)");
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}
