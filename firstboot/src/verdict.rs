//! Whether this boot was good: does the node do its role's work?
//!
//! Good: it does. Bad: something cannot start *here*, and another image might. Undecided: it depends on others (peers,
//! etcd's quorum, a rebuild): never a reason to reboot. Only *bad* makes the boot loader fall back.

use std::time::{Duration, Instant};

use crate::durable;
use crate::layout::Layout;
use crate::patroni::Local;
use crate::problem::Problem;
use crate::services::Unit;
use crate::status::{Status, StepState, Verdict};
use crate::update::tries;
use crate::{setback, step, tool};

/// What has failed this often without success does not work here.
pub const TRIES: u32 = 5;

/// What was seen of this node's services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the local etcd member is not part of a quorum; `None`: it is.
    pub etcd: Option<String>,
    /// What Patroni says, or why it does not.
    pub patroni: Option<Result<Local, String>>,
    /// Whether PostgreSQL has not started for so long that it will not, here and with this image.
    pub postgres_does_not_start: bool,
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

/// The verdict and, unless it is good, its reason.
pub fn judge(health: &Health) -> (Verdict, Option<String>) {
    if let Some(unit) = health.failing.iter().find(|unit| unit.cannot_start()) {
        let Problem { what, remedy, .. } = unit.problem();
        return (Verdict::Bad, Some(format!("{what}; {remedy}")));
    }
    if health.postgres_does_not_start {
        let why = "PostgreSQL does not start; see `journalctl -b -u patroni`";
        return (Verdict::Bad, Some(why.to_owned()));
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

/// After being undecided for so long a boot waits for others: its try is given back.
const WAITS_FOR_OTHERS: Duration = Duration::from_secs(20);
/// Between two looks at an agent that has not said anything final.
const LOOK_AT_AGENT: Duration = Duration::from_secs(5);
/// Exit status of an agent that will try again by itself (`cli::run`).
const TEMPORARY: &str = "75";

/// Waits for the agent's verdict: for `boot-complete.target`. Good takes the counter off the boot loader's file, undecided
/// waits on and gives the try back, bad is an error and costs the try in any case.
pub async fn wait(layout: &Layout) -> Result<(), Problem> {
    let verdict = decide(layout).await;
    if verdict.is_err()
        && let Err(error) = tries::take_again(layout)
    {
        tracing::warn!("the boot loader's file: {error:#}");
    }
    verdict
}

async fn decide(layout: &Layout) -> Result<(), Problem> {
    let started = Instant::now();
    let (mut waits, mut looked) = (false, started);
    loop {
        match durable::read_json::<Status>(&layout.status()) {
            Ok(Some(Status { verdict: Verdict::Good, .. })) => {
                tries::say_good(layout);
                return Ok(());
            }
            Ok(Some(Status { verdict: Verdict::Bad, error, waiting_for, .. })) => {
                let unknown = || {
                    let what = waiting_for.unwrap_or_else(|| "this node cannot do its role's work".to_owned());
                    Problem::new(what, "firstboot status", "see `journalctl -b -u firstboot`")
                };
                return Err(error.unwrap_or_else(unknown));
            }
            // The agent has come far enough to say that it waits: whatever is missing, it is not the image.
            Ok(Some(status))
                if !waits
                    && started.elapsed() > WAITS_FOR_OTHERS
                    && waits_for_others(&status, setback::is_there(layout)) =>
            {
                waits = true;
                match tries::give_back(layout) {
                    Ok(Some(before)) => tracing::info!("this boot waits for others: {} gets its try back", before.id),
                    Ok(None) => {}
                    Err(error) => tracing::warn!("the boot loader's file: {error:#}"),
                }
            }
            // Not written yet, or being replaced.
            Ok(_) | Err(_) => {}
        }
        if looked.elapsed() > LOOK_AT_AGENT {
            looked = Instant::now();
            let shown =
                tool::systemctl(&["show", "--property=NRestarts,ExecMainStatus,SubState", "firstboot"]).run().await;
            if let Some(why) = shown.ok().and_then(|text| crashes(&text)) {
                return Err(Problem::new(why, "firstboot.service", "see `journalctl -b -u firstboot`"));
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Whether it is not this machine's own work that keeps an undecided boot; `setback`: the agent's last attempt failed at that.
fn waits_for_others(status: &Status, setback: bool) -> bool {
    let at_it = |state| matches!(state, StepState::Running | StepState::Failed);
    !setback && !status.steps.iter().any(|step| at_it(step.state) && step::is_local(&step.id))
}

/// Whether the agent itself does not run here: it ends again and again, and not because something may be better next time.
fn crashes(shown: &str) -> Option<String> {
    let value = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let restarts: u32 = value("NRestarts")?.parse().ok()?;
    let status = value("ExecMainStatus")?;
    let ends = restarts >= TRIES && !["0", TEMPORARY].contains(&status);
    ends.then(|| format!("the agent ended {restarts} times, the last time with {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::End;
    use crate::status::StepState::{Done, Failed, Pending, Running, Unchanged};
    use crate::status::StepStatus;

    fn local(state: &str, role: &str, replication: Option<&str>) -> Option<Result<Local, String>> {
        let replication_state = replication.map(str::to_owned);
        Some(Ok(Local { state: state.to_owned(), role: role.to_owned(), replication_state }))
    }

    #[test]
    fn good_bad_undecided() {
        let unit = |active: &str, restarts| Unit {
            name: "patroni.service".into(),
            active: active.into(),
            restarts,
            ended: Some(End::Exited(1)),
        };
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
            (Health { patroni: local("start failed", "replica", None), ..good.clone() }, Verdict::Undecided),
            (Health { postgres_does_not_start: true, etcd: Some("no leader".into()), ..good.clone() }, Verdict::Bad),
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
    fn only_a_boot_that_others_keep_gets_its_try_back() {
        let waits = |steps: &[(&str, StepState)], setback| {
            let steps = steps.iter().map(|(id, state)| StepStatus {
                id: (*id).to_owned(),
                state: *state,
                seconds: None,
                detail: String::new(),
            });
            waits_for_others(&Status { steps: steps.collect(), ..Status::default() }, setback)
        };
        assert!(waits(&[], false), "nobody has said what it must become");
        assert!(!waits(&[], true), "the agent begins again after a failure of its own");
        for of_others in ["network", "join", "form", "etcd", "slot"] {
            assert!(waits(&[("haproxy", Done), (of_others, Running), ("patroni", Pending)], false));
            assert!(waits(&[("pki", Unchanged), (of_others, Failed)], false));
        }
        assert!(!waits(&[("haproxy", Running), ("etcd", Pending)], false));
        assert!(!waits(&[("haproxy", Failed), ("etcd", Pending)], false));
        assert!(waits(&[("haproxy", Done), ("patroni", Done)], false), "a rebuild");
    }

    #[test]
    fn an_agent_that_crashes_is_bad_and_one_that_tries_again_is_not() {
        let shown = |restarts: u32, status: u32| crashes(&format!("NRestarts={restarts}\nExecMainStatus={status}\n"));
        assert!(shown(5, 101).is_some() && shown(9, 203).is_some());
        assert_eq!([shown(4, 101), shown(50, 75), shown(50, 0), crashes("")], [None, None, None, None]);
    }
}
