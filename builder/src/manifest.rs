//! `manifest.json`: what an image was made of and what is in it. Nothing of the host appears, so it is as reproducible as the
//! image itself.

use std::collections::BTreeMap;
use std::path::Path;

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
    /// What a running node asks before it takes this version.
    #[serde(flatten)]
    pub about: About,
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

/// What decides whether a running node may take an image: for which machines it is, and which data its server reads.
#[derive(Debug, Serialize)]
pub struct About {
    /// Architecture, as Debian calls it.
    pub architecture: String,
    /// `image.json` of the image.
    pub describes: serde_json::Value,
    /// Catalog version of its PostgreSQL, if it has one: data of another is not readable.
    pub catalog_version: Option<u32>,
}

impl About {
    /// Of an image whose tree is `tree`.
    pub fn new(image: &Image, image_json: &[u8], tree: &Path) -> anyhow::Result<Self> {
        let bin = image.components.get("postgresql").and_then(|one| one.paths.get("bin_dir"));
        let catalog_version = match bin {
            Some(bin) => catalog_version(&fs_err::read(tree.join(bin.trim_start_matches('/')).join("postgres"))?),
            None => None,
        };
        let describes = serde_json::from_slice(image_json).context("image.json")?;
        Ok(Self { architecture: image.architecture.clone(), describes, catalog_version })
    }
}

/// The catalog version in a server: part of the name of its tablespaces' directories, `PG_<major>_<catalog version>`, which is
/// a constant of the program (`TABLESPACE_VERSION_DIRECTORY` in PostgreSQL's `common/relpath.h`).
fn catalog_version(program: &[u8]) -> Option<u32> {
    let digits = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut found = program.windows(3).enumerate().filter(|(_, bytes)| bytes == b"PG_").filter_map(|(at, _)| {
        let rest = &program[at + 3..];
        let (_, after) = rest.split_at(digits(rest));
        let number = after.strip_prefix(b"_")?;
        let number = &number[..digits(number)];
        // A date and a count within the day.
        (number.len() == 9).then(|| str::from_utf8(number).ok()?.parse().ok())?
    });
    found.next()
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
    /// How many of them are in use: whole blocks of 4096, and all behind them is zeros. Manifests from before this field have none.
    #[serde(default)]
    pub used: Option<u64>,
    /// Digest of those in use: of the root, that of the root image. Without [`Self::used`] it is of all.
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

#[cfg(test)]
mod tests {
    #[test]
    fn the_catalog_version_is_found_in_a_server() {
        let found = |program: &[u8]| super::catalog_version(program);
        assert_eq!(found(b"\0PG_VERSION\0PG_17_202406281\0x"), Some(202406281));
        assert_eq!(found(b"PG_17_2024\0PG_\0PG_18_"), None);
        assert_eq!(found(b""), None);
    }
}
