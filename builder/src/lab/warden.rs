//! The outermost process: takes the name, starts the lab's PID namespace, and removes what the kernel leaves.
//!
//! It has one thread: after `unshare(CLONE_NEWPID)` the kernel refuses new ones.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::Stdio;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};

use super::config::Options;
use super::{Stage, cgroup, registry};
use crate::problem::Problem;
use crate::tool::{Cmd, Running, Tool};

/// Ourselves: a stage is this program again.
const PGKILN: Tool = Tool { name: "pgkiln", package: "pgkiln", minimum: None, why: "supervising the lab" };

/// The command of a stage, with our standard input.
pub(super) fn stage(stage: Stage, name: &str) -> anyhow::Result<Cmd> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("sharing standard input")?;
    let stage = format!("{stage:?}").to_lowercase();
    Ok(program(std::env::current_exe()?).args([&stage, name]).stdin_file(stdin.into()))
}

/// `pgkiln lab supervise`, to which stage and name are added.
pub(super) fn program(program: std::path::PathBuf) -> Cmd {
    Cmd::at(&PGKILN, program).args(["lab", "supervise"])
}

/// Runs the lab to its end.
pub(super) fn run(name: &str) -> anyhow::Result<()> {
    let _ = nix::unistd::setsid();
    let options: Options = serde_json::from_str(&first_line()?).context("reading the lab's options")?;
    let held = registry::hold(name)?.ok_or_else(|| in_use(name))?;
    let outcome = supervised(&options);
    let keep = options.keep_marker().exists();
    if let Ok(cgroup) = cgroup::of_lab(name) {
        let _ = cgroup::kill(&cgroup);
        cgroup::remove(&cgroup);
    }
    remove_data(&options, keep);
    held.release();
    outcome
}

fn in_use(name: &str) -> Problem {
    Problem::new(
        format!("a lab named `{name}` is up already"),
        "",
        format!("choose another name, or remove it with `pgkiln lab down {name}`"),
    )
}

/// The options come first on standard input; what follows is the leash, which the supervisor reads.
fn first_line() -> anyhow::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("sharing standard input")?;
    let mut stdin = std::fs::File::from(stdin);
    while stdin.read(&mut byte)? == 1 && byte != [b'\n'] {
        line.push(byte[0]);
    }
    String::from_utf8(line).context("the lab's options are not text")
}

fn supervised(options: &Options) -> anyhow::Result<()> {
    fs_err::create_dir_all(options.scratch())?;
    let log = fs_err::File::create(options.state_dir.join("supervisor.log"))?;
    // From here on nobody's terminal is kept open by the lab.
    nix::unistd::dup2_stderr(&log).context("opening supervisor.log")?;
    registry::store(options)?;
    // Data kept by an earlier `down --keep-data` is lost only by asking for it.
    if options.state_dir.join("nodes").exists() {
        fs_err::write(options.keep_marker(), "")?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).context("making the lab's namespaces")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    cgroup::mount_fresh()?;
    cgroup::sweep_stale()?;
    fs_err::create_dir(cgroup::of_lab(&options.name)?)?;

    // Blocked before the child exists, so that neither its end nor a request to end is missed.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("blocking signals")?;
    let init = stage(Stage::Init, &options.name)?.dies_with_us();
    wait(init.spawn(Stdio::inherit(), Stdio::inherit())?, &signals)
}

/// Waits for init; a signal to end kills it, and with it the lab.
fn wait(mut init: Running, signals: &SigSet) -> anyhow::Result<()> {
    while init.try_wait()?.is_none() {
        if signals.wait().context("waiting for signals")? != Signal::SIGCHLD {
            init.kill()?;
        }
    }
    Ok(())
}

/// Removes what the lab wrote, and its directory unless something else is in there.
fn remove_data(options: &Options, keep: bool) {
    let _ = fs_err::remove_dir(options.scratch());
    let _ = fs_err::remove_file(options.keep_marker());
    if keep {
        return;
    }
    let _ = fs_err::remove_dir_all(options.state_dir.join("nodes"));
    let _ = fs_err::remove_file(options.state_dir.join("supervisor.log"));
    let _ = fs_err::remove_file(options.own_key());
    let _ = fs_err::remove_dir(&options.state_dir);
}
