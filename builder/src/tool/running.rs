//! A program that runs beside us.

use std::process::{Child, ChildStdout, ExitStatus};

use anyhow::Context;

use super::{Failed, Tool};

/// A program that is running; dropping it kills and reaps it, so an early return leaves nothing behind.
#[derive(Debug)]
pub struct Running {
    pub(super) child: Child,
    pub(super) command: String,
    pub(super) tool: Tool,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// The pipe of [`Cmd::spawn_piped`]; `None` the second time.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end; the exit status is data, not an error.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.wait().with_context(|| format!("waiting for `{}`", self.command))
    }

    /// Waits for the end; anything but success is an error. Its stderr is wherever [`Cmd::spawn`] sent it.
    pub fn wait_success(mut self) -> anyhow::Result<()> {
        let status = self.wait()?;
        if status.success() {
            return Ok(());
        }
        let (program, why, command) = (self.tool.name, self.tool.why, self.command.clone());
        Err(Failed { program, command, why, status, stderr: String::new() }.into())
    }

    /// The exit status if it has ended already.
    pub fn try_wait(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("asking for `{}`", self.command))
    }

    /// Kills it with `SIGKILL` and reaps it.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill().with_context(|| format!("killing `{}`", self.command))?;
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
