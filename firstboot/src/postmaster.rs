//! Wakes Patroni when the postmaster dies. Patroni looks every `loop_wait` seconds; the kernel knows at once, and tells
//! whoever holds a pidfd.
//!
//! A postmaster that stops in order removes `postmaster.pid`; one that dies leaves it behind: only then Patroni is woken.
//! Nothing else is done here: what happens next is Patroni's decision.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::patroni::Patroni;

/// Between looks for a postmaster while there is none.
const LOOK: Duration = Duration::from_millis(500);
/// For how many looks Patroni is woken: beyond that it has seen what happened, and something else is wrong.
const TRIES: u32 = 20;

/// A running postmaster.
#[derive(Debug)]
struct Postmaster {
    pid: i32,
    fd: AsyncFd<OwnedFd>,
}

impl Postmaster {
    /// The one of `pgdata`; `None` if none runs.
    fn of(pgdata: &Path) -> Option<Self> {
        let pid = pid(pgdata)?;
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        // A number left by a crash may belong to anybody by now: a postmaster works in its data directory.
        let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        let own = fs::canonicalize(pgdata).is_ok_and(|pgdata| pgdata == works_in);
        #[expect(deprecated, reason = "sound for a descriptor that is owned; its successor is an unsafe function")]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE).ok().filter(|_| own)?;
        Some(Self { pid, fd })
    }

    /// Returns when it has ended.
    async fn ended(&self) {
        if let Err(error) = self.fd.readable().await {
            tracing::debug!("waiting for the postmaster's end: {error}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// First line of `postmaster.pid`.
fn pid(pgdata: &Path) -> Option<i32> {
    fs::read_to_string(pgdata.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}

/// Makes PostgreSQL read its settings and certificates again, if it runs.
pub fn reload(pgdata: &Path) -> Result<()> {
    let running = Postmaster::of(pgdata).and_then(|postmaster| Pid::from_raw(postmaster.pid));
    running.map_or(Ok(()), |pid| kill_process(pid, Signal::HUP)).context("telling PostgreSQL to read its certificates")
}

/// Watches one postmaster after the other, until dropped.
pub async fn watch(pgdata: &Path, patroni: &Patroni) {
    loop {
        let Some(postmaster) = Postmaster::of(pgdata) else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        postmaster.ended().await;
        if pid(pgdata) == Some(postmaster.pid) {
            tracing::warn!("the postmaster ({}) died; waking Patroni", postmaster.pid);
            wake(pgdata, postmaster.pid, patroni).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Wakes Patroni until another postmaster runs here. Once is not enough: the first look may still find the dead
/// postmaster's children, or be the end of a look that began before, and the next would be `loop_wait` away.
async fn wake(pgdata: &Path, dead: i32, patroni: &Patroni) {
    for _ in 0..TRIES {
        if let Err(error) = patroni.wake().await {
            tracing::info!("Patroni is not woken yet: {error:#}");
        }
        tokio::time::sleep(LOOK).await;
        if pid(pgdata) != Some(dead) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::tests::block_on;

    #[test]
    fn only_a_process_that_works_in_the_data_directory_is_a_postmaster() {
        let dir = tempfile::tempdir().unwrap();
        let start = |in_dir: &Path| {
            #[expect(clippy::disallowed_methods, reason = "a process to be killed, not a tool run to its end")]
            std::process::Command::new("sleep").arg("60").current_dir(in_dir).spawn().unwrap()
        };
        let write = |pid: u32| fs::write(dir.path().join("postmaster.pid"), format!("{pid}\n/x\n1\n")).unwrap();
        block_on(async {
            assert!(Postmaster::of(dir.path()).is_none());
            let mut stranger = start(Path::new("/"));
            write(stranger.id());
            assert!(Postmaster::of(dir.path()).is_none());
            stranger.kill().unwrap();
            stranger.wait().unwrap();
            let mut own = start(dir.path());
            write(own.id());
            let postmaster = Postmaster::of(dir.path()).unwrap();
            let early = tokio::time::timeout(Duration::from_millis(50), postmaster.ended()).await;
            assert!(early.is_err(), "it still runs");
            own.kill().unwrap();
            tokio::time::timeout(Duration::from_secs(5), postmaster.ended()).await.unwrap();
            own.wait().unwrap();
            assert!(Postmaster::of(dir.path()).is_none());
        });
    }
}
