//! Whether this boot was good: does the node do its role's work?
//!
//! Good: it does. Bad: something cannot start *here*, and another image might. Undecided: it depends on others (peers,
//! etcd's quorum, a rebuild): never a reason to reboot. Only *bad* makes the boot loader fall back.

use std::time::Duration;

use crate::durable;
use crate::layout::Layout;
use crate::patroni::Local;
use crate::problem::Problem;
use crate::status::{Status, Verdict};
use crate::tool;

/// A service restarted this often without success does not start here.
const TRIES: u32 = 5;

/// What was seen of this node's services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the local etcd member is not part of a quorum; `None`: it is.
    pub etcd: Option<String>,
    /// What Patroni says, or why it does not.
    pub patroni: Option<Result<Local, String>>,
    /// Whether this node leads a cluster that may lose nothing and no standby may take over from it yet.
    pub irreplaceable: bool,
    /// Why HAProxy does not accept connections; `None`: it does.
    pub haproxy: Option<String>,
    /// What keeps the repository host from its work.
    pub repository: Option<Problem>,
    /// Why the virtual IP is not claimed here; `None`: it may be.
    pub vip: Option<String>,
    /// Units that systemd has given up on or keeps restarting.
    pub failing: Vec<Unit>,
}

/// A unit in trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// systemd's `ActiveState`.
    pub active: String,
    /// How often systemd restarted it.
    pub restarts: u32,
}

impl Unit {
    fn cannot_start(&self) -> bool {
        self.active == "failed" || (self.active != "active" && self.restarts >= TRIES)
    }
}

/// The verdict and, unless it is good, its reason.
pub fn judge(health: &Health) -> (Verdict, Option<String>) {
    if let Some(unit) = health.failing.iter().find(|unit| unit.cannot_start()) {
        return (Verdict::Bad, Some(format!("{0} does not start; see `journalctl -b -u {0}`", unit.name)));
    }
    if let Some(why) = &health.etcd {
        return (Verdict::Undecided, Some(format!("etcd's quorum: {why}")));
    }
    if let Some(problem) = &health.repository {
        return (Verdict::Undecided, Some(format!("somebody to look at the backups: {}", problem.what)));
    }
    match &health.patroni {
        None => {}
        Some(Ok(local)) if local.leads() || local.follows() => {}
        Some(Ok(local)) => {
            let replication = local.replication_state.as_deref().map(|s| format!(", {s}")).unwrap_or_default();
            return (Verdict::Undecided, Some(format!("PostgreSQL: {} ({}{replication})", local.state, local.role)));
        }
        Some(Err(why)) => return (Verdict::Undecided, Some(why.clone())),
    }
    if health.irreplaceable {
        let why = "a synchronous standby: until there is one nobody may take over from this leader";
        return (Verdict::Undecided, Some(why.to_owned()));
    }
    match (&health.haproxy, &health.vip) {
        (Some(why), _) => (Verdict::Undecided, Some(format!("HAProxy: {why}"))),
        (None, Some(why)) => (Verdict::Undecided, Some(format!("the virtual IP: {why}"))),
        (None, None) => (Verdict::Good, None),
    }
}

/// Asks systemd about `units`; those that run well are left out.
pub async fn failing(units: &[String]) -> Vec<Unit> {
    let shown = tool::systemctl(&["show", "--property=Id,ActiveState,NRestarts"]).args(units).run().await;
    shown.map(|text| parse(&text)).unwrap_or_default().into_iter().filter(|unit| unit.active != "active").collect()
}

fn parse(text: &str) -> Vec<Unit> {
    let unit = |block: &str| {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Some(Unit {
            name: value("Id")?.to_owned(),
            active: value("ActiveState")?.to_owned(),
            restarts: value("NRestarts").and_then(|n| n.parse().ok()).unwrap_or(0),
        })
    };
    text.split("\n\n").filter_map(unit).collect()
}

/// Waits for the agent's verdict: for `boot-complete.target`. Undecided waits on, bad is an error.
pub async fn wait(layout: &Layout) -> Result<(), Problem> {
    loop {
        match durable::read_json::<Status>(&layout.status()) {
            Ok(Some(Status { verdict: Verdict::Good, .. })) => return Ok(()),
            Ok(Some(Status { verdict: Verdict::Bad, error, waiting_for, .. })) => {
                let unknown = || {
                    let what = waiting_for.unwrap_or_else(|| "this node cannot do its role's work".to_owned());
                    Problem::new(what, "firstboot status", "see `journalctl -b -u firstboot`")
                };
                return Err(error.unwrap_or_else(unknown));
            }
            // Not written yet, or being replaced.
            Ok(_) | Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(state: &str, role: &str, replication: Option<&str>) -> Option<Result<Local, String>> {
        let replication_state = replication.map(str::to_owned);
        Some(Ok(Local { state: state.to_owned(), role: role.to_owned(), replication_state }))
    }

    #[test]
    fn good_bad_undecided() {
        let unit = |active: &str, restarts| Unit { name: "patroni.service".into(), active: active.into(), restarts };
        let good = Health { patroni: local("running", "primary", None), ..Health::default() };
        let cases = [
            (good.clone(), Verdict::Good),
            (Health { patroni: local("running", "replica", Some("streaming")), ..good.clone() }, Verdict::Good),
            (Health { patroni: local("running", "master", None), ..good.clone() }, Verdict::Good),
            (Health { patroni: local("creating replica", "replica", None), ..good.clone() }, Verdict::Undecided),
            (Health { patroni: Some(Err("connection refused".into())), ..good.clone() }, Verdict::Undecided),
            (Health { etcd: Some("no leader".into()), ..good.clone() }, Verdict::Undecided),
            (Health { irreplaceable: true, ..good.clone() }, Verdict::Undecided),
            (Health { haproxy: Some("connection refused".into()), ..good.clone() }, Verdict::Undecided),
            (Health { vip: Some("answered by 02:00:00:00:00:99".into()), ..good.clone() }, Verdict::Undecided),
            (Health { failing: vec![unit("activating", 1)], ..good.clone() }, Verdict::Good),
            (Health { failing: vec![unit("activating", 9)], ..good.clone() }, Verdict::Bad),
            (Health { failing: vec![unit("failed", 0)], ..good }, Verdict::Bad),
        ];
        for (health, expected) in cases {
            let (verdict, why) = judge(&health);
            assert_eq!(verdict, expected, "{health:?}");
            assert_eq!(why.is_none(), verdict == Verdict::Good);
        }
    }

    #[test]
    fn reads_systemctl_show() {
        let text = "Id=etcd.service\nActiveState=active\nNRestarts=0\n\nId=patroni.service\nActiveState=activating\n\
                    NRestarts=7\n";
        let units = parse(text);
        assert_eq!(units.len(), 2);
        assert!(units[1].cannot_start() && !units[0].cannot_start());
    }
}
