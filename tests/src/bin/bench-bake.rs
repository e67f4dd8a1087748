//! `cargo run --release --package pgkiln-tests --bin bench-bake -- [RUNS]`: bake against mmdebstrap with the same packages in
//! the same run, packages and tool tree cached, everything else cold. Prints a table of medians. Needs root.
//!
//! The comparison is in mmdebstrap's favour: its packages come from the local disk, and it stops at a directory, while a
//! bake also cleans, lints, compresses the root image and writes the manifest.

use std::time::Instant;

use anyhow::Context;
use pgkiln::bake::{self, Options};
use pgkiln::cache::Cache;
use pgkiln::cli::default_cache_dir;
use pgkiln::lock::Recipe;
use pgkiln::lock::relock::fetch_or_relock;
use pgkiln::progress::Ui;
use pgkiln_tests::plot::median;
use pgkiln_tests::reference::Reference;
use pgkiln_tests::workspace;

fn main() -> anyhow::Result<()> {
    let runs: usize = std::env::args().nth(1).map_or(Ok(3), |text| text.parse()).context("RUNS is a number")?;
    let cache = Cache::open(std::env::var_os("PGKILN_TEST_CACHE").map_or_else(default_cache_dir, Into::into))?;
    let recipe = Recipe::load(&workspace::image("debian-13"))?.locked()?;
    let recipe = fetch_or_relock(recipe, &cache, &|_| ())?.recipe;
    let work = cache.work_dir("bench-")?;
    let reference = Reference::new(&recipe, &cache, &work.path().join("archive"))?;
    let agent = work.path().join("agent");
    fs_err::write(&agent, "#!/bin/sh\n")?;
    let ui = Ui::silent(cache.root().to_owned());
    let options = |fresh| Options {
        agent: Some(agent.clone()),
        fresh,
        relock: true,
        ..Options::new(workspace::image("debian-13"), work.path().join("out"))
    };
    // The first one also makes the tool tree, which is not measured.
    let baked = bake::bake(&options(false), &ui)?;
    println!("root image: {:.1} MB", baked.root_bytes as f64 / 1e6);

    let (mut fresh, mut again, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs {
        fresh.push(bake::bake(&options(true), &ui)?.elapsed.as_secs_f64());
        fs_err::write(&agent, format!("#!/bin/sh\n# {run}\n"))?;
        again.push(bake::bake(&options(false), &ui)?.elapsed.as_secs_f64());
        let target = work.path().join("reference");
        let started = Instant::now();
        reference.make(&target)?;
        theirs.push(started.elapsed().as_secs_f64());
        fs_err::remove_dir_all(&target)?;
    }
    println!("{:34} {:>8}  runs", "", "median");
    for (name, seconds) in
        [("mmdebstrap, directory", &theirs), ("bake --fresh", &fresh), ("bake, changed agent", &again)]
    {
        let all: Vec<String> = seconds.iter().map(|one| format!("{one:.1}")).collect();
        println!("{name:34} {:7.1}s  {}", median(seconds), all.join(" "));
    }
    println!("bake / mmdebstrap: {:.2}", median(&fresh) / median(&theirs));
    Ok(())
}
