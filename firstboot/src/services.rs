//! This node's services as systemd sees them, and which of them cannot start *here*.
//!
//! What depends on others is none of it. etcd without quorum runs and waits (`TimeoutStartSec=infinity`), however often it was
//! restarted before; one that was removed from its cluster ends with 0; one without a log of its own ends as long as its peers do
//! not answer.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use crate::layout::Layout;
use crate::plan::Desired;
use crate::problem::Problem;
use crate::status::Board;
use crate::tool;
use crate::verdict::TRIES;

/// Between two looks while steps run.
const LOOK: Duration = Duration::from_secs(5);

/// How a service's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Before there was one: systemd's `Result`.
    Other(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "it exited with {status}"),
            Self::Killed(signal) => write!(f, "it was killed by signal {signal}"),
            Self::Other(result) => write!(f, "systemd says `{result}`"),
        }
    }
}

/// A unit that is not active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// systemd's `ActiveState`.
    pub active: String,
    /// How often systemd restarted it.
    pub restarts: u32,
    /// How it ended; `None`: it runs, and is not ready yet.
    pub ended: Option<End>,
}

impl Unit {
    /// Whether it has ended too often to be expected to start.
    pub fn cannot_start(&self) -> bool {
        self.active == "failed" || (self.restarts >= TRIES && self.ended.is_some())
    }

    /// What a reader must know of one that cannot start.
    pub fn problem(&self) -> Problem {
        let how = self.ended.as_ref().map(End::to_string).unwrap_or_else(|| "systemd has given it up".to_owned());
        let service = self.name.trim_end_matches(".service");
        let what = format!("{service} on this node cannot start: {how}, after {} restarts", self.restarts);
        Problem::new(what, self.name.clone(), format!("look at `journalctl -b -u {}`", self.name))
    }
}

/// The services of this node's role.
#[derive(Debug, Clone)]
pub struct Services {
    units: Vec<String>,
    etcd: Option<String>,
    wal: PathBuf,
    live: bool,
    seen: Vec<Unit>,
}

impl Services {
    /// Those that `desired` runs here.
    pub fn new(layout: &Layout, desired: &Desired) -> Self {
        let services = desired.profile.services.iter().filter(|service| desired.runs(service));
        let unit = |service: &str| desired.image.unit(service).ok().map(str::to_owned);
        Self {
            units: services.filter_map(|service| unit(service)).collect(),
            etcd: unit("etcd").filter(|_| desired.runs("etcd")),
            wal: layout.etcd_wal(),
            live: layout.is_live(),
            seen: Vec::new(),
        }
    }

    /// Asks systemd; those that run well are left out.
    pub async fn look(&mut self) -> &[Unit] {
        let asked = ["ActiveState", "SubState", "NRestarts", "ExecMainCode", "ExecMainStatus", "Result"];
        let asked = format!("--property={}", asked.join(","));
        match tool::systemctl(&["show", &asked]).args(&self.units).run().await {
            Ok(text) => {
                let newborn = !self.wal.exists();
                self.seen = self.judged(parse(&text, &self.units), newborn);
            }
            Err(error) => tracing::debug!("asking systemd: {error:#}"),
        }
        &self.seen
    }

    /// What ended before all was well says nothing about what comes after.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    fn judged(&self, units: Vec<Unit>, newborn: bool) -> Vec<Unit> {
        let troubled = units.into_iter().filter(|unit| unit.active != "active").map(|mut unit| {
            let before = self.seen.iter().find(|seen| seen.name == unit.name);
            // Between two ends it runs for a moment: nothing is better yet.
            if let Some(before) = before.filter(|before| before.restarts < unit.restarts) {
                unit.ended = unit.ended.or(before.ended.clone());
            }
            unit
        });
        let of_others =
            |unit: &Unit| self.etcd.as_ref() == Some(&unit.name) && (newborn || unit.ended == Some(End::Exited(0)));
        troubled.filter(|unit| !of_others(unit)).collect()
    }

    /// Says on the board what cannot start while steps run: until they are done no watch does, and a step may wait for ever for a
    /// service that ends again and again.
    pub async fn guard(&mut self, board: &Board) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            if self.live {
                let broken = self.look().await.iter().find(|unit| unit.cannot_start()).map(Unit::problem);
                board.cannot_start(broken);
            }
        }
    }
}

