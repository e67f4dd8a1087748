//! `pgkiln bake`: an image from its lock.

use std::path::PathBuf;
use std::str::FromStr;

use serde_json::json;

use super::Beside;
use crate::bake;
use crate::disk::secure_boot::Keys;
use crate::outputs::Format;
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
    /// What to make, separated by commas, or `all` [default: the recipe's `outputs`]; the root image comes always
    #[arg(long, value_name = "FORMAT,…", value_delimiter = ',')]
    format: Vec<Wanted>,
    /// RSA key (PEM) that signs boot loader and kernel image for Secure Boot
    #[arg(long, value_name = "FILE", requires = "secure_boot_cert")]
    secure_boot_key: Option<PathBuf>,
    /// Its certificate (PEM), which the firmware must know
    #[arg(long, value_name = "FILE", requires = "secure_boot_key")]
    secure_boot_cert: Option<PathBuf>,
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

/// A format, or all of them.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    All,
    One(Format),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = || Format::ALL.into_iter().find(|format| format.name() == text).map(Self::One);
        let known = || Format::ALL.map(Format::name).join(", ");
        let found = if text == "all" { Some(Self::All) } else { one() };
        found.ok_or_else(|| format!("known are: all, {}", known()))
    }
}

fn formats(wanted: &[Wanted]) -> Option<Vec<Format>> {
    let each = |one: &Wanted| match one {
        Wanted::All => Format::ALL.to_vec(),
        Wanted::One(format) => vec![*format],
    };
    (!wanted.is_empty()).then(|| wanted.iter().flat_map(each).collect())
}

/// Runs the command.
pub fn run(args: Args, ui: &Ui) -> anyhow::Result<()> {
    let mut name = args.image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for chosen in [&args.beside.variant, &args.beside.architecture].into_iter().flatten() {
        name.push_str(&format!("-{chosen}"));
    }
    let pair = args.secure_boot_key.zip(args.secure_boot_cert);
    let keys = pair.map(|(key, certificate)| Keys { key, certificate });
    let mut options = bake::Options {
        agent: args.agent,
        formats: formats(&args.format),
        secure_boot: keys,
        fresh: args.fresh,
        relock: args.relock,
        from: args.from,
        overrides: args.beside.into(),
        ..bake::Options::new(args.image, args.out.unwrap_or_else(|| PathBuf::from("out").join(name)))
    };
    options.tools = args.tools.unwrap_or(options.tools);
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
    for output in baked.outputs.iter().skip(1) {
        ui.say(output.display().to_string());
    }
    ui.say(format!("baked in {}", seconds(baked.elapsed)));
    ui.result(&json!({
        "root": baked.root,
        "root_sha256": baked.root_sha256,
        "bytes": baked.root_bytes,
        "outputs": baked.outputs,
        "manifest": baked.manifest,
        "version": baked.version,
        "relocked": baked.relocked,
        "other_keys": baked.other_keys,
        "tree_cached": baked.tree_cached,
        "seconds": baked.elapsed.as_secs_f64(),
    }))
}
