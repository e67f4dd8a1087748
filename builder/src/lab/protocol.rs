//! What is said on the control socket: one JSON line asks, one JSON line answers, then the connection ends.

use std::io::{BufRead, BufReader, Read, Write};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::ssh::Door;
use super::status::Status;
use crate::problem::Problem;

/// What a client asks of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(super) enum Request {
    /// The state of everything.
    Status,
    /// The process to enter for running a command in a node.
    Enter { slot: String },
    /// Boot a node that is off.
    Start { slot: String },
    /// Cut a node's power.
    Kill { slot: String },
    /// Shut a node down cleanly within so many seconds.
    Stop { slot: String, seconds: u64 },
    /// Drop every frame from one node to another.
    Partition { from: String, to: String, one_way: bool },
    /// Undo partitions: between two nodes, or all.
    Heal { between: Option<(String, String)> },
    /// Remove the lab; with `keep_data` after a clean shutdown of every node.
    Down { keep_data: bool, seconds: u64 },
}

/// The supervisor's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    /// Done.
    Done,
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Enter`]: the node's PID 1 as the lab's PID namespace numbers it.
    Enter(i32),
    /// To the same, for a node that is a machine.
    Ssh(Door),
    /// Refused or failed.
    Failed(Problem),
}

/// What a lab that is starting tells its starter, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Started {
    /// Every node has its PID 1.
    Up,
    /// It will not come up.
    Failed(Problem),
}

impl Started {
    /// The failure as a problem, with its remedy if it has one.
    pub(super) fn failed(error: &anyhow::Error) -> Self {
        Self::Failed(problem(error))
    }
}

/// An error as something that fits in a message.
pub(super) fn problem(error: &anyhow::Error) -> Problem {
    error.downcast_ref::<Problem>().cloned().unwrap_or_else(|| Problem::new(format!("{error:#}"), "", ""))
}

/// Tells the starter; nobody listening is no failure.
pub(super) fn report(started: &Started) {
    if let Ok(line) = serde_json::to_string(started) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// Writes one message.
pub(super) fn send(stream: &mut impl Write, message: &impl Serialize) -> anyhow::Result<()> {
    let line = serde_json::to_string(message)? + "\n";
    stream.write_all(line.as_bytes()).context("writing to the control socket")
}

/// Reads one message; `None` if the other side said nothing.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(stream: impl Read) -> anyhow::Result<Option<T>> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("reading from the control socket")?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&line).context("understanding the control socket").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_each() {
        let mut wire = Vec::new();
        send(&mut wire, &Request::Stop { slot: "pg-1".into(), seconds: 30 }).unwrap();
        assert_eq!(String::from_utf8_lossy(&wire), "{\"do\":\"stop\",\"slot\":\"pg-1\",\"seconds\":30}\n");
        assert!(matches!(receive(wire.as_slice()).unwrap(), Some(Request::Stop { seconds: 30, .. })));
        assert!(receive::<Request>(&b""[..]).unwrap().is_none());
    }

    #[test]
    fn a_problem_keeps_its_remedy() {
        let problem = Problem::new("port 5000 is taken", "127.0.0.1", "choose another");
        let error = anyhow::Error::from(problem.clone()).context("starting lab `x`");
        assert!(matches!(Started::failed(&error), Started::Failed(told) if told == problem));
    }
}
