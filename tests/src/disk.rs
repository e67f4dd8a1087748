//! What tests of a machine's own disk share: the disk, the node's seed, a volume with update sets, and what a probe said.

use std::path::{Path, PathBuf};

use anyhow::Context;
use pgkiln::bake;
use pgkiln::cli::default_cache_dir;
use pgkiln::cluster::{self, SeedFormat};
use pgkiln::disk::secure_boot::Keys;
use pgkiln::outputs::Format;
use pgkiln::progress::Ui;
use pgkiln::tool::{Cmd, Tool};
use serde_json::Value;

use crate::next::Next;
use crate::{qemu, workspace};

const MKE2FS: Tool = Tool { name: "mke2fs", package: "e2fsprogs", minimum: None, why: "a volume with update sets" };
/// What an operator gives the machine: room for slot B and some data.
const BYTES: u64 = 6 << 30;

/// A probe that runs what the volume has as `probe`.
pub const RUN_VOLUME: &str =
    "mkdir -p /run/set; until mount -o ro LABEL=SETS /run/set; do sleep 1; done; exec sh /run/set/probe";

/// Bakes `debian-13` as a disk, and copies it into `dir`. The copy, and the version on it.
pub fn bake(dir: &Path, format: Format, keys: Option<Keys>) -> anyhow::Result<(PathBuf, String)> {
    let out = workspace::root().join("target/selftest/debian-13-disk");
    let options = bake::Options {
        formats: Some(vec![format]),
        secure_boot: keys,
        relock: true,
        ..bake::Options::new(workspace::image("debian-13"), out)
    };
    let baked = bake::bake(&options, &Ui::silent(default_cache_dir()))?;
    let raw = baked.outputs.iter().find(|path| path.extension().is_some_and(|extension| extension == "raw"));
    let target = dir.join("disk.raw");
    qemu::disk(raw.context("a raw disk")?, &target, BYTES)?;
    Ok((target, baked.version))
}

/// A seed of a cluster of one, at the address QEMU's network has for it.
pub fn seed(dir: &Path) -> anyhow::Result<PathBuf> {
    let options = cluster::Options {
        name: "orders".to_owned(),
        nodes: vec!["10.0.2.15".to_owned()],
        prefix_len: Some(24),
        ..Default::default()
    };
    let cluster = cluster::create(&dir.join("cluster"), options.definition()?)?;
    cluster.write_seeds(&["pg-1".to_owned()], SeedFormat::Iso, &dir.join("seeds"), true)?;
    Ok(dir.join("seeds/pg-1.iso"))
}

/// A volume with update sets, by name, and a script.
pub fn volume(dir: &Path, sets: &[(&str, &Next)], probe: &str) -> anyhow::Result<PathBuf> {
    let files = dir.join("sets");
    for (name, set) in sets {
        set.give(&files.join(name))?;
    }
    fs_err::write(files.join("probe"), probe)?;
    let target = dir.join("sets.ext4");
    let mke2fs = Cmd::new(&MKE2FS).args(["-q", "-t", "ext4", "-O", "^has_journal", "-L", "SETS", "-d"]);
    mke2fs.arg(&files).arg(&target).arg("3G").run()?;
    fs_err::remove_dir_all(&files)?;
    Ok(target)
}

/// What a probe said last under this name.
pub fn value<'a>(console: &'a str, name: &str) -> &'a str {
    let found = console.lines().rev().find_map(|line| Some(line.split_once(&format!("probe-{name}="))?.1));
    found.unwrap_or_default().trim()
}

/// The same as JSON.
pub fn object(console: &str, name: &str) -> anyhow::Result<Value> {
    serde_json::from_str(value(console, name)).with_context(|| format!("probe-{name} in\n{console}"))
}
