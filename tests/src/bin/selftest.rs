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
use pgkiln_tests::{binary, image, workspace};

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
    /// Also boot the machines that not every run has time for: installer, network boot, live nodes, updates of a disk
    #[arg(long, conflicts_with = "fast")]
    machines: bool,
    /// Further arguments for `cargo nextest run`, for instance a test's name
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
    let purposes: &[Purpose] = if args.fast {
        &[Purpose::Bake]
    } else {
        &[Purpose::Bake, Purpose::Lab, Purpose::Machines, Purpose::Netboot, Purpose::Tests]
    };
    let check = ui.step("doctor");
    doctor::ensure(purposes, install, ui).context("checking this host; `cargo selftest --fast` needs less")?;
    check.done();
    nextest(install, ui)?;
    let programs = ui.step("programs");
    binary::build_all();
    programs.done();
    let own: Vec<&str> = args.test_args.iter().map(String::as_str).collect();
    if args.fast {
        return Ok(tests().args(own).interactive()?.success());
    }
    let (image, tree) = image::bake(ui)?;
    let tests = || {
        let run = tests().env(image::VARIABLE, &image).env(image::ETCD_VARIABLE, tree.join("usr/bin/etcd"));
        run.env(image::HAPROXY_VARIABLE, tree.join("usr/sbin/haproxy"))
    };
    // `ignored` are those that `cargo test` alone could not run: root, and minutes each.
    let profile = if args.machines { "machines" } else { "default" };
    let passed = tests().args(["--run-ignored", "all", "--profile", profile]).args(&own).interactive()?.success();
    Ok(passed && (!own.is_empty() || cargo(&["test", "--doc"]).interactive()?.success()))
}

/// Cargo for all packages, in the profile this program itself was built in: another one would build every dependency a
/// second time.
fn cargo(what: &[&str]) -> Cmd {
    Cmd::new(&table::CARGO).outside_cargo().args(what).args(["--release", "--workspace"]).current_dir(workspace::root())
}

/// The tests; which of them may run beside which, and for how long: `.config/nextest.toml`.
fn tests() -> Cmd {
    cargo(&["nextest", "run", "--no-tests", "fail"])
}

/// Tests that hang have to be ended and named; cargo's own runner does neither.
fn nextest(install: Install, ui: &Ui) -> anyhow::Result<()> {
    let is_there =
        || Cmd::new(&table::CARGO).args(["nextest", "--version"]).captured().is_ok_and(|c| c.status.success());
    if is_there() {
        return Ok(());
    }
    const GET: [&str; 3] = ["install", "--locked", "cargo-nextest"];
    anyhow::ensure!(
        install == Install::Yes,
        "cargo-nextest, which runs the tests, is missing: `cargo {}` (some minutes), or `cargo selftest --yes`",
        GET.join(" ")
    );
    let step = ui.step(format!("cargo {}", GET.join(" ")));
    Cmd::new(&table::CARGO).args(GET).run().context("installing what runs the tests")?;
    step.done();
    Ok(())
}
