//! `update`: another version of the image, for this node or for the whole cluster.

use std::cell::Cell;
use std::io::IsTerminal;

use super::Outcome;
use crate::image_info::ImageInfo;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::roll;
use crate::update::{self, Allow, set};

/// Arguments of `firstboot update`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory or http(s) address of a set made by `pgkiln bake --format update`
    #[arg(value_name = "DIR|URL", required_unless_present_any = ["status", "cancel"])]
    source: Option<String>,
    /// The whole cluster, one node after another; DIR must then be on every node
    #[arg(long)]
    cluster: bool,
    /// Say which versions are here and which one boots next, and how far the cluster is; changes nothing
    #[arg(long, conflicts_with_all = ["source", "cluster"])]
    status: bool,
    /// Give up updating the cluster: nodes keep what they run, and no further one begins
    #[arg(long, conflicts_with_all = ["source", "cluster", "status"])]
    cancel: bool,
    /// Only the set whose SHA256SUMS file has this SHA-256
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Also a version that is older than the running one
    #[arg(long)]
    older: bool,
    /// Although indexes may be sorted differently with the new version's C library or ICU
    #[arg(long)]
    allow_collation_change: bool,
    /// Wait for another update of this node instead of refusing
    #[arg(long)]
    wait: bool,
    /// How often the new version is tried before the boot loader goes back to this one
    #[arg(long, value_name = "N", default_value_t = update::TRIES, value_parser = clap::value_parser!(u32).range(1..=9))]
    tries: u32,
}

/// Runs it.
pub(super) fn run(layout: &Layout, args: &Args, json: bool) -> Outcome {
    if args.status {
        return status(layout, json);
    }
    if layout.is_live() && !nix::unistd::geteuid().is_root() {
        return Err(vec![Problem::new("an update writes to the boot disk", "", "run the same command as root")]);
    }
    if args.cancel {
        super::run::runtime()?.block_on(roll::cancel(layout)).map_err(super::problems)?;
        return said(json, "no further node begins", &serde_json::json!({ "cancelled": true }));
    }
    let text = args.source.as_deref().unwrap_or_default();
    let source = set::Source::parse(text);
    let allow = Allow { older: args.older, collations: args.allow_collation_change };
    let progress = Progress::default();
    let report = |what: &str, share: Option<f64>| progress.show(what, share);
    report("reading the set", None);
    let set = set::Set::read(&source, args.sha256.as_deref()).map_err(super::problems)?;
    if args.cluster {
        let image = ImageInfo::load(layout).map_err(super::problems)?;
        // The node that is asked may have the version already, when a roll that stopped is to go on.
        let again = image.version == set.image.version;
        if !again {
            update::refuse(&set, &image, allow).map_err(|problem| vec![problem])?;
        }
        let wish = super::run::runtime()?.block_on(roll::wish(layout, &set, text, allow)).map_err(super::problems)?;
        let text = format!("{} for the whole cluster; follow it with `firstboot update --status`", wish.version);
        return said(json, &text, &serde_json::json!(wish));
    }
    let _lock = update::lock(layout, args.wait, &report).map_err(super::problems)?;
    let done = super::run::runtime()?.block_on(update::apply(layout, &set, allow, args.tries, &report));
    let done = done.map_err(super::problems)?;
    if json {
        println!("{}", serde_json::to_string(&done).unwrap_or_default());
    } else {
        println!(
            "{} -> {} in {:.1} s ({} MB written and read back)",
            done.from,
            done.to,
            done.seconds,
            done.bytes / 1_000_000
        );
        for removed in &done.removed {
            println!("removed {removed}");
        }
        println!("{} is what the next boot starts; tried {} times, then {} again", done.uki, done.tries, done.from);
    }
    Ok(())
}

fn status(layout: &Layout, json: bool) -> Outcome {
    let present = update::present(layout).map_err(super::problems)?;
    let overview = super::run::runtime()?.block_on(roll::overview(layout));
    if json {
        let (cluster, error) = match &overview {
            Ok(cluster) => (serde_json::json!(cluster), serde_json::Value::Null),
            Err(error) => (serde_json::Value::Null, serde_json::json!(format!("{error:#}"))),
        };
        println!("{}", serde_json::json!({"node": present, "cluster": cluster, "cluster_error": error}));
        return Ok(());
    }
    println!("{} {} runs", present.image, present.running);
    println!("the other slot: {}", present.other_slot.as_deref().unwrap_or("there is none"));
    for (n, choice) in present.loader.iter().enumerate() {
        let tries = match choice.tries_left {
            None => "good".to_owned(),
            Some(0) => "given up".to_owned(),
            Some(left) => format!("{left} tries left"),
        };
        let marks = [(n == 0, "boots next"), (choice.running, "running")];
        let marks: Vec<&str> = marks.iter().filter(|(is, _)| *is).map(|(_, mark)| *mark).collect();
        println!("{}: {tries} {}", choice.file, marks.join(", "));
    }
    match overview {
        Ok(Some(overview)) => show(&overview),
        Ok(None) => {}
        Err(error) => println!("the cluster: {error:#}"),
    }
    Ok(())
}

fn show(overview: &roll::Overview) {
    match &overview.wish {
        Some(wish) => println!("the cluster is to have {} (said on {}, {})", wish.version, wish.by, wish.since),
        None => println!("no version is wished for the cluster"),
    }
    for node in &overview.nodes {
        let turn =
            (overview.turn.as_ref() == Some(&node.slot)).then(|| overview.turn_since.clone().unwrap_or_default());
        let turn = turn.map(|since| format!(", at it since {since}")).unwrap_or_default();
        let stopped = node.stopped.as_ref().map(|why| format!(", STOPPED: {why}")).unwrap_or_default();
        println!("  {} ({}): {}{turn}{stopped}", node.slot, node.role, node.version);
    }
}

fn said(json: bool, text: &str, value: &serde_json::Value) -> Outcome {
    if json {
        println!("{value}")
    } else {
        println!("{text}")
    }
    Ok(())
}

/// Progress on stderr: one line that is written over on a terminal, a line per quarter elsewhere.
#[derive(Debug, Default)]
struct Progress {
    shown: Cell<Option<u32>>,
}

impl Progress {
    fn show(&self, what: &str, share: Option<f64>) {
        let terminal = std::io::stderr().is_terminal();
        let percent = share.map(|share| (share * 100.0) as u32);
        let step = percent.map(|percent| if terminal { percent } else { percent / 25 });
        if share.is_some() && self.shown.get() == step {
            return;
        }
        self.shown.set(step);
        match percent {
            Some(percent) if terminal => eprint!("\r{what} … {percent} %{}", if percent >= 100 { "\n" } else { "" }),
            Some(percent) => eprintln!("{what} … {percent} %"),
            None => eprintln!("{what}"),
        }
    }
}
