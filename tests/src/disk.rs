//! What tests of a machine's own disk share: the disk, the node's seed, a volume with update sets, and what a probe said.

use std::path::{Path, PathBuf};

use anyhow::Context;
use firstboot::spec::Rto;
use nix::fcntl::{Flock, FlockArg};
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

/// Bakes `debian-13` as a raw disk, and copies it into `dir`. The copy, and the version on it.
pub fn bake(dir: &Path, format: Format, keys: Option<Keys>) -> anyhow::Result<(PathBuf, String)> {
    let baked = outputs("disk", &[format], keys)?;
    let target = dir.join("disk.raw");
    qemu::disk(baked.file(".raw")?, &target, BYTES)?;
    Ok((target, baked.version))
}

/// What the image was baked to.
#[derive(Debug)]
pub struct Outputs {
    /// The files.
    pub files: Vec<PathBuf>,
    /// The version they are of.
    pub version: String,
    /// Held until they are no longer needed: tests beside this one bake into the same directory.
    _directory: Flock<std::fs::File>,
}

impl Outputs {
    /// The file whose name ends like this.
    pub fn file(&self, ending: &str) -> anyhow::Result<&Path> {
        let found = self.files.iter().find(|path| path.to_string_lossy().ends_with(ending));
        found.map(PathBuf::as_path).with_context(|| format!("no *{ending} among {:?}", self.files))
    }
}

/// Bakes `debian-13` in these formats, into the directory for this `purpose`; waits for whoever has that.
pub fn outputs(purpose: &str, formats: &[Format], keys: Option<Keys>) -> anyhow::Result<Outputs> {
    let out = workspace::root().join(format!("target/selftest/debian-13-{purpose}"));
    fs_err::create_dir_all(&out)?;
    let lock = fs_err::File::create(out.with_extension("lock"))?.into_parts().0;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let options = bake::Options {
        formats: Some(formats.to_vec()),
        secure_boot: keys,
        relock: true,
        ..bake::Options::new(workspace::image("debian-13"), out)
    };
    let baked = bake::bake(&options, &Ui::silent(default_cache_dir()))?;
    Ok(Outputs { files: baked.outputs, version: baked.version, _directory: lock })
}

/// A seed of a cluster of one, at the address QEMU's network has for it.
pub fn seed(dir: &Path) -> anyhow::Result<PathBuf> {
    let options = cluster::Options {
        name: "orders".to_owned(),
        nodes: vec!["10.0.2.15".to_owned()],
        prefix_len: Some(24),
        ..Default::default()
    };
    let mut definition = options.definition()?;
    // Emulated on a busy host, Patroni is silent for longer than a leader key usually lives.
    definition.postgres.rto = Rto::Wide;
    let cluster = cluster::create(&dir.join("cluster"), definition)?;
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
