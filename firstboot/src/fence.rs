//! The watchdog's work on a machine that has none (safety rule 7): a primary that nobody watches any more is stopped before
//! another one may be elected.
//!
//! Patroni renews the leader key; when it hangs or cannot start, PostgreSQL goes on while the key expires and a replica is
//! promoted. From then on two servers accept writes. Quorum commits alone do not prevent that: a standby acknowledges to
//! the old primary until it follows the new one.
//!
//! Two signs must be missing. Patroni's REST interface does not answer for long; and etcd, if it can be asked, says that
//! the leader key is about to expire, or not this node's. A slow Patroni that still renews its key is left alone, and so
//! is a cluster in maintenance mode, where nobody is elected.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::etcd::Client;
use crate::patroni::Patroni;
use crate::render::preset::Preset;
use crate::sql;
use crate::status::Board;

/// Between looks.
const LOOK: Duration = Duration::from_secs(1);
/// For an answer of Patroni or etcd.
const ANSWER: Duration = Duration::from_secs(1);
/// For PostgreSQL to say what it is; one that cannot say is treated as a primary.
const ASK: Duration = Duration::from_secs(2);
/// From the request to end at once to the kill that cannot be refused.
const IMMEDIATE: Duration = Duration::from_millis(1500);

/// What is watched, and by which limits.
#[derive(Debug)]
pub struct Fence {
    /// This node.
    pub slot: String,
    /// Patroni's scope.
    pub scope: String,
    /// PostgreSQL's data directory.
    pub pgdata: PathBuf,
    /// etcd.
    pub client: std::sync::Arc<Client>,
    /// Patroni here.
    pub patroni: Patroni,
    /// Time limits of the cluster.
    pub preset: Preset,
    /// Where it is said.
    pub board: Board,
}

/// What etcd says about the leader key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// This node holds it for so long.
    Ours(Duration),
    /// It does not.
    NotOurs,
    /// Nobody is elected now: maintenance mode.
    Paused,
    /// etcd does not answer.
    Unknown,
}

/// Whether a silent Patroni's PostgreSQL must end now.
fn due(silent: Duration, key: Key, preset: &Preset) -> bool {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    // The key lives at least `ttl - loop_wait` longer than Patroni; what is left then is the watchdog's margin.
    let patience = seconds(preset.ttl.saturating_sub(preset.loop_wait + preset.safety_margin));
    let margin = seconds(preset.safety_margin);
    silent >= patience
        && match key {
            Key::Ours(left) => left <= margin,
            Key::NotOurs | Key::Unknown => true,
            Key::Paused => false,
        }
}

impl Fence {
    /// Watches until dropped.
    pub async fn run(&self) -> std::convert::Infallible {
        let mut answered = Instant::now();
        loop {
            let asked = Instant::now();
            match tokio::time::timeout(ANSWER, self.patroni.local()).await {
                Ok(Ok(_)) => answered = asked,
                _ if due(answered.elapsed(), Key::Unknown, &self.preset) => self.decide(answered.elapsed()).await,
                _ => {}
            }
            tokio::time::sleep(LOOK.saturating_sub(asked.elapsed())).await;
        }
    }

    async fn decide(&self, silent: Duration) {
        let key = tokio::time::timeout(ANSWER, self.key()).await.unwrap_or(Key::Unknown);
        let Some(pid) = postmaster(&self.pgdata).filter(|_| due(silent, key, &self.preset)) else { return };
        if follows().await {
            return;
        }
        let why = format!(
            "Patroni has not answered for {} s and its leader key is {}; PostgreSQL ({pid}) is stopped at once, before \
             another node is elected",
            silent.as_secs(),
            match key {
                Key::Ours(left) => format!("ours for {} s only", left.as_secs()),
                Key::NotOurs => "not ours".to_owned(),
                Key::Paused | Key::Unknown => "unknown, etcd does not answer".to_owned(),
            }
        );
        tracing::error!("{why}");
        self.board.note(why);
        stop(pid, &self.pgdata).await;
    }

    async fn key(&self) -> Key {
        let name = |key: &str| format!("/service/{}/{key}", self.scope);
        match self.client.get(&name("config")).await {
            Ok(Some(config)) if config.json::<serde_json::Value>().is_ok_and(|c| c["pause"] == true) => {
                return Key::Paused;
            }
            Ok(_) => {}
            Err(_) => return Key::Unknown,
        }
        match self.client.get(&name("leader")).await {
            Ok(Some(leader)) if leader.value == self.slot.as_bytes() => {
                match self.client.time_to_live(leader.lease).await {
                    Ok(left) => Key::Ours(Duration::from_secs(left.unwrap_or(0).try_into().unwrap_or(0))),
                    Err(_) => Key::Unknown,
                }
            }
            Ok(_) => Key::NotOurs,
            Err(_) => Key::Unknown,
        }
    }
}

/// Whether PostgreSQL here says that it is a standby.
async fn follows() -> bool {
    sql::ask("SELECT pg_is_in_recovery()", ASK).await.is_ok_and(|said| said == "t")
}

/// The postmaster of `pgdata`. A number left by a crash may belong to anybody by now: a postmaster works in its directory.
fn postmaster(pgdata: &Path) -> Option<Pid> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)?;
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    (works_in == fs::canonicalize(pgdata).ok()?).then(|| Pid::from_raw(pid))
}

/// Immediate shutdown: no checkpoint, no waiting for standbys; committed data is in the WAL.
async fn stop(pid: Pid, pgdata: &Path) {
    let _ = kill(pid, Signal::SIGQUIT);
    tokio::time::sleep(IMMEDIATE).await;
    if postmaster(pgdata) == Some(pid) {
        let _ = kill(pid, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::preset;
    use crate::spec::Rto;

    #[test]
    fn stopped_before_the_key_expires_and_not_while_it_is_renewed() {
        let fast = preset::of(Rto::Fast);
        let s = Duration::from_secs;
        assert!(!due(s(9), Key::NotOurs, &fast), "Patroni is given some time to restart");
        assert!(!due(s(60), Key::Ours(s(19)), &fast), "a slow Patroni that renews its key");
        assert!(!due(s(60), Key::Paused, &fast));
        assert!(
            due(s(10), Key::Ours(s(5)), &fast) && due(s(10), Key::Unknown, &fast) && due(s(10), Key::NotOurs, &fast)
        );
        for rto in [Rto::Fast, Rto::Norm, Rto::Wide] {
            let preset = preset::of(rto);
            // Frozen right before a renewal, the key lives ttl - loop_wait longer.
            let key_ends = preset.ttl - preset.loop_wait;
            let latest = (0..preset.ttl)
                .find(|t| due(s((*t).into()), Key::Ours(s(key_ends.saturating_sub(*t).into())), &preset));
            let looks = 5; // ask Patroni, etcd and PostgreSQL, end PostgreSQL
            assert!(latest.is_some_and(|t| t + looks <= key_ends), "{rto:?}: {latest:?}");
        }
    }

    #[test]
    fn only_a_process_that_works_in_the_data_directory_is_a_postmaster() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(postmaster(dir.path()), None);
        fs::write(dir.path().join("postmaster.pid"), format!("{}\n/x\n", std::process::id())).unwrap();
        assert_eq!(postmaster(dir.path()), None);
        fs::write(dir.path().join("postmaster.pid"), "1\n").unwrap();
        assert_eq!(postmaster(dir.path()), None);
    }
}
