//! The long versions of what the suites try a few times. Resumable: finished runs are remembered in `target/torture`, so
//! that `--count 50` may take several evenings.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use pgkiln_tests::crash::Sweep;
use pgkiln_tests::plot::median;
use pgkiln_tests::{birth, chaos, flips, powercut, workspace};
use serde::{Deserialize, Serialize};

#[derive(Debug, Parser)]
#[command(about = "Tries to break clusters from a baked image (PGKILN_TEST_IMAGE), again and again; needs root")]
struct Cli {
    #[command(subcommand)]
    what: What,
    /// Forgets what was tried before
    #[arg(long, global = true)]
    fresh: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Founding with random start delays and a partition, one seed after another
    Birth {
        /// Seeds 1 to COUNT
        #[arg(long, default_value_t = 50)]
        count: u64,
    },
    /// Every scenario of losing power, processes, network and quorum while the cluster is written to, on a cluster of its
    /// own for each seed
    Chaos {
        /// Seeds 1 to COUNT
        #[arg(long, default_value_t = 20)]
        count: u64,
        /// Only these scenarios
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Outages as short as in CI, instead of five minutes without etcd's quorum
        #[arg(long)]
        short: bool,
        /// Clusters at a time; each keeps a third of two cores busy, and more than the machine can carry prolongs the gaps
        #[arg(long, default_value_t = 1)]
        parallel: usize,
    },
    /// Killing the agent at every fsync, rename and exec of its first run
    Crash {
        /// Every STRIDE-th event only
        #[arg(long, default_value_t = 1)]
        stride: usize,
        /// Nodes of the cluster; the first one's agent is killed
        #[arg(long, default_value_t = 1)]
        nodes: usize,
    },
    /// Flipping one bit of a disk's root or of its hash tree, booting, and reading the whole root; needs QEMU
    Flips {
        /// Runs 1 to COUNT
        #[arg(long, default_value_t = 100)]
        count: u64,
        /// Machines at a time
        #[arg(long, default_value_t = 1)]
        parallel: usize,
    },
    /// Cutting the power of a machine at a random moment of an update, every third time of its first boot; needs QEMU
    Update {
        /// Runs 1 to COUNT
        #[arg(long, default_value_t = 50)]
        count: u64,
        /// Machines at a time
        #[arg(long, default_value_t = 1)]
        parallel: usize,
    },
}

/// What was tried, and how it ended.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ledger {
    runs: BTreeMap<u64, Result<Tried, String>>,
    #[serde(skip)]
    path: PathBuf,
}

/// A run that succeeded.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Tried {
    seconds: f64,
    /// Longest time without a write, by scenario.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    gaps: BTreeMap<String, f64>,
}

impl Ledger {
    fn open(name: &str, fresh: bool) -> anyhow::Result<Self> {
        let path = workspace::root().join("target/torture").join(format!("{name}.json"));
        fs_err::create_dir_all(workspace::root().join("target/torture"))?;
        let kept = match fs_err::read(&path) {
            Ok(bytes) if !fresh => serde_json::from_slice(&bytes)
                .with_context(|| format!("{}: not this version's; --fresh begins anew", path.display()))?,
            _ => Self::default(),
        };
        Ok(Self { path, ..kept })
    }

    /// Runs what has not succeeded yet, so many at a time; a failure is remembered, reported, and does not end the others.
    fn run(
        self,
        wanted: &[u64],
        parallel: usize,
        one: impl Fn(u64) -> anyhow::Result<(Tried, String)> + Sync,
    ) -> anyhow::Result<Self> {
        let left = wanted.iter().copied().filter(|number| !matches!(self.runs.get(number), Some(Ok(_))));
        let left = Mutex::new(left.collect::<Vec<_>>().into_iter());
        let ledger = Mutex::new(self);
        let worker = || -> anyhow::Result<()> {
            loop {
                let Some(number) = lock(&left).next() else { return Ok(()) };
                let outcome = one(number);
                match &outcome {
                    Ok((tried, what)) => println!("{number}: ok, {:.1}s  {what}", tried.seconds),
                    Err(error) => println!("{number}: FAILED: {error:#}"),
                }
                let kept = outcome.map(|(tried, _)| tried).map_err(|error| format!("{error:#}"));
                let mut ledger = lock(&ledger);
                ledger.runs.insert(number, kept);
                fs_err::write(&ledger.path, serde_json::to_vec_pretty(&*ledger)?)?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..parallel.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a run panicked")))
        })?;
        let ledger = ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        let done = ledger.succeeded(wanted);
        let longest = done.iter().map(|tried| tried.seconds).fold(0.0, f64::max);
        let (count, of, path) = (done.len(), wanted.len(), ledger.path.display());
        println!("{count} of {of} succeeded, the slowest in {longest:.1}s ({path})");
        if count < of {
            bail!("{} failed", of - count);
        }
        Ok(ledger)
    }

