//! Breaking a cluster while it is written to, and proving afterwards that nothing went wrong.
//!
//! ```text
//! writers, probes -> histories ; (histories, rows read back) -> checker
//! ```
//!
//! Writers are applications: they go through HAProxy (or the virtual IP) and change the connection when it fails. Probes go
//! to one node each, past every proxy, and try to write there all the time: they are how a second primary is seen that
//! no proxy leads to. Both are the same [`client`]. Two things are checked after every scenario:
//!
//! * **I1** nothing acknowledged is lost, and nothing is there that was never sent;
//! * **I2** there are never two writers at one instant.
//!
//! A new scenario is a function in [`scenarios`] and a line in its table.

use std::fmt;
use std::time::Instant;

use firstboot::spec::Rto;

mod arena;
pub mod checker;
mod client;
mod history;
pub mod scenarios;

pub use arena::{Arena, Outcome, Pace, Scene};
pub use client::{Client, Observers};
pub use history::{Accepted, Attempt, History, Result};

/// How all scenarios of a seed ended.
#[derive(Debug)]
pub struct All {
    /// From the cluster's start to the last scenario's end.
    pub seconds: f64,
    /// One for each scenario, in the order they were run.
    pub outcomes: Vec<Outcome>,
}

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worst = self.outcomes.iter().map(|outcome| outcome.gap).max().unwrap_or_default();
        write!(f, "{} scenarios, longest gap {:.1}s", self.outcomes.len(), worst.as_secs_f64())
    }
}

/// All scenarios, or those named, in an order that follows from `seed`, on one cluster.
pub fn all(seed: u64, only: &[String], pace: Pace) -> anyhow::Result<All> {
    let begin = Instant::now();
    let wanted = only.iter().map(|name| scenarios::named(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut left = if wanted.is_empty() { scenarios::ALL.iter().collect() } else { wanted };
    let (mut random, mut arena) = (crate::random::SplitMix(seed), Arena::new("torture", Rto::Fast)?);
    let mut outcomes = Vec::new();
    while !left.is_empty() {
        let next = usize::try_from(random.below(left.len() as u64))?;
        let outcome = arena.run(left.swap_remove(next), seed, pace)?;
        eprintln!("   {outcome}");
        outcomes.push(outcome);
    }
    Ok(All { seconds: begin.elapsed().as_secs_f64(), outcomes })
}
