//! What this node is doing, in plain words, for whoever looks at two in the morning: kept in memory, mirrored to
//! `/run/pgkiln/status.json` on every change, printed by `firstboot status`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// Where the agent is in its life.
///
/// ```text
/// Searching -> Planning -> Applying <-> Waiting -> Joining -> Running -> HandingOver
///      \___________\__________\____________\__________\-> Failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Looking for metadata.
    Searching,
    /// Comparing specification, machine and records.
    Planning,
    /// Something outside this node must happen first; `waiting_for` says what.
    Waiting,
    /// Running steps.
    Applying,
    /// Becoming a member of the cluster.
    Joining,
    /// Doing the role's work.
    Running,
    /// Stopping in order.
    HandingOver,
    /// Stopped for good; `error` says why and what to do.
    Failed,
}

/// What a good boot means for this node (`boot-complete.target` follows it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// This node does its role's work.
    Good,
    /// It cannot: invalid configuration, or a service that does not start here.
    Bad,
    /// Peers, etcd or a rebuild are pending: wait, never reboot.
    Undecided,
}

/// State of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Being applied.
    Running,
    /// Applied in this run.
    Done,
    /// Recorded with the same input: nothing to do.
    Unchanged,
    /// Failed.
    Failed,
}

/// One line of the step list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepStatus {
    /// Identifier of the step.
    pub id: String,
    /// How far it is.
    pub state: StepState,
    /// How long it took or has taken.
    pub seconds: Option<f64>,
    /// What it does, or why it failed.
    pub detail: String,
}

/// A key of the user-data that had no effect, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredKey {
    /// Dotted path of the key.
    pub key: String,
    /// Line in the user-data.
    pub line: u64,
}

/// The virtual IP, as seen from one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// The address.
    pub address: std::net::IpAddr,
    /// Whether Keepalived has given it to this node.
    pub here: bool,
    /// MAC address that answers for it when it is here.
    pub mac: Option<String>,
    /// Whether HAProxy of this node leads to a primary; `null` if it does not say.
    #[serde(default)]
    pub leads: Option<bool>,
    /// Why this node does not claim it.
    pub problem: Option<Problem>,
}

/// The object of `firstboot status --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this object.
    pub schema: u32,
    /// Where the agent is.
    pub phase: Phase,
    /// What it waits for, in plain words with the remedy; `null` if nothing.
    pub waiting_for: Option<String>,
    /// When phase or `waiting_for` last changed (RFC 3339, UTC).
    pub since: String,
    /// Cluster name.
    pub cluster: Option<String>,
    /// Slot of this node.
    pub slot: Option<String>,
    /// Role of this node.
    pub role: Option<String>,
    /// The plan's steps.
    pub steps: Vec<StepStatus>,
    /// Good, bad or undecided.
    pub verdict: Verdict,
    /// Why the agent failed.
    pub error: Option<Problem>,
    /// The virtual IP, as seen from this node; `null`: none is moved by Keepalived.
    #[serde(default)]
    pub vip: Option<VipStatus>,
    /// Things a reader should know although the node works (stored specification in use, unfenced …).
    #[serde(default)]
    pub notes: Vec<String>,
    /// Keys of the user-data without effect.
    pub ignored_keys: Vec<IgnoredKey>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            schema: 1,
            phase: Phase::Searching,
            waiting_for: None,
            since: now(),
            cluster: None,
            slot: None,
            role: None,
            steps: Vec::new(),
            verdict: Verdict::Undecided,
            error: None,
            vip: None,
            notes: Vec::new(),
            ignored_keys: Vec::new(),
        }
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Shared handle: every part of the agent reports through it.
#[derive(Debug, Clone)]
pub struct Board {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    status: Status,
    path: Option<PathBuf>,
    said: Option<(String, Instant)>,
    broken: Option<Problem>,
}

