//! What the agent does beyond the components' own ways, switched off and on: the same event, many times each, side by side.

use std::fmt::Write as _;

use anyhow::ensure;
use firstboot::spec::{Rto, Tweaks};

use crate::chaos::scenarios::named;
use crate::chaos::{Arena, Pace};
use crate::cluster::TestCluster;
use crate::plot::{Bar, median};

/// A switch of `pgkiln.tweaks`, and the event whose pause it is to shorten.
struct Win {
    tweak: &'static str,
    scenario: &'static str,
    set: fn(&mut Tweaks, bool),
    /// Brings about what the switch is for.
    before: fn(&TestCluster, bool) -> anyhow::Result<()>,
}

const WINS: [Win; 5] = [
    Win {
        tweak: "wake_patroni",
        scenario: "postmaster-killed",
        set: |tweaks, on| tweaks.wake_patroni = on,
        before: |_, _| Ok(()),
    },
    Win {
        tweak: "push_roles",
        scenario: "switchover",
        set: |tweaks, on| tweaks.push_roles = on,
        before: |_, _| Ok(()),
    },
    Win {
        tweak: "quick_switchover",
        scenario: "switchover",
        set: |tweaks, on| tweaks.quick_switchover = on,
        before: |_, _| Ok(()),
    },
    Win {
        tweak: "quick_switchover",
        scenario: "switchover-to",
        set: |tweaks, on| tweaks.quick_switchover = on,
        before: |_, _| Ok(()),
    },
    Win {
        tweak: "move_etcd_leader",
        scenario: "node-killed",
        set: |tweaks, on| tweaks.move_etcd_leader = on,
        before: etcd_leads_beside_the_primary,
    },
];

/// Puts etcd's leader where it does harm; with the switch on, waits until the agent has taken it away.
fn etcd_leads_beside_the_primary(cluster: &TestCluster, on: bool) -> anyhow::Result<()> {
    let leader = cluster.leader()?;
    cluster.move_etcd_leader(&leader)?;
    if !on {
        return Ok(());
    }
    super::wait_etcd_led_elsewhere(cluster)
}

/// Seconds without an acknowledgement, by switch and event.
#[derive(Debug)]
pub struct Wins {
    rows: Vec<Bar>,
}

/// Runs each event `runs` times with its switch off and `runs` times with it on, preset `fast`; only the switches named, if
/// any are. Every run is checked like any other scenario.
pub fn wins(runs: u64, only: &[String]) -> anyhow::Result<Wins> {
    let mut rows = Vec::new();
    for win in WINS.iter().filter(|win| only.is_empty() || only.iter().any(|name| name == win.tweak)) {
        for on in [false, true] {
            let set = win.set;
            let mut arena = Arena::with("wins", Rto::Fast, move |definition| set(&mut definition.tweaks, on))?;
            let label = format!("{} {}: {}", win.tweak, if on { "on" } else { "off" }, win.scenario);
            let mut row = Bar { label, runs: Vec::new() };
            for seed in 1..=runs {
                (win.before)(&arena.cluster, on)?;
                let outcome = arena.run(named(win.scenario)?, seed, Pace::SHORT)?;
                eprintln!("{} {outcome}", row.label);
                row.runs.push(outcome.gap.as_secs_f64());
            }
            rows.push(row);
        }
    }
    ensure!(!rows.is_empty(), "no such switch; there are {}", WINS.map(|win| win.tweak).join(", "));
    Ok(Wins { rows })
}

impl Wins {
    /// The table; numbers and histograms go to `target/bench/wins.{json,svg}`.
    pub fn publish(&self) -> anyhow::Result<String> {
        super::draw_gaps("wins", &self.rows)?;
        let mut table = format!("{:<40} {:>4} {:>8} {:>8}\n", "write gap (s)", "runs", "median", "worst");
        for row in &self.rows {
            let worst = row.runs.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(table, "{:<40} {:>4} {:>8.2} {worst:>8.2}", row.label, row.runs.len(), median(&row.runs));
        }
        Ok(table)
    }
}
