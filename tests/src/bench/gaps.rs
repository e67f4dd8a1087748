//! How long writes stop when the leader changes or dies, beside what arithmetic says about it.

use std::fmt::Write as _;

use firstboot::spec::Rto;

use super::wait_etcd_led_elsewhere;
use crate::chaos::scenarios::named;
use crate::chaos::{Arena, Pace};
use crate::plot::{Bar, median};

/// What is measured, what the settings of preset `fast` (20/5/5, etcd election 1 s) add up to, and what is allowed.
struct Measured {
    /// Row of the table.
    label: &'static str,
    scenario: &'static str,
    /// Seconds.
    arithmetic: &'static str,
    /// Median that must not be exceeded, in seconds.
    goal: f64,
    /// Only after the agent has moved etcd's leader off the primary's machine, as it is 25 s after every change of roles.
    settled: bool,
}

/// Switchover: shutdown checkpoint, 1 s of grace, promotion, checks; a named candidate lets the others sleep 2 s more.
/// Postmaster: Patroni is woken, then a local restart. Node: what is left of the lease (`ttl - loop_wait` to `ttl`), its
/// expiry scan, promotion and checks; had etcd's leader died too, an election and a prolonged lease more.
const MEASURED: [Measured; 4] = [
    Measured { label: "switchover", scenario: "switchover", arithmetic: "2-5", goal: 2.0, settled: false },
    Measured { label: "switchover-to", scenario: "switchover-to", arithmetic: "3-6", goal: 2.0, settled: false },
    Measured {
        label: "postmaster-killed",
        scenario: "postmaster-killed",
        arithmetic: "1-8",
        goal: 5.0,
        settled: false,
    },
    Measured { label: "node-killed", scenario: "node-killed", arithmetic: "15.3-24.5", goal: 20.0, settled: true },
];

/// Seconds without an acknowledgement, by what happened.
#[derive(Debug)]
pub struct Gaps {
    rows: Vec<Bar>,
}

/// Runs each event `runs` times on a cluster of the preset `fast`. Every run is checked like any other scenario.
pub fn gaps(runs: u64) -> anyhow::Result<Gaps> {
    let mut arena = Arena::new("gaps", Rto::Fast)?;
    let mut rows: Vec<Bar> = MEASURED.map(|measured| Bar { label: measured.label.to_owned(), runs: Vec::new() }).into();
    for seed in 1..=runs {
        for (row, measured) in rows.iter_mut().zip(&MEASURED) {
            if measured.settled {
                wait_etcd_led_elsewhere(&arena.cluster)?;
            }
            let outcome = arena.run(named(measured.scenario)?, seed, Pace::SHORT)?;
            eprintln!("{outcome}");
            row.runs.push(outcome.gap.as_secs_f64());
        }
    }
    Ok(Gaps { rows })
}

impl Gaps {
    /// The table; numbers and histograms go to `target/bench/gaps.{json,svg}`.
    pub fn publish(&self) -> anyhow::Result<String> {
        super::draw_gaps("gaps", &self.rows)?;
        Ok(self.table())
    }

    fn table(&self) -> String {
        let mut table = format!(
            "{:<20} {:>4} {:>8} {:>8} {:>8}  arithmetic (s)\n",
            "write gap (s)", "runs", "median", "worst", "goal"
        );
        for row in &self.rows {
            let measured = MEASURED.iter().find(|measured| row.label == measured.label);
            let (arithmetic, goal) = measured.map_or(("", 0.0), |measured| (measured.arithmetic, measured.goal));
            let worst = row.runs.iter().copied().fold(0.0, f64::max);
            let (runs, median) = (row.runs.len(), median(&row.runs));
            let _ = writeln!(table, "{:<20} {runs:>4} {median:>8.2} {worst:>8.2} {goal:>8.1}  {arithmetic}", row.label);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_median_and_worst_beside_the_arithmetic() {
        let gaps = Gaps { rows: vec![Bar { label: "postmaster-killed".into(), runs: vec![2.0, 9.5, 3.0] }] };
        let line = gaps.table().lines().nth(1).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line, "postmaster-killed 3 3.00 9.50 5.0 1-8");
    }
}
