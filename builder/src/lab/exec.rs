//! Running a command in a node: `nsenter` into the lab, and from there into all namespaces of the node.
//!
//! The caller's process does it, not the supervisor, so streams, terminal, signals and exit code are the caller's own. The
//! command is in the node's PID namespace: it dies with the node.

use super::ssh::Door;
use crate::tool::{Captured, Cmd, table};

/// What a command in a node printed and how it ended.
pub type ExecOutput = Captured;

/// A command to be run in the node whose PID 1 the lab numbers `init`; the lab is the one of process `supervisor`.
pub(super) fn command(supervisor: i32, init: i32, argv: &[String]) -> Cmd {
    let entered = Cmd::new(&table::NSENTER).arg(format!("--target={init}")).args(["--all", "--"]).args(argv);
    environment(entered.wrapped_by(&table::NSENTER, [&format!("--target={supervisor}"), "--mount", "--pid", "--"]))
        .resumed()
}

/// The same in a node that is a machine. The connection that waits for the next command lives in the lab and ends with it.
pub(super) fn remote_command(supervisor: i32, door: &Door, argv: &[String], terminal: bool) -> Cmd {
    let entered = [&format!("--target={supervisor}"), "--mount", "--net", "--pid", "--"];
    environment(door.command(argv, terminal).wrapped_by(&table::NSENTER, entered))
}

fn environment(cmd: Cmd) -> Cmd {
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
    cmd.env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("TERM", terminal)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
}
