//! `pgkiln diff`: what differs between two locks or two baked images.

use std::path::PathBuf;

use serde::Serialize;

use crate::diff::{self, Difference, Paths, Side};
use crate::progress::{Ui, size};

/// How many paths of a kind are listed unless all are asked for.
const SHOWN: usize = 20;

/// What to compare.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An image.lock, a manifest.json, or a directory with one of them (images/NAME, out/NAME)
    old: PathBuf,
    /// The other one
    new: PathBuf,
    /// List every path that differs
    #[arg(long)]
    files: bool,
}

#[derive(Serialize)]
struct Outcome<'a> {
    old: &'a PathBuf,
    new: &'a PathBuf,
    same: bool,
    #[serde(flatten)]
    difference: &'a Difference,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let (old, new) = (Side::load(&args.old)?, Side::load(&args.new)?);
    let difference = diff::diff(&old, &new);
    ui.say(format!("{} → {}", old.file.display(), new.file.display()));
    ui.say(text(&difference, if args.files { usize::MAX } else { SHOWN }).trim_end());
    ui.result(&Outcome { old: &old.file, new: &new.file, same: difference.is_empty(), difference: &difference })
}

fn text(difference: &Difference, shown: usize) -> String {
    if difference.is_empty() {
        return "no difference".to_owned();
    }
    let mut out = String::new();
    let mut section = |name: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            out.push_str(&format!("\n{name}\n  {}\n", lines.join("\n  ")));
        }
    };
    section("packages", difference.packages.iter().map(ToString::to_string).collect());
    let none = || "none".to_owned();
    let suite = |change: &diff::Change<String>| {
        let [old, new] = [&change.old, &change.new].map(|date| date.clone().unwrap_or_else(none));
        format!("{}: {old} → {new}", change.name)
    };
    section("suites", difference.suites.iter().map(suite).collect());
    let bytes = |change: &diff::Change<u64>| {
        let [old, new] = [change.old, change.new].map(|bytes| bytes.map_or_else(none, size));
        let by = i128::from(change.new.unwrap_or(0)) - i128::from(change.old.unwrap_or(0));
        format!("{}: {old} → {new} ({by:+} bytes)", change.name)
    };
    section("sizes", difference.sizes.iter().map(bytes).collect());
    section("units", difference.units.as_ref().map_or(Vec::new(), |paths| lines(paths, usize::MAX)));
    section("files", difference.files.as_ref().map_or(Vec::new(), |paths| lines(paths, shown)));
    out
}

fn lines(paths: &Paths, shown: usize) -> Vec<String> {
    let mut all = Vec::new();
    for (mark, list) in [('+', &paths.added), ('-', &paths.removed), ('~', &paths.changed)] {
        all.extend(list.iter().take(shown).map(|path| format!("{mark} {path}")));
        let more = list.len().saturating_sub(shown);
        all.extend((more > 0).then(|| format!("{mark} and {more} more (--files lists them)")));
    }
    all
}
