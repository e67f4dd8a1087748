//! One node as the supervisor sees it: on, off, and the ways between.

use std::fmt;
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::config::{Engine, NodeOptions, Options};
use super::protocol::Answer;
use super::ssh::Door;
use super::status::{NodeState, NodeStatus};
use super::{cgroup, console, net, nspawn, qemu, registry, slots, warden};
use crate::problem::Problem;
use crate::tool::{Cmd, Running, Tool};

/// From the engine's start to the node's PID 1.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Between two requests to power off.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// systemd's signal for it is a real-time one, which only a program can send here without unsafe code.
const KILL: Tool = Tool { name: "kill", package: "procps", minimum: None, why: "powering off a node of the lab" };
/// From killing all processes to having seen the last one go.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A place for a machine.
pub(super) struct Node {
    options: NodeOptions,
    engine: Engine,
    lab: String,
    dir: PathBuf,
    port: String,
    /// The way into a machine.
    door: Option<Door>,
    cgroup: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    power: watch::Sender<bool>,
}

struct State {
    is: NodeState,
    since: Instant,
    starts: u32,
    /// The engine's process.
    process: Option<Pid>,
    /// PID 1 of the node.
    init: Option<i32>,
    last_end: Option<String>,
    /// Told to go off: an end is no reboot.
    killed: bool,
}

impl Node {
    /// A node that is off. Its first boot finds an empty `/var` with the seed in it.
    pub(super) fn new(options: &Options, index: usize, lab_cgroup: &Path) -> anyhow::Result<Arc<Self>> {
        let node = options.nodes[index].clone();
        let dir = options.node_dir(&node.slot);
        match options.engine {
            Engine::Nspawn => {
                prepare_var(&dir.join("var"), node.seed_dir.as_deref())?;
                fs_err::create_dir(options.scratch().join(&node.slot))?;
                slots::prepare(&dir.join("boot"), &options.scratch().join("image"))?;
            }
            Engine::Qemu => {
                fs_err::create_dir_all(&dir)?;
                qemu::prepare(options, index)?;
            }
        }
        options.machine_id(&node.slot)?;
        let off = State {
            is: NodeState::Off,
            since: Instant::now(),
            starts: 0,
            process: None,
            init: None,
            last_end: None,
            killed: false,
        };
        Ok(Arc::new(Self {
            cgroup: lab_cgroup.join(&node.slot),
            port: options.bridge_port(index),
            door: options.ssh_key.as_ref().map(|_| Door {
                address: node.address,
                key: options.own_key(),
                socket: dir.join("ssh.sock"),
            }),
            engine: options.engine,
            lab: options.name.clone(),
            dir,
            options: node,
            state: Mutex::new(off),
            changed: Condvar::new(),
            power: watch::channel(false).0,
        }))
    }

    /// Changes to `true` and `false` as the node goes on and off.
    pub(super) fn power(&self) -> watch::Receiver<bool> {
        self.power.subscribe()
    }

    /// Whether any process of it may exist.
    pub(super) fn is_on(&self) -> bool {
        self.lock().is != NodeState::Off
    }

    /// How to run a command in it, if it is on.
    pub(super) fn way_in(&self) -> Result<Answer, Problem> {
        let slot = &self.options.slot;
        let off = || {
            let remedy = format!("start it with `pgkiln lab start {} {slot}`", self.lab);
            Problem::new(format!("node `{slot}` is off"), "", remedy)
        };
        match self.engine {
            Engine::Nspawn => Ok(Answer::Enter(self.lock().init.ok_or_else(off)?)),
            Engine::Qemu if !self.is_on() => Err(off()),
            Engine::Qemu => self.door.clone().map(Answer::Ssh).ok_or_else(|| {
                let remedy = "boot a cluster (--cluster DIR): its seeds get a key of the lab";
                Problem::new(format!("there is no way into `{slot}`: its seed has no key"), "", remedy)
            }),
        }
    }

    /// Boots the node; returns when its own systemd is PID 1.
    pub(super) fn start(self: &Arc<Self>) -> anyhow::Result<()> {
        {
            let mut state = self.lock();
            if state.is != NodeState::Off {
                let what = format!("node `{}` is {:?} already", self.options.slot, state.is).to_lowercase();
                return Err(Problem::new(what, "", "kill or stop it first").into());
            }
            state.killed = false;
            self.boot(&mut state)?;
        }
        self.wait_for_init()
    }

