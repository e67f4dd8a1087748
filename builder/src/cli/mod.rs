//! The command line: one file per subcommand, each with its `Args` and `run`. Adding one is three edits: the file, a
//! variant of [`Command`], a line in [`dispatch`].
//!
//! Exit codes: 0 done; 1 refused or failed, the message says what to do; 2 wrong usage; 70 a bug of ours.

use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::image::Overrides;
use crate::progress::Ui;

pub use failure::report;

pub mod bake;
pub mod cluster;
pub mod demo;
pub mod diff;
pub mod doctor;
mod failure;
pub mod fetch;
pub mod lab;
pub mod lock;
pub mod netboot;
pub mod show;
pub mod sign;
pub mod verify;

/// What some commands take beside an image.
#[derive(Debug, Clone, clap::Args)]
pub struct Beside {
    /// Other addresses and keys for the recipe's archives (a mirror), from this file
    #[arg(long, value_name = "FILE")]
    overlay: Option<PathBuf>,
    /// The image's lock, instead of image.lock beside the recipe
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// For other machines than the recipe says (cloud, metal): another kernel, and image.VARIANT.lock
    #[arg(long, value_name = "VARIANT")]
    variant: Option<String>,
    /// For other processors than the recipe says (amd64, arm64): its kernel, and image.ARCH.lock
    #[arg(long = "arch", value_name = "ARCH")]
    architecture: Option<String>,
}

impl From<Beside> for Overrides {
    fn from(Beside { overlay, lock, variant, architecture }: Beside) -> Self {
        Self { overlay, lock, variant, architecture }
    }
}

/// Exit code for a bug of ours (`EX_SOFTWARE` of sysexits.h).
const EXIT_BUG: u8 = 70;

/// Bake once, boot anywhere: immutable PostgreSQL high-availability nodes.
#[derive(Debug, Parser)]
#[command(name = "pgkiln", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Write the result as one JSON object to standard output; everything else goes to standard error.
    #[arg(long, global = true)]
    json: bool,
    /// Cache for packages and root trees [default: $XDG_CACHE_HOME/pgkiln or ~/.cache/pgkiln].
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done; 1 refused or failed, the message says what to do; 2 wrong usage; 70 a bug of pgkiln.
More on standard error: PGKILN_LOG=debug.";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Bake an image from its lock
    Bake(bake::Args),
    /// Define a cluster and write its nodes' seeds
    Cluster(cluster::Args),
    /// Bake an image, run a three-node cluster from it, kill its leader, count what was lost
    Demo(demo::Args),
    /// Show what differs between two locks or two baked images
    Diff(diff::Args),
    /// Check what this host needs for baking, the lab and the tests, and say why
    Doctor(doctor::Args),
    /// Boot a cluster from an image on this machine
    Lab(lab::Args),
    /// Resolve an image's packages and write image.lock
    Lock(lock::Args),
    /// Boot machines over the network: iPXE scripts, images and metadata by MAC address
    Netboot(netboot::Args),
    /// Download an image's locked packages into the cache
    Fetch(fetch::Args),
    /// Show an image: components, archives, keys, lock
    Show(show::Args),
    /// Sign what a bake left, for whoever cannot ask where it was baked
    Sign(sign::Args),
    /// Check what a bake left: signature, sums, root hash, partitions; nothing is mounted
    Verify(verify::Args),
}

fn dispatch(command: Command, ui: &Ui) -> anyhow::Result<()> {
    match command {
        Command::Bake(args) => bake::run(args, ui),
        Command::Cluster(args) => cluster::run(args, ui),
        Command::Demo(args) => demo::run(args, ui),
        Command::Diff(args) => diff::run(args, ui),
        Command::Doctor(args) => doctor::run(args, ui),
        Command::Lab(args) => lab::run(args, ui),
        Command::Lock(args) => lock::run(args, ui),
        Command::Netboot(args) => netboot::run(args, ui),
        Command::Fetch(args) => fetch::run(args, ui),
        Command::Show(args) => show::run(args, ui),
        Command::Sign(args) => sign::run(args, ui),
        Command::Verify(args) => verify::run(args, ui),
    }
}

fn log() {
    let asked = std::env::var("PGKILN_LOG").map(|text| text.parse::<Targets>());
    let filter = match &asked {
        Ok(Ok(filter)) => filter.clone(),
        _ => Targets::new().with_default(LevelFilter::WARN),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
    if let Ok(Err(error)) = asked {
        tracing::warn!("PGKILN_LOG is left aside, `warn` is meant: {error}");
    }
}

/// The whole program: arguments in, exit code out.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    let ui = Ui::new(cli.json, cli.cache.unwrap_or_else(default_cache_dir));
    // Unwinding ends the lab and removes temporary directories before we go.
    match panic::catch_unwind(AssertUnwindSafe(|| dispatch(cli.command, &ui))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            match error.downcast_ref::<AlreadyTold>() {
                Some(AlreadyTold(error)) => failure::report(error, false),
                None => failure::report(&error, cli.json),
            }
            ExitCode::FAILURE
        }
        Err(panic) => {
            failure::report_bug(panic.as_ref(), cli.json);
            ExitCode::from(EXIT_BUG)
        }
    }
}

/// A failure that the JSON result tells already; only the exit code and stderr are left to do.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct AlreadyTold(anyhow::Error);

impl AlreadyTold {
    /// Marks `error` as told in the object on standard output.
    pub fn in_the_result(error: anyhow::Error) -> anyhow::Error {
        Self(error).into()
    }
}

/// The cache directory of the XDG base directory rules.
pub fn default_cache_dir() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("pgkiln")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