/// `systemctl show` has a block for each unit it was asked about, in that order.
fn parse(text: &str, units: &[String]) -> Vec<Unit> {
    let unit = |(block, name): (&str, &String)| {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str| value(key).and_then(|n| n.parse().ok()).unwrap_or(0);
        let active = value("ActiveState")?;
        let down = active == "failed" || value("SubState").is_some_and(|sub| sub.starts_with("auto-restart"));
        // `CLD_EXITED`, `CLD_KILLED`, `CLD_DUMPED` of waitid(2).
        let ended = match number("ExecMainCode") {
            1 => End::Exited(number("ExecMainStatus")),
            2 | 3 => End::Killed(number("ExecMainStatus")),
            _ => End::Other(value("Result").unwrap_or_default().to_owned()),
        };
        Some(Unit {
            name: name.clone(),
            active: active.to_owned(),
            restarts: value("NRestarts").and_then(|n| n.parse().ok()).unwrap_or(0),
            ended: down.then_some(ended),
        })
    };
    text.trim().split("\n\n").zip(units).filter_map(unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(active: &str, sub: &str, restarts: u32, code: i32, status: i32) -> String {
        format!(
            "ActiveState={active}\nSubState={sub}\nNRestarts={restarts}\nExecMainCode={code}\nExecMainStatus={status}\n\
             Result=exit-code\n"
        )
    }

    fn services(units: &[&str]) -> Services {
        let units: Vec<String> = units.iter().map(|unit| (*unit).to_owned()).collect();
        Services { units, etcd: Some("etcd.service".into()), wal: "/".into(), live: true, seen: Vec::new() }
    }

    impl Services {
        /// What cannot start after systemd has said this.
        fn hears(&mut self, text: &str, newborn: bool) -> Option<String> {
            self.seen = self.judged(parse(text, &self.units), newborn);
            self.seen.iter().find(|unit| unit.cannot_start()).map(|unit| unit.problem().what)
        }
    }

    #[test]
    fn what_ends_again_and_again_cannot_start() {
        let mut node = services(&["haproxy.service", "etcd.service"]);
        let good = shown("active", "running", 0, 0, 0);
        let mut hears = |etcd: String| node.hears(&format!("{good}\n{etcd}"), false);
        assert_eq!(hears(shown("activating", "auto-restart", 4, 1, 1)), None);
        let what = "etcd on this node cannot start: it exited with 1, after 5 restarts";
        assert_eq!(hears(shown("activating", "auto-restart", 5, 1, 1)).as_deref(), Some(what));
        assert!(hears(shown("activating", "start", 7, 0, 0)).is_some(), "it runs for a moment");
        assert!(hears(shown("activating", "auto-restart-queued", 8, 2, 6)).unwrap().contains("signal 6"));
        assert_eq!(hears(good.clone()), None);
        assert!(hears(shown("activating", "auto-restart", 9, 1, 1)).is_some());
        node.forget();
        let outage = format!("{good}\n{}", shown("activating", "start", 10, 0, 0));
        assert_eq!(node.hears(&outage, false), None, "it ended for the last time long ago");
        let mut node = services(&["haproxy.service"]);
        // Its check of the configuration fails: there was no main process.
        let what = node.hears(&shown("activating", "auto-restart", 9, 0, 0), false).unwrap();
        assert!(what.contains("haproxy on this node cannot start: systemd says `exit-code`"), "{what}");
        assert!(node.hears(&shown("failed", "failed", 0, 1, 1), false).is_some());
        assert_eq!(node.hears(&shown("inactive", "dead", 0, 0, 0), false), None, "nobody has started it yet");
    }

    #[test]
    fn an_outage_a_removal_and_a_birth_are_no_fault_of_this_node() {
        let mut node = services(&["etcd.service"]);
        // It was restarted for other reasons, and waits for quorum since.
        for _ in 0..3 {
            assert_eq!(node.hears(&shown("activating", "start", 50, 0, 0), false), None);
        }
        assert!(node.hears(&shown("activating", "auto-restart", 51, 1, 1), false).is_some());
        assert!(node.hears(&shown("activating", "start", 52, 0, 0), false).is_some());
        assert_eq!(node.hears(&shown("activating", "start", 52, 0, 0), false), None, "it stays, and waits");
        for (sub, code) in [("auto-restart", 1), ("start", 0), ("auto-restart", 1)] {
            let removed = shown("activating", sub, 60, code, 0);
            assert_eq!(node.hears(&removed, false), None, "etcd ends well when it was removed");
        }
        assert_eq!(node.hears(&shown("activating", "auto-restart", 70, 1, 1), true), None, "its peers do not answer");
        let mut other = services(&["haproxy.service"]);
        let ended = shown("activating", "auto-restart", 9, 1, 0);
        assert!(other.hears(&ended, true).is_some(), "whatever etcd has");
    }
}
