//! Benchmarks on this machine: table on standard output, JSON and charts in `target/bench`. Needs root and a baked image
//! (`PGKILN_TEST_IMAGE`).

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use pgkiln_tests::bench::{Formed, disk, failovers, form, gaps, publish, wins};
use pgkiln_tests::plot::{Bar, median};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From the first node's start to a leader and two streaming replicas, beside a hand-written script
    Form {
        /// How often, each way
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// What each switch of `pgkiln.tweaks` gains: the pause it is to shorten, off and on
    Wins {
        /// How often, off and on
        #[arg(long, default_value_t = 5)]
        runs: u64,
        /// Only these switches
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// How long writes stop at a switchover, a killed postmaster and a killed node, with preset `fast`
    Gaps {
        /// How often, each
        #[arg(long, default_value_t = 5)]
        runs: u64,
    },
    /// From cutting the leader's power to the next acknowledged write
    Failover {
        /// How often
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// Sizes of a disk, a bake of one beside mkosi's, and what a boot's time goes into (needs QEMU, mmdebstrap, no test image)
    Disk {
        /// How often each is timed
        #[arg(long, default_value_t = 3)]
        runs: usize,
        /// Without mkosi, which takes several times as long as all else
        #[arg(long)]
        no_peer: bool,
        /// Install this agent instead of building one
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::Form { runs } => {
            let formed = (0..runs).map(|_| form()).collect::<anyhow::Result<Vec<Formed>>>()?;
            let bar = |label: &str, value: fn(&Formed) -> f64| Bar {
                label: label.to_owned(),
                runs: formed.iter().map(value).collect(),
            };
            let (ours, baseline) =
                (bar("agent (TLS, SCRAM, etcd authentication)", |f| f.ours), bar("script", |f| f.baseline));
            let ratio = median(&ours.runs) / median(&baseline.runs);
            print!("{}", publish("form", "Forming a cluster of three nodes", "s", &[ours, baseline])?);
            println!("ratio {ratio:.2}");
            print!(
                "{}",
                publish("agent-cpu", "Agent's CPU until then, worst node", "s", &[bar("agent", |f| f.agent_cpu)])?
            );
            print!(
                "{}",
                publish("agent-memory", "Agent's peak memory, worst node", "MiB", &[bar("agent", |f| f.agent_peak)])?
            );
        }
        What::Wins { runs, only } => print!("{}", wins(runs, &only)?.publish()?),
        What::Gaps { runs } => print!("{}", gaps(runs)?.publish()?),
        What::Disk { runs, no_peer, agent } => print!("{}", disk(runs, !no_peer, agent)?.publish()?),
        What::Failover { runs } => {
            let runs = failovers(runs)?;
            let rows = [Bar { label: "leader's node killed, preset `norm`".to_owned(), runs }];
            print!("{}", publish("failover", "Power cut to next acknowledged write", "s", &rows)?);
        }
    }
    Ok(())
}