    /// Starts the engine, and the threads that copy its console and wait for its end.
    fn boot(self: &Arc<Self>, state: &mut State) -> anyhow::Result<()> {
        cgroup::remove(&self.cgroup);
        fs_err::create_dir(&self.cgroup)?;
        let (running, output) = spawn(&self.lab, &self.options.slot)?;
        state.process = Some(running.pid());
        state.starts += 1;
        self.change(state, NodeState::Starting);
        let dir = self.dir.clone();
        thread::spawn(move || console::copy(output, &dir));
        let node = Arc::clone(self);
        thread::spawn(move || node.outlive(running));
        Ok(())
    }

    /// Waits for the engine's end and clears what it leaves; a node that rebooted is booted again.
    fn outlive(self: Arc<Self>, mut running: Running) {
        let status = running.wait();
        self.power.send_replace(false);
        let _ = cgroup::kill(&self.cgroup);
        cgroup::remove(&self.cgroup);
        net::remove_port(&self.port);
        let mut state = self.lock();
        let asks = self.engine == Engine::Nspawn && !state.killed;
        let rebooted = asks && matches!(&status, Ok(status) if status.code() == Some(nspawn::EXIT_REBOOT));
        state.last_end = Some(match status {
            _ if state.killed => "killed".to_owned(),
            Ok(status) if status.success() => "powered off".to_owned(),
            _ if rebooted => "rebooted".to_owned(),
            Ok(status) => status.to_string(),
            Err(error) => format!("{error:#}"),
        });
        (state.process, state.init) = (None, None);
        if rebooted && self.boot(&mut state).is_ok() {
            drop(state);
            let _ = self.wait_for_init();
            return;
        }
        self.change(&mut state, NodeState::Off);
    }

