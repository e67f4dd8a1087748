//! The handle of a lab: starts one, or talks to one that is up.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::config::{self, Options};
use super::exec::{self, ExecOutput};
use super::protocol::{self, Answer, Request, Started};
use super::status::Status;
use super::supervisor::LET_GO;
use super::{registry, warden};
use crate::problem::Problem;
use crate::tool::{Running, table};

/// How long a clean shutdown of a node may take unless told otherwise.
const STOP_LIMIT: Duration = Duration::from_secs(90);
/// From the last process's end to the name being free.
const GONE_LIMIT: Duration = Duration::from_secs(15);

/// A lab that is up. If this handle started it, dropping the handle removes the lab, unless [`Lab::detach`] let go of it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    owned: Option<Owned>,
}

/// The warden and the pipe whose end tells it that we are gone.
#[derive(Debug)]
struct Owned {
    leash: ChildStdin,
    warden: Running,
}

impl Lab {
    /// Boots a lab; returns when every node that is to start has its PID 1.
    pub fn up(options: Options) -> anyhow::Result<Self> {
        require_root()?;
        let options = options.checked()?;
        let program = options.program.clone().map_or_else(find_program, Ok)?;
        let mut cmd = warden::program(program).args(["warden", &options.name]);
        if Path::new("/run/systemd/system").is_dir() {
            // Otherwise the lab would sit in the caller's session and systemd would reorganise its cgroups.
            let unit = format!("--unit=pgkiln-lab-{}", options.name);
            let scope = ["--scope", "--quiet", "--collect", "--property=Delegate=yes", &unit, "--"];
            cmd = cmd.wrapped_by(&table::SYSTEMD_RUN, scope);
        }
        let (warden, mut leash, told) = cmd.spawn_conversation()?;
        // A warden that is gone already tells why on its other pipe, or not at all.
        let _ = writeln!(leash, "{}", serde_json::to_string(&options)?);
        let lab = Self { name: options.name.clone(), owned: Some(Owned { leash, warden }) };
        let mut line = String::new();
        BufReader::new(told).read_line(&mut line).context("waiting for the lab")?;
        match serde_json::from_str(&line) {
            Ok(Started::Up) => Ok(lab),
            Ok(Started::Failed(problem)) => Err(problem.into()),
            Err(_) => {
                let log = options.state_dir.join("supervisor.log");
                let tail = fs_err::read_to_string(&log).unwrap_or_default();
                anyhow::bail!("the supervisor of lab `{}` ended without a word {}", options.name, tail.trim())
            }
        }
    }

    /// The lab of this name that is up.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        require_root()?;
        config::check_name("lab name", name)?;
        if !registry::in_use(name)? {
            return Err(registry::not_up(name).into());
        }
        Ok(Self { name: name.to_owned(), owned: None })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets go: the lab stays up when this process ends, until [`Lab::down`].
    pub fn detach(mut self) -> anyhow::Result<()> {
        let Some(mut owned) = self.owned.take() else { return Ok(()) };
        owned.leash.write_all(&[LET_GO]).context("letting go of the lab")?;
        // Dropping a running program would kill it.
        std::mem::forget(owned.warden);
        Ok(())
    }

    /// The state of everything.
    pub fn status(&self) -> anyhow::Result<Status> {
        match self.ask(&Request::Status)? {
            (Answer::Status(status), pid) => Ok(Status { pid, ..*status }),
            (other, _) => unexpected(&other),
        }
    }

    /// The port on 127.0.0.1 that leads to `port` of `slot`.
    pub fn host_port(&self, slot: &str, port: u16) -> anyhow::Result<u16> {
        let status = self.status()?;
        status.host_port(slot, port).with_context(|| format!("port {port} of `{slot}` is not published"))
    }

    /// Boots a node that is off; it finds the `/var` it left.
    pub fn start(&self, slot: &str) -> anyhow::Result<()> {
        self.tell(&Request::Start { slot: slot.to_owned() })
    }

    /// Cuts a node's power: all its processes are gone when this returns.
    pub fn kill(&self, slot: &str) -> anyhow::Result<()> {
        self.tell(&Request::Kill { slot: slot.to_owned() })
    }

    /// Shuts a node down cleanly and waits until it is off.
    pub fn stop(&self, slot: &str) -> anyhow::Result<()> {
        self.stop_within(slot, STOP_LIMIT)
    }

    /// [`Lab::stop`] with another limit.
    pub fn stop_within(&self, slot: &str, limit: Duration) -> anyhow::Result<()> {
        self.tell(&Request::Stop { slot: slot.to_owned(), seconds: limit.as_secs() })
    }

    /// Runs a command in a node to its end, with nothing on standard input; the exit status is data, not an error.
    pub fn exec<S: AsRef<str>>(&self, slot: &str, argv: impl IntoIterator<Item = S>) -> anyhow::Result<ExecOutput> {
        self.enter(slot, argv, false)?.captured()
    }

