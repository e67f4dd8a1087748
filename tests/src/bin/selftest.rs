//! `cargo selftest`: everything that can be tested on this machine, with one exit code.
//!
//! It checks the host (and installs what is missing, if allowed), bakes the image once, and runs the workspace's tests with
//! the image's place in `PGKILN_TEST_IMAGE`, so that the end-to-end suites boot the very image that was baked.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::Parser;
use pgkiln::doctor::{self, Install, Purpose};
use pgkiln::progress::{Ui, seconds};
use pgkiln::tool::{Cmd, table};
use pgkiln_tests::{image, workspace};

/// Run all tests: host check, bake, unit tests, end-to-end suites as root.
#[derive(Debug, Parser)]
#[command(name = "cargo selftest")]
struct Args {
    /// Install missing packages without asking (the default if CI=true)
    #[arg(long)]
    yes: bool,
    /// Leave out what needs root and the baked image
    #[arg(long)]
    fast: bool,
    /// Further arguments for `cargo test`, for instance a test's name
    #[arg(last = true)]
    test_args: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ui = Ui::new(false, pgkiln::cli::default_cache_dir());
    let started = Instant::now();
    match run(&args, &ui) {
        Ok(true) => {
            ui.note(format!("selftest: all passed in {}", seconds(started.elapsed())));
            ExitCode::SUCCESS
        }
        Ok(false) => {
            ui.note(format!(
                "selftest: FAILED after {}; the failing tests are listed above",
                seconds(started.elapsed())
            ));
            ExitCode::FAILURE
        }
        Err(error) => {
            pgkiln::cli::report(&error, false);
            ui.note("selftest: could not run");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, ui: &Ui) -> anyhow::Result<bool> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    let install = if args.yes || ci { Install::Yes } else { Install::Ask };
    let purposes: &[Purpose] =
        if args.fast { &[Purpose::Bake] } else { &[Purpose::Bake, Purpose::Lab, Purpose::Machines, Purpose::Tests] };
    let check = ui.step("doctor");
    doctor::ensure(purposes, install, ui).context("checking this host; `cargo selftest --fast` needs less")?;
    check.done();
    let tests = |filter: &[&str]| {
        // As this program itself was built: another profile would build every dependency a second time.
        let cargo = Cmd::new(&table::CARGO).args(["test", "--release", "--workspace", "--no-fail-fast"]);
        let cargo = cargo.args(&args.test_args);
        cargo.args(filter).current_dir(workspace::root())
    };
    if args.fast {
        return Ok(tests(&[]).interactive()?.success());
    }
    let (image, tree) = image::bake(ui)?;
    let etcd = tree.join("usr/bin/etcd");
    // `ignored` are those that `cargo test` alone could not run: root, two minutes each, the machine to themselves.
    let passes: [&[&str]; 2] = [&[], &["--", "--ignored", "--test-threads=1"]];
    let mut passed = true;
    for filter in passes.into_iter().take(if args.test_args.is_empty() { 2 } else { 1 }) {
        let run = tests(filter).env(image::VARIABLE, &image).env(image::ETCD_VARIABLE, &etcd);
        let run = run.env(image::HAPROXY_VARIABLE, tree.join("usr/sbin/haproxy"));
        passed &= run.interactive()?.success();
    }
    Ok(passed)
}