    fn wait_for_init(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // A machine runs from the moment QEMU takes commands; how far it has come only its console says.
            let found = match self.engine {
                Engine::Nspawn => nspawn::find_init(&self.cgroup),
                Engine::Qemu => qemu::find(&self.cgroup, &self.dir),
            };
            let mut state = self.lock();
            if state.is == NodeState::Off {
                return Err(self.failed_to_start(state.last_end.as_deref().unwrap_or_default()));
            }
            if let Some(init) = found {
                state.init = Some(init);
                self.change(&mut state, NodeState::Running);
                self.power.send_replace(true);
                return Ok(());
            }
            drop(state);
            if Instant::now() > deadline {
                return Err(self.failed_to_start("no PID 1 within 30 s"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn failed_to_start(&self, how: &str) -> anyhow::Error {
        let console = console::path(&self.dir);
        let text = fs_err::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n  ");
        let what = format!("node `{}` did not start ({how})\n  {tail}", self.options.slot);
        Problem::new(what, console.display().to_string(), "the lines above are its console").into()
    }

    /// Cuts the power: every process of the node is gone when this returns.
    pub(super) fn kill(&self) -> anyhow::Result<()> {
        {
            let mut state = self.lock();
            if state.is == NodeState::Off {
                return Ok(());
            }
            state.killed = true;
        }
        self.power.send_replace(false);
        cgroup::kill(&self.cgroup)?;
        anyhow::ensure!(self.wait_until_off(KILL_LIMIT), "node `{}` is still there after a kill", self.options.slot);
        Ok(())
    }

    /// Asks systemd to power off, as a power button does, and waits until it has.
    pub(super) fn stop(&self, limit: Duration) -> anyhow::Result<()> {
        {
            let mut state = self.lock();
            let Some(process) = state.process else { return Ok(()) };
            self.change(&mut state, NodeState::Stopping);
            if self.engine == Engine::Nspawn {
                signal::kill(process, Signal::SIGTERM).context("asking the node to power off")?;
            }
        }
        if self.engine == Engine::Qemu {
            self.ask_again()?;
        }
        let deadline = Instant::now() + limit;
        while !self.wait_until_off(ASK_AGAIN.min(deadline.saturating_duration_since(Instant::now()))) {
            if Instant::now() >= deadline {
                return Err(self.still_on(limit));
            }
            self.ask_again()?;
        }
        Ok(())
    }

    /// A PID 1 that has just been started has no handler yet, and the kernel drops what it does not handle.
    fn ask_again(&self) -> anyhow::Result<()> {
        let Some(init) = self.lock().init else { return Ok(()) };
        if self.engine == Engine::Qemu {
            // QEMU that hung up has ended; one that did not is asked the next time.
            let _ = qemu::power_off(&self.dir);
            return Ok(());
        }
        let asked = Cmd::new(&KILL).args(["-s", "RTMIN+4"]).arg(init.to_string()).run();
        // Gone meanwhile: that is what was asked for.
        if self.lock().is == NodeState::Off { Ok(()) } else { asked.map(drop) }
    }

    fn still_on(&self, limit: Duration) -> anyhow::Error {
        let slot = &self.options.slot;
        Problem::new(
            format!("node `{slot}` has not powered off within {} s", limit.as_secs()),
            console::path(&self.dir).display().to_string(),
            format!("see what it waits for with `pgkiln lab logs {} {slot}`, or kill it", self.lab),
        )
        .into()
    }

    fn wait_until_off(&self, limit: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| state.is != NodeState::Off);
        waited.unwrap_or_else(PoisonError::into_inner).0.is == NodeState::Off
    }

    /// What `lab status` shows of it.
    pub(super) fn status(&self) -> NodeStatus {
        let state = self.lock();
        let (init, is, seconds) = (state.init, state.is, state.since.elapsed().as_secs());
        let (starts, last_end) = (state.starts, state.last_end.clone());
        drop(state);
        let (addresses, agent) = match self.engine {
            Engine::Nspawn => (init.map(net::addresses).unwrap_or_default(), init.and_then(agent_status)),
            Engine::Qemu => self.door.as_ref().filter(|_| init.is_some()).map(ask).unwrap_or_default(),
        };
        NodeStatus {
            slot: self.options.slot.clone(),
            state: is,
            seconds,
            starts,
            address: self.options.address,
            addresses,
            agent,
            last_end,
            console: console::path(&self.dir),
        }
    }

    fn change(&self, state: &mut State, to: NodeState) {
        (state.is, state.since) = (to, Instant::now());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("slot", &self.options.slot).field("is", &self.lock().is).finish_non_exhaustive()
    }
}

/// What the agent inside says about itself.
fn agent_status(init: i32) -> Option<serde_json::Value> {
    let text = fs_err::read(format!("/proc/{init}/root/run/pgkiln/status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The same of a machine, in one question; nothing while it does not answer.
fn ask(door: &Door) -> (Vec<String>, Option<serde_json::Value>) {
    let script = "ip -json address; echo; cat /run/pgkiln/status.json";
    let answer = door.command(&["sh".to_owned(), "-c".to_owned(), script.to_owned()], false).captured();
    let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
    let (addresses, agent) = text.split_once('\n').unwrap_or_default();
    (net::parse(addresses), serde_json::from_str(agent.trim()).ok())
}

/// Starts a node's process; the pipe is its console.
fn spawn(lab: &str, slot: &str) -> anyhow::Result<(Running, PipeReader)> {
    let (console, output) = std::io::pipe().context("making a pipe for the console")?;
    let errors = output.try_clone().context("making a pipe for the console")?;
    // Not our path: the program may have been rebuilt since the lab was started.
    let node = warden::program("/proc/self/exe".into()).args(["node", lab, slot]);
    Ok((node.spawn(Stdio::from(output), Stdio::from(errors))?, console))
}

/// In that process: joins the node's cgroup and becomes its engine.
pub(super) fn become_engine(lab: &str, slot: &str) -> anyhow::Result<()> {
    let options: Options = registry::load(lab)?;
    let (index, _) = options.slot(slot)?;
    cgroup::join(&cgroup::of_lab(lab)?.join(slot))?;
    match options.engine {
        Engine::Nspawn => nspawn::run(&options, index),
        Engine::Qemu => qemu::run(&options, index),
    }
}

/// An empty `/var` with the seed where cloud-init's NoCloud looks; one that is there already is left alone.
fn prepare_var(var: &Path, seed: Option<&Path>) -> anyhow::Result<()> {
    if var.exists() {
        return Ok(());
    }
    fs_err::create_dir_all(var)?;
    let Some(seed) = seed else { return Ok(()) };
    let target = var.join("lib/cloud/seed/nocloud");
    fs_err::create_dir_all(&target)?;
    for entry in fs_err::read_dir(seed)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Keeps the mode: seeds carry secrets.
            fs_err::copy(entry.path(), target.join(entry.file_name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_is_copied_once_with_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (seed, var) = (dir.path().join("seed"), dir.path().join("var"));
        fs_err::create_dir(&seed).unwrap();
        fs_err::write(seed.join("user-data"), "#cloud-config\n").unwrap();
        fs_err::set_permissions(seed.join("user-data"), PermissionsExt::from_mode(0o600)).unwrap();
        prepare_var(&var, Some(&seed)).unwrap();
        let copied = var.join("lib/cloud/seed/nocloud/user-data");
        assert_eq!(copied.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs_err::write(&copied, "wiped").unwrap();
        prepare_var(&var, Some(&seed)).unwrap();
        assert_eq!(fs_err::read_to_string(&copied).unwrap(), "wiped");
    }
}
