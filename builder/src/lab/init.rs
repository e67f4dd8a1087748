//! PID 1 of the lab: reaps what loses its parent, and ends with the supervisor, which ends the lab.

use std::process::Stdio;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::waitpid;

use super::{Stage, warden};

/// Runs until the supervisor ends; when this process ends the kernel kills every other process of the lab.
pub(super) fn run(name: &str) -> anyhow::Result<()> {
    SigSet::all().thread_unblock().context("unblocking signals")?;
    let supervisor = warden::stage(Stage::Supervisor, name)?.spawn(Stdio::inherit(), Stdio::inherit())?;
    loop {
        match waitpid(None, None) {
            Ok(status) if status.pid() == Some(supervisor.pid()) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for the supervisor"),
        }
    }
}