    /// [`Lab::exec`] with standard input.
    pub fn exec_with_input<S: AsRef<str>>(
        &self,
        slot: &str,
        argv: impl IntoIterator<Item = S>,
        input: impl Into<Vec<u8>>,
    ) -> anyhow::Result<ExecOutput> {
        self.enter(slot, argv, false)?.stdin_bytes(input).captured()
    }

    /// Runs a command in a node with our own standard streams and terminal.
    pub fn exec_interactive<S: AsRef<str>>(
        &self,
        slot: &str,
        argv: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<ExitStatus> {
        self.enter(slot, argv, std::io::stdin().is_terminal())?.interactive()
    }

    /// What [`Lab::exec`] would run, for a shell of this host: for callers that put a program of their own around it.
    pub fn command_line<S: AsRef<str>>(&self, slot: &str, argv: impl IntoIterator<Item = S>) -> anyhow::Result<String> {
        Ok(self.enter(slot, argv, false)?.command_line())
    }

    /// Drops every frame from one node to another, and back unless `one_way`.
    pub fn partition(&self, from: &str, to: &str, one_way: bool) -> anyhow::Result<()> {
        self.tell(&Request::Partition { from: from.to_owned(), to: to.to_owned(), one_way })
    }

    /// Undoes partitions between two nodes, or all of them.
    pub fn heal(&self, between: Option<(&str, &str)>) -> anyhow::Result<()> {
        let between = between.map(|(a, b)| (a.to_owned(), b.to_owned()));
        self.tell(&Request::Heal { between })
    }

    /// File with a node's console.
    pub fn console(&self, slot: &str) -> anyhow::Result<PathBuf> {
        let options = registry::load(&self.name)?;
        options.slot(slot)?;
        Ok(super::console::path(&options.node_dir(slot)))
    }

    /// Removes the lab and returns when nothing is left of it. With `keep_data` every node is first shut down cleanly, and
    /// the state directory stays.
    pub fn down(self, keep_data: bool) -> anyhow::Result<()> {
        self.tell(&Request::Down { keep_data, seconds: STOP_LIMIT.as_secs() })?;
        let deadline = Instant::now() + GONE_LIMIT;
        while registry::in_use(&self.name)? {
            anyhow::ensure!(Instant::now() < deadline, "lab `{}` has not gone within 15 s", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn enter<S: AsRef<str>>(
        &self,
        slot: &str,
        argv: impl IntoIterator<Item = S>,
        terminal: bool,
    ) -> anyhow::Result<crate::tool::Cmd> {
        let argv: Vec<String> = argv.into_iter().map(|word| word.as_ref().to_owned()).collect();
        match self.ask(&Request::Enter { slot: slot.to_owned() })? {
            (Answer::Enter(init), supervisor) => Ok(exec::command(supervisor, init, &argv)),
            (Answer::Ssh(door), supervisor) => Ok(exec::remote_command(supervisor, &door, &argv, terminal)),
            (other, _) => unexpected(&other),
        }
    }

    fn tell(&self, request: &Request) -> anyhow::Result<()> {
        match self.ask(request)?.0 {
            Answer::Done => Ok(()),
            other => unexpected(&other),
        }
    }

    /// The answer, and the supervisor's process id as we number it.
    fn ask(&self, request: &Request) -> anyhow::Result<(Answer, i32)> {
        let mut stream = UnixStream::connect(registry::socket(&self.name)).map_err(|_| registry::not_up(&self.name))?;
        let pid = getsockopt(&stream, PeerCredentials).context("asking who serves the lab")?.pid();
        protocol::send(&mut stream, request)?;
        match protocol::receive(&stream)? {
            Some(Answer::Failed(problem)) => Err(problem.into()),
            Some(answer) => Ok((answer, pid)),
            None => anyhow::bail!("lab `{}` ended before it answered", self.name),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(Owned { leash, mut warden }) = self.owned.take() else { return };
        drop(leash);
        let deadline = Instant::now() + GONE_LIMIT;
        while Instant::now() < deadline && matches!(warden.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn unexpected<T>(answer: &Answer) -> anyhow::Result<T> {
    anyhow::bail!("the lab answered something else: {answer:?}")
}

fn require_root() -> Result<(), Problem> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Problem::new(
        "the lab needs root: it boots whole systems and builds their network",
        "",
        "run the same command with sudo",
    ))
}

/// The `pgkiln` program: ourselves, or, for tests and benches, the one built into the directory above.
fn find_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let above = own.ancestors().skip(1).take(3).map(|dir| dir.join("pgkiln"));
    let own_name = own.file_name().is_some_and(|name| name == "pgkiln");
    std::iter::once(own.clone()).filter(|_| own_name).chain(above).find(|program| program.is_file()).ok_or_else(|| {
        let remedy = "build it first: cargo build -p pgkiln, or set `Options::program`";
        Problem::new("the program `pgkiln` is not beside this one", own.display().to_string(), remedy).into()
    })
}
