//! The one door to host programs.
//!
//! Every program pgkiln runs is a [`Tool`] of [`table`]: its name, the oldest version that works, the package that has it
//! and the reason it is needed, so that a missing program is reported with a remedy instead of `No such file or directory`
//! and `pgkiln doctor` reads the same table. A [`Cmd`] keeps its streams apart, reads both ends at once (a child that fills
//! a pipe never hangs us), and when it fails the error carries the whole command, ready to paste, and the tail of stderr.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;

use anyhow::Context;

use crate::problem::Problem;

pub mod table;
mod version;

pub use version::Version;

/// How much of a failed program's stderr an error shows; the interesting part is at its end.
const STDERR_TAIL_LINES: usize = 20;

/// A host program: what it is needed for decides whether its absence matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Name looked up in `PATH` (and the `sbin` directories, which an ordinary user's `PATH` lacks).
    pub name: &'static str,
    /// Debian and Ubuntu package that contains it.
    pub package: &'static str,
    /// Oldest version known to work, and the arguments that print the version.
    pub minimum: Option<(&'static str, &'static [&'static str])>,
    /// Why pgkiln needs it, to be read after "needed for".
    pub why: &'static str,
}

impl Tool {
    /// Where the program is, or the problem with the package that has it.
    pub fn find(&self) -> Result<PathBuf, Problem> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(system)
            .map(|dir| dir.join(self.name))
            .find(|candidate| is_executable(candidate))
            .ok_or_else(|| {
                Problem::new(
                    format!("`{}` is not installed; it is needed for {}", self.name, self.why),
                    "this host",
                    format!("apt-get install {} (or: pgkiln doctor --install)", self.package),
                )
            })
    }

    /// Checks that the program is there and not too old; the version found, if the table asks for one.
    pub fn check(&self) -> anyhow::Result<Option<Version>> {
        self.find()?;
        let Some((minimum, args)) = self.minimum else { return Ok(None) };
        let printed = Cmd::new(self).args(args).captured()?;
        let text = String::from_utf8_lossy(&printed.stdout).into_owned() + &String::from_utf8_lossy(&printed.stderr);
        let found = Version::find_in(&text)
            .with_context(|| format!("`{} {}` printed no version number", self.name, args.join(" ")))?;
        let oldest = Version::find_in(minimum).context("a minimum version in the tool table is not a version")?;
        if found < oldest {
            return Err(Problem::new(
                format!("`{}` is version {found}, at least {oldest} is needed for {}", self.name, self.why),
                "this host",
                format!("install a newer `{}`: Debian 12 or Ubuntu 22.04 and later have one", self.package),
            )
            .into());
        }
        Ok(Some(found))
    }
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// A finished program whose exit status is the caller's to judge.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: Vec<u8>,
    /// Everything it wrote to standard error.
    pub stderr: Vec<u8>,
}

/// A program that ran and failed.
#[derive(Debug, thiserror::Error)]
pub struct Failed {
    /// The program's name.
    pub program: &'static str,
    /// The command, quoted for a shell.
    pub command: String,
    /// What the program was needed for.
    pub why: &'static str,
    /// How it ended.
    pub status: ExitStatus,
    /// The last lines of stderr.
    pub stderr: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.program;
        write!(f, "`{name}` failed ({}) while {}\n  command: {}", self.status, self.why, self.command)?;
        for line in self.stderr.lines() {
            write!(f, "\n  {name}: {line}")?;
        }
        Ok(())
    }
}

/// What a child reads on standard input.
enum Input {
    Null,
    Bytes(Vec<u8>),
    File(File),
}

/// One call of a host program. Standard input is `/dev/null` unless given.
pub struct Cmd {
    tool: Tool,
    program: Option<PathBuf>,
    wrappers: Vec<(Tool, Vec<OsString>)>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    env_clear: bool,
    dir: Option<PathBuf>,
    input: Input,
}

impl Cmd {
    /// A call of `tool` as the host has it.
    pub fn new(tool: &Tool) -> Self {
        Self {
            tool: *tool,
            program: None,
            wrappers: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            env_clear: false,
            dir: None,
            input: Input::Null,
        }
    }

    /// The same program at a known place, for instance in the pinned tool tree.
    pub fn at(tool: &Tool, program: impl Into<PathBuf>) -> Self {
        let mut cmd = Self::new(tool);
        cmd.program = Some(program.into());
        cmd
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable. Never for secrets: a process's environment is readable by its user.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Drops the inherited environment, except what [`Cmd::env`] sets; `PATH` is then the system's.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.env_clear = true;
        self
    }

