//! `pgkiln bake`: an image from its lock.

use std::path::PathBuf;

use serde_json::json;

use super::Beside;
use crate::bake;
use crate::progress::{Ui, seconds, size};

/// What to bake.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the image
    #[arg(default_value = "images/debian-13")]
    image: PathBuf,
    /// Where the outputs go [default: out/<image>]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Agent to install, instead of building this checkout's
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Recipe of the tool tree [default: tools, beside the image]
    #[arg(long, value_name = "DIR")]
    tools: Option<PathBuf>,
    /// Make the root tree again even if it is cached (packages are never downloaded twice)
    #[arg(long)]
    fresh: bool,
    /// If the archive no longer has a locked package, resolve anew into the cache and say so
    #[arg(long)]
    relock: bool,
    /// Take every package from this store (`pgkiln fetch IMAGE --to DIR`); no network is used
    #[arg(long, value_name = "DIR", conflicts_with = "relock")]
    from: Option<PathBuf>,
    #[command(flatten)]
    beside: Beside,
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let mut name = args.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(variant) = &args.beside.variant {
        name.push_str(&format!("-{variant}"));
    }
    let options = bake::Options {
        tools: args.tools.unwrap_or_else(|| args.image.with_file_name("tools")),
        out: args.out.unwrap_or_else(|| PathBuf::from("out").join(name)),
        image: args.image,
        agent: args.agent,
        fresh: args.fresh,
        relock: args.relock,
        from: args.from,
        overrides: args.beside.into(),
    };
    let baked = bake::bake(&options, ui)?;
    if baked.relocked {
        ui.warn("the archive no longer has every locked package: newer ones were taken");
    }
    if !baked.other_keys.is_empty() {
        let archives = baked.other_keys.join(", ");
        ui.warn(format!(
            "{archives}: believed by the overlay's keys, not by the recipe's; the image is what they signed"
        ));
    }
    ui.say(format!("{}: {}, version {}", baked.root.display(), size(baked.root_bytes), baked.version));
    ui.say(format!("baked in {}", seconds(baked.elapsed)));
    ui.result(&json!({
        "root": baked.root,
        "root_sha256": baked.root_sha256,
        "bytes": baked.root_bytes,
        "manifest": baked.manifest,
        "version": baked.version,
        "relocked": baked.relocked,
        "other_keys": baked.other_keys,
        "tree_cached": baked.tree_cached,
        "seconds": baked.elapsed.as_secs_f64(),
    }))
}
