//! The one door to host programs.
//!
//! Every program pgkiln runs is a [`Tool`] of [`table`]: its name, the oldest version that works, the package that has it
//! and the reason it is needed, so that a missing program is reported with a remedy instead of `No such file or directory`
//! and `pgkiln doctor` reads the same table. A [`Cmd`] keeps its streams apart, reads both ends at once (a child that fills
//! a pipe never hangs us), and when it fails the error carries the whole command, ready to paste, and the tail of stderr.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Context;

use crate::problem::Problem;

mod command;
mod running;
pub mod table;
mod version;

pub use command::Cmd;
pub use running::Running;
pub use version::Version;

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
    use std::process::Stdio;

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
    fn a_program_that_is_stopped_goes_on() {
        let stops = || Cmd::new(&SH).args(["-c", "kill -STOP $$; exit 7"]).resumed();
        assert_eq!(stops().captured().unwrap().status.code(), Some(7));
        assert_eq!(stops().interactive().unwrap().code(), Some(7));
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
