//! The long versions of what the suites try a few times. Resumable: finished runs are remembered in `target/torture`, so
//! that `--count 50` may take several evenings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Parser, Subcommand};
use pgkiln_tests::crash::Sweep;
use pgkiln_tests::{birth, chaos, workspace};
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
}

/// What was tried, and how it ended.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Ledger {
    runs: BTreeMap<u64, Result<f64, String>>,
    #[serde(skip)]
    path: PathBuf,
}

impl Ledger {
    fn open(name: &str, fresh: bool) -> anyhow::Result<Self> {
        let path = workspace::root().join("target/torture").join(format!("{name}.json"));
        fs_err::create_dir_all(workspace::root().join("target/torture"))?;
        let kept = match fs_err::read(&path) {
            Ok(bytes) if !fresh => serde_json::from_slice(&bytes)?,
            _ => Self::default(),
        };
        Ok(Self { path, ..kept })
    }

    /// Runs what has not succeeded yet; a failure is remembered, reported, and does not end the others.
    fn run(&mut self, wanted: &[u64], mut one: impl FnMut(u64) -> anyhow::Result<(f64, String)>) -> anyhow::Result<()> {
        for number in wanted {
            if matches!(self.runs.get(number), Some(Ok(_))) {
                continue;
            }
            let outcome = one(*number);
            match &outcome {
                Ok((seconds, what)) => println!("{number}: ok, {seconds:.1}s  {what}"),
                Err(error) => println!("{number}: FAILED: {error:#}"),
            }
            let kept = outcome.map(|(seconds, _)| seconds).map_err(|error| format!("{error:#}"));
            self.runs.insert(*number, kept);
            fs_err::write(&self.path, serde_json::to_vec_pretty(&self)?)?;
        }
        let done: Vec<f64> = wanted.iter().filter_map(|number| self.runs.get(number)?.as_ref().ok().copied()).collect();
        let longest = done.iter().copied().fold(0.0, f64::max);
        println!(
            "{} of {} succeeded, the slowest in {longest:.1}s ({})",
            done.len(),
            wanted.len(),
            self.path.display()
        );
        if done.len() < wanted.len() {
            bail!("{} failed", wanted.len() - done.len());
        }
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.what {
        What::Birth { count } => {
            let seeds: Vec<u64> = (1..=count).collect();
            let what = |seed| birth::Circumstances::of_seed(seed).to_string();
            Ledger::open("birth", cli.fresh)?.run(&seeds, |seed| Ok((birth::run(seed)?, what(seed))))
        }
        What::Chaos { count, only, short } => {
            let seeds: Vec<u64> = (1..=count).collect();
            let pace = if short { chaos::Pace::SHORT } else { chaos::Pace::FULL };
            let name = only.iter().fold("chaos".to_owned(), |name, scenario| format!("{name}-{scenario}"));
            Ledger::open(&name, cli.fresh)?.run(&seeds, |seed| chaos::all(seed, &only, pace))
        }
        What::Crash { stride, nodes } => {
            let sweep = Sweep::measure(nodes)?;
            println!("{} events in an undisturbed first run", sweep.events.len());
            let points: Vec<u64> = (1..=sweep.events.len() as u64).step_by(stride.max(1)).collect();
            Ledger::open(&format!("crash-{nodes}"), cli.fresh)?.run(&points, |number| {
                let outcome = sweep.point(usize::try_from(number)?)?;
                let at = outcome.killed_at.map_or("the end".to_owned(), |event| event.to_string());
                Ok((outcome.seconds, at))
            })
        }
    }
}