    /// Runs in this directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Gives these bytes on standard input; the way for anything that must not be in argv.
    #[must_use]
    pub fn stdin_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Reads standard input from this file.
    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Self {
        self.input = Input::File(file);
        self
    }

    /// Runs inside another program (`unshare`, `nsenter`, `setpriv`), the last one added outermost: namespaces and
    /// credentials are set by util-linux, so no code of ours runs between fork and exec.
    #[must_use]
    pub fn wrapped_by<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, tool: &Tool, args: I) -> Self {
        self.wrappers.push((*tool, args.into_iter().map(|arg| arg.as_ref().to_owned()).collect()));
        self
    }

    /// The kernel kills the program when **the thread that started it** ends, however it ends; call this only for programs
    /// started from a thread that outlives them. (`setpriv` sets it, so the program's pid is still the child's.)
    #[must_use]
    pub fn dies_with_us(self) -> Self {
        self.wrapped_by(&table::SETPRIV, ["--pdeathsig", "KILL", "--"])
    }

    /// The command, quoted so that it can be pasted into a shell.
    pub fn command_line(&self) -> String {
        let name = |tool: &Tool| OsString::from(tool.name);
        let program = self.program.as_ref().map_or_else(|| name(&self.tool), |path| path.clone().into_os_string());
        let mut words: Vec<OsString> = Vec::new();
        for (tool, args) in self.wrappers.iter().rev() {
            words.push(name(tool));
            words.extend(args.iter().cloned());
        }
        words.push(program);
        words.extend(self.args.iter().cloned());
        words.iter().map(|word| shell_quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }

    /// Runs to the end; anything but success is an error. Standard output is thrown away.
    pub fn run(self) -> anyhow::Result<()> {
        self.output().map(drop)
    }

    /// Runs to the end and returns standard output; anything but success is an error.
    pub fn output(self) -> anyhow::Result<Vec<u8>> {
        let (command, tool) = (self.command_line(), self.tool);
        let done = self.captured()?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        let (program, why, stderr) = (tool.name, tool.why, tail(&done.stderr));
        Err(Failed { program, command, why, status: done.status, stderr }.into())
    }

    /// [`Cmd::output`] as text without the final newline.
    pub fn text(self) -> anyhow::Result<String> {
        let command = self.command_line();
        let text = String::from_utf8(self.output()?).with_context(|| format!("reading the output of `{command}`"))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Runs to the end; the exit status is data, not an error.
    pub fn captured(self) -> anyhow::Result<Captured> {
        let (bytes, mut running) = self.start(Stdio::piped(), Stdio::piped())?;
        let (mut stdin, mut stdout) = (running.child.stdin.take(), running.child.stdout.take());
        let mut stderr = running.child.stderr.take();
        let (out, err) = thread::scope(|scope| {
            // A child that stops reading early (`EPIPE`) tells why by its exit status.
            scope.spawn(move || stdin.as_mut().map(|pipe| pipe.write_all(&bytes)));
            let err = scope.spawn(move || read_all(stderr.as_mut()));
            (read_all(stdout.as_mut()), err.join().unwrap_or_default())
        });
        let status = running.wait()?;
        Ok(Captured { status, stdout: out, stderr: err })
    }

    /// Runs with our own terminal as all three streams, for programs a person talks to (`apt-get install`, a shell).
    pub fn interactive(self) -> anyhow::Result<ExitStatus> {
        let mut command = self.command()?;
        let line = self.command_line();
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        command.status().with_context(|| format!("starting `{line}`"))
    }

    /// Starts the program, both outputs going to `log`; it is killed and reaped when the [`Running`] is dropped.
    pub fn spawn_logged(self, log: &File) -> anyhow::Result<Running> {
        let (out, err) = (log.try_clone().context("log file")?, log.try_clone().context("log file")?);
        self.spawn(Stdio::from(out), Stdio::from(err))
    }

    /// Starts the program with a pipe on standard output (take it from [`Running::stdout`]); stderr goes where ours goes.
    pub fn spawn_piped(self) -> anyhow::Result<Running> {
        self.spawn(Stdio::piped(), Stdio::inherit())
    }

    /// Starts the program with these outputs; it is killed and reaped when the [`Running`] is dropped.
    pub fn spawn(self, stdout: Stdio, stderr: Stdio) -> anyhow::Result<Running> {
        let (bytes, mut running) = self.start(stdout, stderr)?;
        if let Some(mut stdin) = running.child.stdin.take() {
            thread::spawn(move || stdin.write_all(&bytes));
        }
        Ok(running)
    }

    /// Starts the program with pipes at standard input and output for a conversation; stderr goes where ours goes.
    pub fn spawn_conversation(mut self) -> anyhow::Result<(Running, ChildStdin, ChildStdout)> {
        self.input = Input::Bytes(Vec::new());
        let (_, mut running) = self.start(Stdio::piped(), Stdio::inherit())?;
        let (stdin, stdout) = (running.child.stdin.take(), running.child.stdout.take());
        Ok((running, stdin.context("no pipe to the program")?, stdout.context("no pipe from the program")?))
    }

    fn start(mut self, stdout: Stdio, stderr: Stdio) -> anyhow::Result<(Vec<u8>, Running)> {
        let mut command = self.command()?;
        let line = self.command_line();
        tracing::debug!(command = %line, "starting");
        let (stdin, bytes) = match std::mem::replace(&mut self.input, Input::Null) {
            Input::Null => (Stdio::null(), Vec::new()),
            Input::File(file) => (Stdio::from(file), Vec::new()),
            Input::Bytes(bytes) => (Stdio::piped(), bytes),
        };
        let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn();
        let child = child.with_context(|| format!("starting `{line}`"))?;
        Ok((bytes, Running { child, command: line, tool: self.tool }))
    }

    #[expect(clippy::disallowed_methods, reason = "this module is the one door to host programs")]
    fn command(&self) -> anyhow::Result<Command> {
        let program = match &self.program {
            Some(path) => path.clone(),
            None => self.tool.find()?,
        };
        let mut argv: Vec<OsString> = Vec::new();
        for (tool, args) in self.wrappers.iter().rev() {
            argv.push(tool.find()?.into());
            argv.extend(args.iter().cloned());
        }
        argv.push(program.into());
        argv.extend(self.args.iter().cloned());
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]);
        if self.env_clear {
            command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        Ok(command)
    }
}

