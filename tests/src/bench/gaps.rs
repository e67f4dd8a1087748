//! How long writes stop when the leader changes or dies, beside what arithmetic says about it.

use std::fmt::Write as _;

use firstboot::spec::Rto;

use crate::chaos::scenarios::named;
use crate::chaos::{Arena, Pace};
use crate::plot::{Bar, median};

/// What is measured: the scenario, what the settings of preset `fast` (20/5/5, etcd election 1 s) add up to in seconds,
/// and the median that must not be exceeded.
///
/// Switchover: shutdown checkpoint, 1 s of grace, promotion, checks. Postmaster: up to one `loop_wait` until Patroni
/// looks, then a local restart. Node: what is left of the lease (`ttl - loop_wait` to `ttl`), its expiry scan, promotion and
/// checks; with an etcd leader that died too, an election and a prolonged lease more.
const MEASURED: [(&str, &str, f64); 4] = [
    ("switchover", "2-5", 2.0),
    ("switchover-to", "2-5", 2.0),
    ("postmaster-killed", "1-8", 5.0),
    ("node-killed", "15.8-26.0 (etcd too: -29)", 20.0),
];

/// Seconds without an acknowledgement, by what happened.
#[derive(Debug)]
pub struct Gaps {
    rows: Vec<Bar>,
}

/// Runs each event `runs` times on a cluster of the preset `fast`. Every run is checked like any other scenario.
pub fn gaps(runs: u64) -> anyhow::Result<Gaps> {
    let mut arena = Arena::new("gaps", Rto::Fast)?;
    let mut rows: Vec<Bar> = MEASURED.map(|(name, ..)| Bar { label: name.to_owned(), runs: Vec::new() }).into();
    for seed in 1..=runs {
        for row in &mut rows {
            let outcome = arena.run(named(&row.label)?, seed, Pace::SHORT)?;
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
            let measured = MEASURED.iter().find(|(name, ..)| row.label == *name);
            let (arithmetic, goal) = measured.map_or(("", 0.0), |(_, arithmetic, goal)| (*arithmetic, *goal));
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