    fn succeeded(&self, wanted: &[u64]) -> Vec<&Tried> {
        wanted.iter().filter_map(|number| self.runs.get(number)?.as_ref().ok()).collect()
    }

    /// Median and worst by scenario.
    fn gaps(&self, wanted: &[u64]) -> String {
        let mut gaps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (scenario, gap) in self.succeeded(wanted).iter().flat_map(|tried| &tried.gaps) {
            gaps.entry(scenario).or_default().push(*gap);
        }
        let mut table = format!("{:<20} {:>4} {:>8} {:>8}\n", "write gap (s)", "runs", "median", "worst");
        for (scenario, gaps) in gaps {
            let worst = gaps.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(table, "{scenario:<20} {:>4} {:>8.2} {worst:>8.2}", gaps.len(), median(&gaps));
        }
        table
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timed(seconds: f64) -> Tried {
    Tried { seconds, ..Tried::default() }
}

/// Times a run.
fn stopwatch(
    run: impl Fn(u64) -> anyhow::Result<String> + Sync,
) -> impl Fn(u64) -> anyhow::Result<(Tried, String)> + Sync {
    move |number| {
        let started = Instant::now();
        let what = run(number)?;
        Ok((timed(started.elapsed().as_secs_f64()), what))
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.what {
        What::Birth { count } => {
            let seeds: Vec<u64> = (1..=count).collect();
            let what = |seed| birth::Circumstances::of_seed(seed).to_string();
            let one = |seed| Ok((timed(birth::run(seed)?), what(seed)));
            Ledger::open("birth", cli.fresh)?.run(&seeds, 1, one).map(drop)
        }
        What::Chaos { count, only, short, parallel } => {
            let seeds: Vec<u64> = (1..=count).collect();
            let pace = if short { chaos::Pace::SHORT } else { chaos::Pace::FULL };
            let name = only.iter().fold("chaos".to_owned(), |name, scenario| format!("{name}-{scenario}"));
            let one = |seed| {
                let all = chaos::all(seed, &only, pace)?;
                let gaps = all.outcomes.iter().map(|done| (done.scenario.to_owned(), done.gap.as_secs_f64()));
                Ok((Tried { seconds: all.seconds, gaps: gaps.collect() }, all.to_string()))
            };
            let ledger = Ledger::open(&name, cli.fresh)?.run(&seeds, parallel, one)?;
            print!("{}", ledger.gaps(&seeds));
            Ok(())
        }
        What::Crash { stride, nodes } => {
            let sweep = Sweep::measure(nodes)?;
            println!("{} events in an undisturbed first run", sweep.events.len());
            let points: Vec<u64> = (1..=sweep.events.len() as u64).step_by(stride.max(1)).collect();
            let ledger = Ledger::open(&format!("crash-{nodes}"), cli.fresh)?;
            let one = |number: u64| {
                let outcome = sweep.point(usize::try_from(number)?)?;
                let at = outcome.killed_at.map_or("the end".to_owned(), |event| event.to_string());
                Ok((timed(outcome.seconds), at))
            };
            ledger.run(&points, 1, one).map(drop)
        }
        What::Flips { count, parallel } => {
            let prepared = flips::Prepared::new()?;
            let ledger = Ledger::open("flips", cli.fresh)?;
            ledger.run(&Vec::from_iter(1..=count), parallel, stopwatch(|number| prepared.run(number))).map(drop)
        }
        What::Update { count, parallel } => {
            let prepared = powercut::Prepared::new()?.measured()?;
            println!("{prepared}");
            let ledger = Ledger::open("update", cli.fresh)?;
            ledger.run(&Vec::from_iter(1..=count), parallel, stopwatch(|number| prepared.run(number))).map(drop)
        }
    }
}
