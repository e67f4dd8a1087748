//! `just repro [RECIPE]`: bakes a recipe in every format twice, from two copies of the sources, each with an agent of its own, with all that
//! must not matter changed in between; on a difference says which file differs and how, and keeps both. Needs root.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use pgkiln::cache::Cache;
use pgkiln::cli::default_cache_dir;
use pgkiln::progress::Ui;
use pgkiln_tests::repro::{Conditions, Place, Unpacker, differences};

#[derive(Debug, Parser)]
struct Cli {
    /// Name of the recipe, below images/
    #[arg(default_value = "debian-13")]
    recipe: String,
    /// Install this file instead of building the agent twice: several minutes less
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

fn main() -> ExitCode {
    let ui = Ui::new(false, std::env::var_os("PGKILN_TEST_CACHE").map_or_else(default_cache_dir, Into::into));
    match run(&Cli::parse(), &ui) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            pgkiln::cli::report(&error, false);
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Cli, ui: &Ui) -> anyhow::Result<bool> {
    let cache = Cache::open(ui.cache_dir())?;
    let work = cache.work_dir("repro-")?;
    let agent = args.agent.as_ref().map(std::path::absolute).transpose()?;
    let here = Place { agent, ..Place::here(&args.recipe, &cache) };
    let steps = ui.steps(3);
    let step = steps.start("bake as usual");
    let first = Conditions::USUAL.bake(&here, work.path())?;
    step.done();
    let step = steps.start("bake elsewhere");
    let elsewhere = here.elsewhere(&work.path().join("another place")).context("copying the sources")?;
    let second = Conditions::OTHER.bake(&elsewhere, work.path())?;
    step.done();
    let step = steps.start("compare");
    let tools = || here.tools();
    let unpacker = Unpacker { tools: &tools, work: &work.path().join("unpacked") };
    let found = differences(&first, &second, &unpacker)?;
    step.done();
    if found.is_empty() {
        let sums = fs_err::read_to_string(first.join("SHA256SUMS"))?;
        ui.say(sums.trim_end());
        ui.say(format!("{} outputs, the same bytes in both worlds:", sums.lines().count()));
        [Conditions::USUAL, Conditions::OTHER].iter().for_each(|world| ui.say(format!("  {world}")));
        return Ok(true);
    }
    found.iter().for_each(|line| ui.say(line));
    let kept = work.keep();
    ui.say(format!("{} differences; both bakes are kept in {}", found.len(), kept.display()));
    Ok(false)
}
