//! One formed cluster, many questions: forming takes longer than asking, and outages are worth more on a cluster that has
//! been through others before.

use std::time::Instant;

use super::TestCluster;

/// What is told about a cluster, step by step.
pub struct Story<'a> {
    cluster: &'a TestCluster,
    failures: Vec<String>,
}

/// One step: a sentence that must be true, and what shows it.
pub type Step = fn(&TestCluster) -> anyhow::Result<()>;

impl<'a> Story<'a> {
    /// A story about `cluster`.
    pub fn about(cluster: &'a TestCluster) -> Self {
        Self { cluster, failures: Vec::new() }
    }

    /// Questions that change nothing: all are asked, failures are collected.
    pub fn look(&mut self, steps: &[(&str, Step)]) {
        for (what, step) in steps.iter().filter(|(what, _)| wanted(what)) {
            if let Err(error) = timed(what, *step, self.cluster) {
                self.failures.push(format!("{what}: {error:#}"));
            }
        }
    }

    /// Steps that change the cluster: what follows a failed one would tell nothing, so it ends the story.
    pub fn act(&mut self, steps: &[(&str, Step)]) {
        for (what, step) in steps.iter().filter(|(what, _)| wanted(what)) {
            if let Err(error) = timed(what, *step, self.cluster) {
                self.failures.push(format!("{what}: {error:#}"));
                self.end();
            }
        }
    }

    /// Panics if anything failed.
    pub fn end(&mut self) {
        let failures = std::mem::take(&mut self.failures);
        assert!(failures.is_empty(), "{} failed:\n\n{}", failures.len(), failures.join("\n\n"));
    }
}

/// `PGKILN_TEST_ONLY`: for whoever works on one step.
fn wanted(what: &str) -> bool {
    std::env::var("PGKILN_TEST_ONLY").map_or(true, |only| what.contains(&only))
}

fn timed(what: &str, step: Step, cluster: &TestCluster) -> anyhow::Result<()> {
    let start = Instant::now();
    let outcome = step(cluster);
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    eprintln!("{verdict:<6} {:>6.1}s  {what}", start.elapsed().as_secs_f64());
    outcome
}
