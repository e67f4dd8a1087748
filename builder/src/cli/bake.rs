//! `pgkiln bake`: an image from its lock.

use std::path::PathBuf;
use std::str::FromStr;

use serde_json::json;

use super::Beside;
use crate::bake;
use crate::disk::secure_boot::{Keys, Signer};
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
    #[arg(long, value_name = "FILE", requires = "secure_boot_cert", group = "secure_boot_signer")]
    secure_boot_key: Option<PathBuf>,
    /// Command that signs instead, with a key in a token or behind a service; `--help` has its contract
    ///
    /// It is given to `sh -c` once for each program that is signed, gets a DER DigestInfo of SHA-256 on standard input and writes
    /// the raw RSA signature (PKCS #1 v1.5) to standard output, which is what `openssl pkeyutl -sign -inkey KEY` and
    /// `pkcs11-tool --sign --mechanism RSA-PKCS --id ID --pin env:PIN` do. It can ask nothing: its terminal is not shown. Its line
    /// is printed if it fails, so take secrets from the environment. The signature is checked with the certificate, and is the
    /// one that the key in a file would make. Needs `openssl` on this host.
    #[arg(long, value_name = "CMD", requires = "secure_boot_cert", group = "secure_boot_signer")]
    secure_boot_command: Option<String>,
    /// The key's certificate (PEM), which the firmware must know
    #[arg(long, value_name = "FILE", requires = "secure_boot_signer")]
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
    let signer = args.secure_boot_key.map(Signer::Key).or(args.secure_boot_command.map(Signer::Command));
    let keys = signer.zip(args.secure_boot_cert).map(|(signer, certificate)| Keys { signer, certificate });
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
