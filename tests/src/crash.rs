//! Killing a program at the instants that matter: every durable write, every rename, every program it starts.
//!
//! A tracer of our own rather than `strace -e inject=…`: strace counts per thread, so "the 17th fsync" would be another one
//! in every run, and a kill at `execve` would end the child instead of the program that started it. Here events are
//! counted over the whole family of processes, in the order in which they happen, and all of it dies at once, which is
//! what a power cut and what systemd's cgroup kill do.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pgkiln::tool::{Cmd, Tool};

mod sweep;

pub use sweep::{Outcome, Sweep};

const SH: Tool = Tool { name: "sh", package: "dash", minimum: None, why: "starting a traced program" };

/// One instant at which a crash could leave something half-made, before its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// System call.
    pub call: &'static str,
    /// The file it concerns, as the program names it.
    pub path: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.call, self.path)
    }
}

/// What a traced run was, after its end.
#[derive(Debug)]
pub struct Trace {
    /// Events up to the end.
    pub events: Vec<Event>,
    /// Whether it ended because the chosen event was reached.
    pub killed: bool,
}

/// A traced run in progress.
#[derive(Debug)]
pub struct Traced {
    root: Arc<AtomicI32>,
    tracer: JoinHandle<anyhow::Result<Trace>>,
}

/// Starts `argv`; events count from the moment it executes `program` (a file name). Everything is killed at event number
/// `kill_at` (the first one is 1), before that system call has any effect.
pub fn start(argv: &[impl AsRef<OsStr>], program: &str, kill_at: Option<usize>) -> Traced {
    let argv: Vec<_> = argv.iter().map(|word| word.as_ref().to_owned()).collect();
    let root = Arc::new(AtomicI32::new(0));
    let (shared, program) = (Arc::clone(&root), program.to_owned());
    // One thread for everything: the kernel lets only the attached thread give ptrace requests and wait for its tracees.
    let tracer = std::thread::spawn(move || {
        // Stopped until seized, so that nothing is missed.
        let cmd = Cmd::new(&SH).args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).args(argv);
        let running = cmd.spawn(std::process::Stdio::null(), std::process::Stdio::null())?;
        let pid = running.pid();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).context("waiting for the program to be traced")?;
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACECLONE
            | ptrace::Options::PTRACE_O_TRACEFORK
            | ptrace::Options::PTRACE_O_TRACEVFORK
            | ptrace::Options::PTRACE_O_TRACEEXEC
            | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).context("attaching to the program")?;
        kill(pid, Signal::SIGCONT)?;
        shared.store(pid.as_raw(), Ordering::SeqCst);
        Tracer { root: pid, program, kill_at, counting: false, tracees: BTreeSet::from([pid]), events: Vec::new() }
            .follow()
    });
    Traced { root, tracer }
}

impl Traced {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.tracer.is_finished()
    }

    /// Ends the program with SIGKILL if it still runs.
    pub fn stop(self) -> anyhow::Result<Trace> {
        let root = self.root.load(Ordering::SeqCst);
        if root != 0 && !self.tracer.is_finished() {
            let _ = kill(Pid::from_raw(root), Signal::SIGKILL);
        }
        self.finish()
    }

    /// Waits for the end.
    pub fn finish(self) -> anyhow::Result<Trace> {
        self.tracer.join().map_err(|_| anyhow::anyhow!("the tracer panicked"))?
    }
}

struct Tracer {
    root: Pid,
    program: String,
    kill_at: Option<usize>,
    counting: bool,
    tracees: BTreeSet<Pid>,
    events: Vec<Event>,
}