impl Board {
    /// A board mirrored to `path`; `None` keeps it in memory (tests, `plan`).
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { status: Status::default(), path, said: None, broken: None })) }
    }

    /// A copy of the present status.
    pub fn get(&self) -> Status {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).status.clone()
    }

    /// Changes the status and mirrors it if it differs.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.status.clone();
        change(&mut inner.status);
        if inner.status == before {
            return;
        }
        if (inner.status.phase, &inner.status.waiting_for) != (before.phase, &before.waiting_for) {
            inner.status.since = now();
        }
        let Some(path) = &inner.path else { return };
        let written = serde_json::to_vec_pretty(&inner.status)
            .map_err(anyhow::Error::from)
            .and_then(|text| crate::durable::write_volatile(path, &text, 0o644, None));
        if let Err(error) = written {
            tracing::warn!("status not written: {error:#}");
        }
    }

    /// Enters a phase; nothing is waited for any more.
    pub fn phase(&self, phase: Phase) {
        self.update(|s| {
            s.phase = phase;
            s.waiting_for = None;
        });
    }

    /// Says what is waited for. The journal hears a new reason at once and the same one every 30 s, the file always.
    pub fn waiting(&self, reason: impl Into<String>) {
        let reason = reason.into();
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            // Numbers change with every attempt ("for 12 s"): the same reason otherwise.
            let shape: String = reason.chars().filter(|c| !c.is_ascii_digit()).collect();
            let repeat = matches!(&inner.said, Some((said, at)) if *said == shape && at.elapsed().as_secs() < 30);
            if !repeat {
                tracing::info!("waiting for {reason}");
                inner.said = Some((shape, Instant::now()));
            }
        }
        self.update(|s| s.waiting_for = Some(reason));
    }

    /// Nothing is waited for any more.
    pub fn waited(&self) {
        self.update(|s| s.waiting_for = None);
    }

    /// Sets the verdict.
    pub fn verdict(&self, verdict: Verdict) {
        self.update(|s| s.verdict = verdict);
    }

    /// While steps run: which service cannot start on this node. That is bad, until it does.
    pub fn cannot_start(&self, broken: Option<Problem>) {
        let before = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut inner.broken, broken.clone())
        };
        match (before, broken) {
            (before, Some(broken)) => {
                if before.is_none() {
                    tracing::error!("{broken}");
                }
                self.update(|s| (s.verdict, s.error) = (Verdict::Bad, Some(broken)));
            }
            (Some(before), None) => self.update(|s| {
                s.verdict = Verdict::Undecided;
                s.error.take_if(|error| *error == before);
            }),
            (None, None) => {}
        }
    }

    /// The service that cannot start on this node.
    pub fn broken(&self) -> Option<Problem> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).broken.clone()
    }

    /// Adds a note once.
    pub fn note(&self, note: impl Into<String>) {
        let note = note.into();
        self.update(|s| {
            if !s.notes.contains(&note) {
                s.notes.push(note);
            }
        });
    }

    /// Replaces what is noted about `topic`; `None`: nothing any more.
    pub fn note_on(&self, topic: &str, note: Option<String>) {
        let prefix = format!("{topic}: ");
        self.update(|s| {
            let said = note.map(|note| format!("{prefix}{note}"));
            let known = said.as_ref().is_some_and(|said| s.notes.contains(said));
            s.notes.retain(|old| !old.starts_with(&prefix) || said.as_ref() == Some(old));
            if !known && let Some(said) = said {
                tracing::info!("{said}");
                s.notes.push(said);
            }
        });
    }

    /// The agent stops: for good, which makes the boot bad, or until systemd starts it again.
    pub fn failed(&self, problem: Problem, verdict: Verdict) {
        self.update(|s| {
            s.phase = Phase::Failed;
            s.verdict = verdict;
            s.error = Some(problem);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_note_on_a_topic() {
        let board = Board::new(None);
        board.note("unfenced");
        for note in ["host down", "host down", "queue full"] {
            board.note_on("backups", Some(note.to_owned()));
        }
        assert_eq!(board.get().notes, ["unfenced", "backups: queue full"]);
        board.note_on("backups", None);
        assert_eq!(board.get().notes, ["unfenced"]);
    }

    #[test]
    fn what_cannot_start_is_bad_until_it_does() {
        let board = Board::new(None);
        let other = Problem::new("etcd's data is gone", "", "");
        let broken = |restarts: u32| Some(Problem::new(format!("{restarts} restarts"), "etcd.service", ""));
        board.update(|status| status.error = Some(other.clone()));
        board.cannot_start(None);
        assert_eq!((board.get().verdict, board.get().error), (Verdict::Undecided, Some(other)));
        for restarts in [5, 7] {
            board.cannot_start(broken(restarts));
            assert_eq!((board.get().verdict, board.get().error), (Verdict::Bad, broken(restarts)));
        }
        assert_eq!(board.broken(), broken(7));
        board.cannot_start(None);
        assert_eq!((board.get().verdict, board.get().error, board.broken()), (Verdict::Undecided, None, None));
    }

    #[test]
    fn mirrors_changes_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let board = Board::new(Some(path.clone()));
        board.waiting("pg-2 (10.0.0.12:8443): connection refused for 1 s");
        let read: Status = crate::durable::read_json(&path).unwrap().unwrap();
        assert_eq!(read.waiting_for.as_deref(), Some("pg-2 (10.0.0.12:8443): connection refused for 1 s"));
        fs_err::remove_file(&path).unwrap();
        board.waiting("pg-2 (10.0.0.12:8443): connection refused for 1 s");
        assert!(!path.exists());
    }
}