/// A program that is running; dropping it kills and reaps it, so an early return leaves nothing behind.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    tool: Tool,
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

fn read_all(pipe: Option<&mut impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

fn tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(STDERR_TAIL_LINES)..].join("\n")
}

/// `word` as a shell would read it back.
pub fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SH: Tool = Tool { name: "sh", package: "dash", minimum: None, why: "testing the door" };

    #[test]
    fn a_failure_shows_command_reason_and_stderr_tail() {
        let script = "for i in $(seq 1 30); do echo line $i >&2; done; exit 3";
        let error = Cmd::new(&SH).args(["-c", script]).run().unwrap_err().to_string();
        assert!(error.contains("(exit status: 3) while testing the door"), "{error}");
        assert!(error.contains("sh -c 'for i in"), "{error}");
        assert!(error.contains("sh: line 30") && !error.contains("sh: line 10\n"), "{error}");
    }

    #[test]
    fn a_child_that_fills_both_pipes_does_not_hang_us() {
        let script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; cat >/dev/null";
        let done = Cmd::new(&SH).args(["-c", script]).stdin_bytes(vec![b'x'; 300_000]).captured().unwrap();
        assert_eq!((done.stdout.len(), done.stderr.len()), (300_000, 300_000));
    }

    #[test]
    fn a_missing_program_names_package_and_reason() {
        let absent = Tool { name: "no-such-program", package: "some-package", minimum: None, why: "flying" };
        let problem = absent.find().unwrap_err();
        assert_eq!(problem.what, "`no-such-program` is not installed; it is needed for flying");
        assert_eq!(problem.remedy, "apt-get install some-package (or: pgkiln doctor --install)");
    }

    #[test]
    fn dropping_a_running_program_ends_it() {
        let running = Cmd::new(&SH).args(["-c", "exec sleep 600"]).spawn(Stdio::null(), Stdio::null()).unwrap();
        let pid = running.pid();
        drop(running);
        assert_eq!(nix::sys::signal::kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }

    #[test]
    fn wrappers_are_outside_and_the_line_can_be_pasted() {
        let cmd = Cmd::new(&SH).args(["-c", "echo 'a b'"]).dies_with_us();
        assert_eq!(cmd.command_line(), r"setpriv --pdeathsig KILL -- sh -c 'echo '\''a b'\'''");
        assert_eq!(cmd.text().unwrap(), "a b");
    }
}
