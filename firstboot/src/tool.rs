//! The one door to external programs: arguments as a vector, nothing inherited on stdin, a time limit, and an error
//! that carries the command line (never its input, which may be secret) and the end of stderr.

use std::ffi::OsString;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;

/// How a program failed.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` {outcome}{}{stderr}", if stderr.is_empty() { "" } else { ": " })]
pub struct Failed {
    /// The command line, ready to be pasted.
    pub command: String,
    /// `exited with 1`, `was killed by signal 9`, `did not finish in 30 s`.
    pub outcome: String,
    /// Last lines of stderr.
    pub stderr: String,
    /// Exit status if it exited.
    pub code: Option<i32>,
}

/// One run of a program.
#[derive(Debug, Clone)]
pub struct Tool {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    user: Option<(u32, u32)>,
    limit: Duration,
    answers: Vec<i32>,
}

impl Tool {
    /// `program`, found in `$PATH` unless it is a path.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            stdin: None,
            user: None,
            limit: Duration::from_secs(60),
            answers: vec![0],
        }
    }

    /// Another program with the same arguments.
    pub fn program(mut self, program: impl Into<OsString>) -> Self {
        self.program = program.into();
        self
    }

    /// Adds one argument. Never a secret: argv is world-readable.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((key.into(), value.into()));
        self
    }

    /// What the program reads from stdin (default: nothing).
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Runs as another user.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Kills the program after `limit` (default 60 s).
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Exit statuses that are answers rather than failures, besides 0.
    pub fn answers(mut self, codes: &[i32]) -> Self {
        self.answers.extend(codes);
        self
    }

    /// Runs to the end and returns stdout; any other end than exit status 0 (or another answer) is [`Failed`].
    pub async fn run(self) -> Result<String> {
        let mut child = self.command().spawn().with_context(|| format!("starting `{self}`"))?;
        if let (Some(input), Some(mut pipe)) = (self.stdin.clone(), child.stdin.take()) {
            // A program that exits without reading everything closes the pipe; its status says more than EPIPE.
            let _ = pipe.write_all(&input).await;
        }
        let output = match tokio::time::timeout(self.limit, child.wait_with_output()).await {
            Ok(output) => output.with_context(|| format!("waiting for `{self}`"))?,
            Err(_) => {
                let outcome = format!("did not finish in {} s", self.limit.as_secs());
                return Err(Failed { command: self.to_string(), outcome, stderr: String::new(), code: None }.into());
            }
        };
        if !output.status.code().is_some_and(|code| self.answers.contains(&code)) {
            return Err(Failed {
                command: self.to_string(),
                outcome: outcome(output.status),
                stderr: tail(&output.stderr),
                code: output.status.code(),
            }
            .into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that starts programs")]
    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.envs.iter().map(|(k, v)| (k, v)))
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.to_string_lossy())?;
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@,+".contains(c);
            if !arg.is_empty() && arg.chars().all(plain) { write!(f, " {arg}")? } else { write!(f, " '{arg}'")? }
        }
        Ok(())
    }
}

/// `systemctl` with arguments.
pub fn systemctl(args: &[&str]) -> Tool {
    Tool::new("systemctl").args(args.iter().copied())
}

fn outcome(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended without a status".to_owned(),
    }
}

fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<_> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn failure_names_command_status_and_stderr() {
        let error = block_on(Tool::new("sh").args(["-c", "echo no such thing >&2; exit 3"]).run()).unwrap_err();
        let failed = error.downcast::<Failed>().unwrap();
        assert_eq!(failed.code, Some(3));
        assert_eq!(failed.to_string(), "`sh -c 'echo no such thing >&2; exit 3'` exited with 3: no such thing");
    }

    #[test]
    fn input_is_passed_and_never_printed() {
        let tool = Tool::new("cat").stdin("password");
        assert_eq!(tool.to_string(), "cat");
        assert_eq!(block_on(tool.run()).unwrap(), "password");
    }

    #[test]
    fn a_hanging_program_is_ended() {
        let error = block_on(Tool::new("sleep").arg("60").limit(Duration::from_millis(50)).run()).unwrap_err();
        assert!(error.to_string().contains("did not finish"), "{error}");
    }
}
