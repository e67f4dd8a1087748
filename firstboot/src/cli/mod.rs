//! The command line of `firstboot`.

mod check;
mod inspect;
mod run;
mod status;
mod tune;
mod update;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::layout::Layout;
use crate::problem::Problem;

/// Makes this machine what its metadata says: a node of a PostgreSQL cluster.
#[derive(Debug, Parser)]
#[command(name = "firstboot", version, propagate_version = true)]
pub struct Cli {
    /// One JSON object on stdout instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Directory that stands in for / (plan, check and inspect change nothing there)
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Carry out the plan, then serve, register and watch until stopped
    Run,
    /// Print what `run` would do
    Plan(check::Args),
    /// Check metadata: all problems, each with line and remedy
    Check(check::Args),
    /// Show what the datasource says
    Inspect(check::Args),
    /// Say what this node is doing, what is wrong and what to do
    Status,
    /// List the cluster's backups: on a database node or the repository host, as root
    Backups,
    /// Show every setting of PostgreSQL and the kernel on this node, and why
    Tune(tune::Tune),
    /// Put another version of the image into the other slot, or have the whole cluster do so: the next boot starts it, and the
    /// boot loader goes back if it is never good
    Update(update::Args),
    /// Follow the status until interrupted
    Watch,
    /// Leave the proxies and hand leadership over before services stop (run by systemd)
    Handover,
    /// Wait until this boot is good or bad (run by systemd before boot-complete.target)
    Verdict,
    /// Choose the disk for /var on a machine whose root is in memory (run by systemd)
    #[command(hide = true)]
    StateDisk,
    /// Write the image in memory to a disk and restart into it (run by systemd on a machine booted with pgkiln.mode=install)
    #[command(hide = true)]
    Install,
    /// Say whether HAProxy here serves clients (run by Keepalived every second)
    #[command(hide = true)]
    VipCheck,
    /// Save the states of HAProxy's servers (run by systemd before a reload)
    #[command(hide = true)]
    HaproxyStates,
    /// Create roles, databases and extensions (run by Patroni when the cluster is founded)
    #[command(hide = true)]
    Sql {
        /// Run by Patroni's post_bootstrap
        #[arg(long)]
        bootstrap: bool,
        /// libpq connection string
        connection: Option<String>,
    },
}

/// Runs the command line; 0 done, 1 refused or failed with a remedy, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let layout = Layout::new(&cli.root);
    let result = match &cli.command {
        Command::Run => run::run(layout),
        Command::Plan(args) => check::plan(&layout, args, cli.json),
        Command::Check(args) => check::check(&layout, args, cli.json),
        Command::Inspect(args) => return inspect::run(&layout, args, cli.json),
        Command::Status => status::status(&layout, cli.json),
        Command::Backups => run::backups(&layout, cli.json),
        Command::Tune(args) => tune::run(&layout, args, cli.json),
        Command::Update(args) => update::run(&layout, args, cli.json),
        Command::Watch => status::watch(&layout, cli.json),
        Command::Handover => run::handover(&layout),
        Command::Verdict => run::verdict(&layout),
        Command::StateDisk => run::state_disk(&layout),
        Command::Install => run::install(&layout),
        Command::VipCheck => crate::vip::check().map_err(problems),
        Command::HaproxyStates => run::haproxy_states(&layout),
        Command::Sql { connection, .. } => run::sql(&layout, connection.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problems) => {
            report(&problems, cli.json);
            ExitCode::FAILURE
        }
    }
}

/// Several problems found together.
pub(crate) type Outcome = Result<(), Vec<Problem>>;

/// Any error as a problem: a [`Problem`] inside keeps its place and remedy.
pub(crate) fn problems(error: anyhow::Error) -> Vec<Problem> {
    match error.downcast_ref::<Problem>() {
        Some(problem) => vec![problem.clone()],
        None => vec![Problem::new(format!("{error:#}"), "", "")],
    }
}

fn report(problems: &[Problem], json: bool) {
    for problem in problems {
        eprintln!("error: {problem}");
    }
    if json {
        println!("{}", serde_json::json!({"error": problems.first(), "errors": problems}));
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
