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
    // As this program itself was built: another profile would build every dependency a second time.
    let cargo = |what: &[&str]| {
        let cargo = Cmd::new(&table::CARGO).args(["test", "--release", "--workspace", "--no-fail-fast"]);
        cargo.args(what).current_dir(workspace::root())
    };
    let own: Vec<&str> = args.test_args.iter().map(String::as_str).collect();
    if args.fast {
        return Ok(cargo(&own).interactive()?.success());
    }
    let (image, tree) = image::bake(ui)?;
    let tests = |what: &[&str]| {
        let run = cargo(what).env(image::VARIABLE, &image).env(image::ETCD_VARIABLE, tree.join("usr/bin/etcd"));
        run.env(image::HAPROXY_VARIABLE, tree.join("usr/sbin/haproxy"))
    };
    if !own.is_empty() {
        return Ok(tests(&own).interactive()?.success());
    }
    let mut passed = cargo(&["--no-run"]).interactive()?.success() && side_by_side(&tests, ui)?;
    passed &= tests(&["--test", ALONE]).interactive()?.success();
    passed &= tests(&["--doc"]).interactive()?.success();
    // `ignored` are those that `cargo test` alone could not run: root, two minutes each, the machine to themselves.
    passed &= tests(&["--", "--ignored", "--test-threads=1"]).interactive()?.success();
    Ok(passed)
}

/// Suites with one cluster at a time, which wait for it most of the time: they run beside the others.
const BESIDE: [&str; 3] = ["crash", "layout", "update"];
/// Has three clusters at a time, and measures what they do when little else does.
const ALONE: &str = "chaos";

/// These suites, as `cargo test` wants them named.
fn named<'a>(suites: &[&'a String]) -> Vec<&'a str> {
    suites.iter().flat_map(|suite| ["--test", suite.as_str()]).collect()
}

/// Runs everything, in two halves at a time; the second one's words come when the first has ended.
fn side_by_side(tests: &(impl Fn(&[&str]) -> Cmd + Sync), ui: &Ui) -> anyhow::Result<bool> {
    let suites = workspace::suites()?;
    let (beside, rest): (Vec<_>, Vec<_>) =
        suites.iter().filter(|suite| *suite != ALONE).partition(|suite| BESIDE.contains(&suite.as_str()));
    anyhow::ensure!(beside.len() == BESIDE.len(), "of {BESIDE:?} there are only {beside:?} under tests/tests");
    let first = [vec!["--lib", "--bins"], named(&rest)].concat();
    let second = named(&beside);
    ui.note(format!("beside these, their words follow at the end: {}", BESIDE.join(", ")));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| tests(&second).captured());
        let first = tests(&first).interactive();
        let second = second.join().map_err(|_| anyhow::anyhow!("the thread beside panicked"))??;
        ui.note(format!("{}{}", String::from_utf8_lossy(&second.stderr), String::from_utf8_lossy(&second.stdout)));
        Ok(first?.success() && second.status.success())
    })
}
