//! One call of a host program.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{Captured, Failed, Running, Tool, shell_quoted, table};

/// What the names of variables begin with that cargo sets for a program it runs (The Cargo Book, "Environment Variables").
const CARGO_TELLS: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];
/// How much of a failed program's stderr an error shows; the interesting part is at its end.
const STDERR_TAIL_LINES: usize = 20;

/// How long a program of [`Cmd::resumed`] may stand still.
const RESUMED_EVERY: Duration = Duration::from_secs(1);

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
    outside_cargo: bool,
    dir: Option<PathBuf>,
    input: Input,
    resumed: bool,
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
            outside_cargo: false,
            dir: None,
            input: Input::Null,
            resumed: false,
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

    /// Hides what a cargo that runs us says about its own package (`cargo run`, `cargo nextest`): build scripts that look at it
    /// would run again, and what depends on them be built again, each time another cargo asks for the same build.
    #[must_use]
    pub fn outside_cargo(mut self) -> Self {
        self.outside_cargo = true;
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

    /// Lets nothing stop the program for good. nsenter(1) stops itself when the program it waits for is stopped, and
    /// systemd-shutdown stops all programs of a machine before it ends them: whoever asks a node just then would wait for ever.
    #[must_use]
    pub fn resumed(mut self) -> Self {
        self.resumed = true;
        self
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
        let resumed = self.resumed;
        let (bytes, mut running) = self.start(Stdio::piped(), Stdio::piped())?;
        let (mut stdin, mut stdout) = (running.child.stdin.take(), running.child.stdout.take());
        let mut stderr = running.child.stderr.take();
        let pid = running.pid();
        let (out, err) = thread::scope(|scope| {
            let _resumes = resumed.then(|| Resumes::start(scope, pid));
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
        if !self.resumed {
            return command.status().with_context(|| format!("starting `{line}`"));
        }
        let child = command.spawn().with_context(|| format!("starting `{line}`"))?;
        let mut running = Running { child, command: line, tool: self.tool };
        thread::scope(|scope| {
            let _resumes = Resumes::start(scope, running.pid());
            // Not reaped yet: until then the number is nobody else's.
            while waitid(Id::Pid(running.pid()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        });
        running.wait()
    }

    /// Becomes the program; returns only if that fails.
    pub fn exec(self) -> anyhow::Error {
        use std::os::unix::process::CommandExt;
        let line = self.command_line();
        match self.command() {
            Ok(mut command) => anyhow::Error::new(command.exec()).context(format!("starting `{line}`")),
            Err(error) => error,
        }
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
        if self.outside_cargo {
            let told = |name: &OsString| CARGO_TELLS.iter().any(|start| name.to_string_lossy().starts_with(start));
            for (name, _) in std::env::vars_os().filter(|(name, _)| told(name)) {
                command.env_remove(name);
            }
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        Ok(command)
    }
}

/// Continues a program now and then, until dropped.
struct Resumes(#[expect(dead_code, reason = "its end is what the thread waits for")] mpsc::Sender<()>);

impl Resumes {
    /// `pid` must not be reaped before this is dropped.
    fn start<'scope>(scope: &'scope thread::Scope<'scope, '_>, pid: Pid) -> Self {
        let (sender, ended) = mpsc::channel();
        scope.spawn(move || {
            while ended.recv_timeout(RESUMED_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGCONT);
            }
        });
        Self(sender)
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