impl Tracer {
    fn follow(mut self) -> anyhow::Result<Trace> {
        let (mut killed, mut over) = (false, false);
        let own_children = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = match waitpid(None, Some(own_children)) {
                Ok(status) => status,
                Err(nix::errno::Errno::ECHILD) => return Ok(Trace { events: self.events, killed }),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waiting for traced processes"),
            };
            let (pid, signal) = match status {
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => {
                    self.tracees.remove(&pid);
                    if pid == self.root {
                        // Stopped from outside, or its work is done: what it left behind goes, too.
                        over = true;
                        self.kill_all();
                    }
                    continue;
                }
                WaitStatus::PtraceSyscall(pid) => {
                    self.tracees.insert(pid);
                    if !over && self.is_kill_point(pid) {
                        (killed, over) = (true, true);
                        self.kill_all();
                    }
                    (pid, None)
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    self.tracees.insert(pid);
                    if event == libc::PTRACE_EVENT_EXEC && self.executes_program(pid) {
                        self.counting = true;
                    }
                    (pid, None)
                }
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                WaitStatus::Continued(_) | WaitStatus::StillAlive => continue,
            };
            if over {
                // Born while the others were killed: nobody else would ever end it, and this loop waits for it.
                let _ = kill(pid, Signal::SIGKILL);
            }
            // ESRCH: killed in the meantime; its end is reported next.
            let _ = ptrace::syscall(pid, signal);
        }
    }

    fn kill_all(&self) {
        for pid in &self.tracees {
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }

    fn executes_program(&self, pid: Pid) -> bool {
        let exe = fs_err::read_link(format!("/proc/{pid}/exe"));
        exe.is_ok_and(|exe| exe.file_name() == Some(OsStr::new(&self.program)))
    }

    fn is_kill_point(&mut self, pid: Pid) -> bool {
        let Some(event) = self.counting.then(|| entered(pid)).flatten() else { return false };
        self.events.push(event);
        self.kill_at == Some(self.events.len())
    }
}

/// The event `pid` is about to cause, if it stands at the entry of a system call that is one.
#[expect(unsafe_code, reason = "the kernel's answer is a tagged union")]
fn entered(pid: Pid) -> Option<Event> {
    let info = ptrace::syscall_info(pid).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that the kernel filled in the `entry` member.
    let entry = unsafe { info.u.entry };
    let [first, second, _, fourth, ..] = entry.args;
    let (call, path) = match libc::c_long::try_from(entry.nr).ok()? {
        libc::SYS_fsync => ("fsync", file(pid, first)),
        libc::SYS_fdatasync => ("fdatasync", file(pid, first)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => ("rename", string(pid, second)),
        libc::SYS_renameat => ("rename", string(pid, fourth)),
        libc::SYS_renameat2 => ("rename", string(pid, fourth)),
        libc::SYS_linkat => ("link", string(pid, fourth)),
        libc::SYS_execve => ("exec", string(pid, first)),
        libc::SYS_execveat => ("exec", string(pid, second)),
        _ => return None,
    };
    Some(Event { call, path })
}

fn file(pid: Pid, descriptor: u64) -> String {
    fs_err::read_link(format!("/proc/{pid}/fd/{descriptor}"))
        .unwrap_or_else(|_| PathBuf::from("?"))
        .display()
        .to_string()
}

fn string(pid: Pid, address: u64) -> String {
    let read = |memory: fs_err::File| {
        let mut bytes = [0; 256];
        let length = memory.file().read_at(&mut bytes, address)?;
        let text = bytes[..length].split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    };
    fs_err::File::open(format!("/proc/{pid}/mem")).and_then(read).unwrap_or_else(|_: std::io::Error| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "sync \"$1/a\"; mv \"$1/a\" \"$1/b\"; mv \"$1/b\" \"$1/c\"; sleep 600";

    fn run(dir: &std::path::Path, kill_at: Option<usize>) -> Traced {
        fs_err::write(dir.join("a"), "x").unwrap();
        start(&["bash", "-c", SCRIPT, "bash", &dir.display().to_string()], "bash", kill_at)
    }

    #[test]
    fn counts_over_all_processes_and_kills_before_the_effect() {
        let dir = tempfile::tempdir().unwrap();
        // exec sync, fsync, exec mv, rename, exec mv, rename: the kill is at the second rename.
        let trace = run(dir.path(), Some(6)).finish().unwrap();
        assert!(trace.killed);
        let calls: Vec<&str> = trace.events.iter().map(|event| event.call).collect();
        assert_eq!(calls, ["exec", "fsync", "exec", "rename", "exec", "rename"]);
        assert!(trace.events[3].path.ends_with("/b"), "{}", trace.events[3]);
        assert!(dir.path().join("b").exists() && !dir.path().join("c").exists());
    }

    #[test]
    fn an_unlimited_run_is_stopped_from_outside() {
        let dir = tempfile::tempdir().unwrap();
        let traced = run(dir.path(), None);
        for _ in 0..200 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            if dir.path().join("c").exists() {
                break;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        let trace = traced.stop().unwrap();
        assert!(!trace.killed);
        assert_eq!(trace.events.len(), 7, "{:?}", trace.events);
    }
}
