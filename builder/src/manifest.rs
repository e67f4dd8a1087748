//! `manifest.json`: what an image was made of and what is in it. Nothing of the host appears, so it is as reproducible as the
//! image itself.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::configure::seal::FileEntry;
use crate::digest::Sha256;
use crate::image::Image;
use crate::lock::Lock;

/// The manifest; the format is a contract (`docs/`).
#[derive(Debug, Serialize)]
pub struct Manifest<'a> {
    /// Version of this format.
    pub schema: u32,
    /// Name of the image.
    pub image: &'a str,
    /// `cloud`, `metal`, or null for a tree that never boots.
    pub variant: Option<&'a str>,
    /// Version of the image.
    pub version: &'a str,
    /// The time everything in it claims.
    pub source_date_epoch: u64,
    /// Digest of the lock.
    pub lock_sha256: Sha256,
    /// Digest of the tool tree's lock.
    pub tools_lock_sha256: Sha256,
    /// Digest of the agent's binary.
    pub agent_sha256: Sha256,
    /// Digest of the initrd's program, where there is a disk.
    pub initrd_sha256: Option<Sha256>,
    /// Digest of the profiles and of the recipe's trees.
    pub files_sha256: Sha256,
    /// dm-verity root hash, if there is one.
    pub root_hash: Option<String>,
    /// What is where on the disk; empty without one.
    pub partitions: Vec<Partition>,
    /// The lock's packages.
    pub packages: Vec<Package<'a>>,
    /// Every path of the image.
    pub files: &'a [FileEntry],
    /// The files beside the manifest.
    pub outputs: Vec<Output>,
}

/// A partition of the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// What for: `esp`, `root`, `root-verity`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub label: String,
    /// Its identifier; of root and hash tree the halves of the root hash.
    pub uuid: uuid::Uuid,
    /// First byte on the disk.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Digest of all of them.
    pub sha256: Sha256,
}

/// A package of the image.
#[derive(Debug, Serialize)]
pub struct Package<'a> {
    name: &'a str,
    version: &'a str,
    arch: &'a str,
    sha256: Sha256,
    archive: &'a str,
}

/// A file made by the bake.
#[derive(Debug, Clone, Serialize)]
pub struct Output {
    /// File name.
    pub name: String,
    /// What it is (`squashfs`).
    pub format: &'static str,
    /// Size.
    pub bytes: u64,
    /// Digest.
    pub sha256: Sha256,
}

/// The packages of a lock, as the manifest lists them.
pub fn packages(lock: &Lock) -> Vec<Package<'_>> {
    lock.packages
        .iter()
        .map(|one| Package {
            name: &one.name,
            version: &one.version,
            arch: &one.arch,
            sha256: one.sha256,
            archive: &one.archive,
        })
        .collect()
}

/// Version of an image: the day its packages are from, and what it was made of. Two bakes of the same inputs agree.
pub fn version(lock: &Lock, made_of: &[Sha256]) -> anyhow::Result<String> {
    let day = jiff::Timestamp::from_second(i64::try_from(lock.source_date_epoch)?).context("SOURCE_DATE_EPOCH")?;
    let parts: Vec<String> = [lock.digest()].iter().chain(made_of).map(ToString::to_string).collect();
    let digest = Sha256::of(parts.join("\n")).to_string();
    Ok(format!("{}.{}", day.strftime("%Y%m%d"), &digest[..8]))
}

/// What the image says about itself to the agent: `/usr/lib/pgkiln/image.json`.
#[derive(Debug, Serialize)]
struct ImageJson<'a> {
    schema: u32,
    name: &'a str,
    version: &'a str,
    variant: &'a str,
    root_hash: Option<&'a str>,
    components: BTreeMap<&'a str, Component<'a>>,
    glibc: Option<&'a str>,
    icu: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct Component<'a> {
    package: &'a str,
    version: &'a str,
    unit: Option<&'a str>,
    paths: &'a BTreeMap<String, String>,
}

/// Renders `image.json`: the recipe's components with the lock's versions.
pub fn image_json(image: &Image, lock: &Lock, version: &str) -> anyhow::Result<Vec<u8>> {
    let version_of = |name: &str| lock.package(name).map(|package| package.version.as_str());
    let mut components = BTreeMap::new();
    for (name, one) in &image.components {
        let package = one.package.value.as_str();
        let version = version_of(package).with_context(|| format!("package `{package}` is not in the lock"))?;
        components.insert(name.as_str(), Component { package, version, unit: one.unit.as_deref(), paths: &one.paths });
    }
    let numbered =
        |name: &str| name.strip_prefix("libicu").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    let icu = lock.packages.iter().find(|package| numbered(&package.name)).map(|package| package.version.as_str());
    let json = ImageJson {
        schema: 1,
        name: &image.name,
        version,
        variant: image.variant.as_deref().unwrap_or_default(),
        root_hash: None,
        components,
        glibc: version_of("libc6"),
        icu,
    };
    let mut text = serde_json::to_vec_pretty(&json)?;
    text.push(b'\n');
    Ok(text)
}
