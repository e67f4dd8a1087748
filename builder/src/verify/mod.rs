//! `pgkiln verify`: whether a directory of outputs is what its bake left, and whether the disk is what its manifest says.
//!
//! Nothing is mounted, no program of the tool tree is asked: sums, partition table and hash tree are computed by code of ours from the
//! bytes that are there. Adding a check is a function that returns its problems, and a line in [`check`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::disk::{gpt::Kind, partitions, verity};
use crate::manifest::Partition;
use crate::problem::{Problem, Problems};
use crate::signature;

/// What is read of a manifest.
#[derive(Debug, Deserialize)]
struct Manifest {
    image: String,
    version: String,
    root_hash: Option<String>,
    #[serde(default)]
    partitions: Vec<Partition>,
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Output {
    name: String,
    format: String,
    bytes: u64,
    sha256: Sha256,
}

/// What was found to be in order.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// Name of the image.
    pub image: String,
    /// Its version.
    pub version: String,
    /// Files whose sums were right.
    pub files: usize,
    /// Files of this image's name that no sum lists, which were not looked at: of another bake.
    pub unlisted: Vec<String>,
    /// The root hash, computed from the disk's own root.
    pub root_hash: Option<String>,
    /// Whether somebody answers for them.
    pub signed: Signed,
}

/// What is known of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Signed {
    /// By the key that was given.
    Yes,
    /// There is one; no key was given to check it by.
    Unchecked,
    /// Nobody signed.
    No,
}

/// The sums of a bake's files.
pub const SUMS: &str = "SHA256SUMS";

/// Checks the outputs in `dir`, and with a public key who signed them; all problems are reported together.
pub fn verify(dir: &Path, key: Option<&str>) -> anyhow::Result<Verified> {
    let sums = read_sums(dir)?;
    let (mut problems, manifest) = check(dir, &sums)?;
    if let Some(key) = key {
        problems.extend(signature::check(dir, key, &manifest.image, &manifest.version)?);
    }
    if !problems.is_empty() {
        return Err(Problems(problems).into());
    }
    let Manifest { image, version, root_hash, .. } = manifest;
    let signed = match key {
        Some(_) => Signed::Yes,
        None if dir.join(signature::FILE).is_file() => Signed::Unchecked,
        None => Signed::No,
    };
    let unlisted = unlisted(dir, &image, &sums)?;
    Ok(Verified { image, version, files: sums.len(), unlisted, root_hash, signed })
}

fn check(dir: &Path, sums: &[(Sha256, String)]) -> anyhow::Result<(Vec<Problem>, Manifest)> {
    let mut problems = Vec::new();
    for (sum, name) in sums {
        problems.extend(file(dir, name, sum)?);
    }
    let path = dir.join("manifest.json");
    let text = fs_err::read(&path)?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| Problem::new(format!("not a manifest: {error}"), path.display().to_string(), AGAIN))?;
    for output in &manifest.outputs {
        problems.extend(listed(output, dir, sums));
    }
    for raw in manifest.outputs.iter().filter(|output| output.format == "raw") {
        problems.extend(disk(&dir.join(&raw.name), &manifest, &manifest.partitions)?);
    }
    // Its system partition is formatted otherwise; root and hash tree are the same bytes.
    let same = |one: &&Partition| one.kind != Kind::Esp.name();
    let same: Vec<Partition> = manifest.partitions.iter().filter(same).cloned().collect();
    for raw in manifest.outputs.iter().filter(|output| output.format == "raw-4k") {
        problems.extend(disk(&dir.join(&raw.name), &manifest, &same)?);
    }
    for output in manifest.outputs.iter().filter(|output| ["pxe", "iso"].contains(&output.format.as_str())) {
        problems.extend(image_file::check(&dir.join(&output.name), manifest.root_hash.as_deref())?);
    }
    Ok((problems, manifest))
}

fn unlisted(dir: &Path, image: &str, sums: &[(Sha256, String)]) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(image).is_some_and(|rest| rest.starts_with(['.', '_', '-']));
        if ours && !sums.iter().any(|(_, listed)| *listed == name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

const AGAIN: &str = "copy it again from where it was baked, or bake it again";

/// `SHA256SUMS`: digest, two blanks, name.
fn read_sums(dir: &Path) -> anyhow::Result<Vec<(Sha256, String)>> {
    let path = dir.join(SUMS);
    let place = path.display().to_string();
    if !path.is_file() {
        let remedy = "name the directory of a finished bake; a bake writes this file last";
        return Err(Problem::new("there is no SHA256SUMS", dir.display().to_string(), remedy).into());
    }
    let line = |text: &str| {
        let (sum, name) = text.split_once("  ")?;
        let plain = !name.is_empty() && !name.contains('/');
        Some((sum.parse().ok()?, name.to_owned())).filter(|_| plain)
    };
    let text = fs_err::read_to_string(&path)?;
    let sums: Option<Vec<_>> = text.lines().map(line).collect();
    let sums = sums.filter(|sums| sums.iter().any(|(_, name)| name == "manifest.json"));
    Ok(sums.ok_or_else(|| Problem::new("not the sums of a bake", place, AGAIN))?)
}

fn file(dir: &Path, name: &str, sum: &Sha256) -> anyhow::Result<Option<Problem>> {
    let path = dir.join(name);
    let place = path.display().to_string();
    if !path.is_file() {
        return Ok(Some(Problem::new("the file is missing", place, AGAIN)));
    }
    let (found, _) = Sha256::of_file(&path)?;
    let altered = || Problem::new(format!("its SHA-256 is {found}, not {sum}: it was altered"), place, AGAIN);
    Ok((found != *sum).then(altered))
}

/// Manifest and sums must speak of the same files: one of them alone is easily exchanged.
fn listed(output: &Output, dir: &Path, sums: &[(Sha256, String)]) -> Option<Problem> {
    let place = dir.join(&output.name).display().to_string();
    let same = sums.iter().any(|(sum, name)| *name == output.name && *sum == output.sha256);
    if !same {
        return Some(Problem::new("manifest.json and SHA256SUMS disagree about it", place, AGAIN));
    }
    let bytes = dir.join(&output.name).metadata().map(|meta| meta.len()).ok()?;
    let what = || format!("it has {bytes} bytes, manifest.json says {}", output.bytes);
    (bytes != output.bytes).then(|| Problem::new(what(), place, AGAIN))
}

/// The raw disk: partitions as the manifest has them, identifiers from the root hash, and the root hash from the root itself.
fn disk(raw: &Path, manifest: &Manifest, wanted: &[Partition]) -> anyhow::Result<Vec<Problem>> {
    let place = raw.display().to_string();
    let Some(root_hash) = manifest.root_hash.as_deref() else {
        return Ok(vec![Problem::new("manifest.json has a disk but no root hash", place, AGAIN)]);
    };
    let found = match partitions::describe(raw) {
        Ok(found) => found,
        Err(error) => return Ok(vec![Problem::new(format!("{error:#}"), place, AGAIN)]),
    };
    let mut problems = Vec::new();
    for wanted in wanted {
        problems.extend(partition(wanted, &found, &place));
    }
    if found.len() != manifest.partitions.len() {
        let what = format!("it has {} partitions, manifest.json lists {}", found.len(), manifest.partitions.len());
        problems.push(Problem::new(what, place.clone(), AGAIN));
    }
    let of = |kind: Kind| found.iter().find(|one| one.kind == kind.name());
    let (Some(root), Some(hashes)) = (of(Kind::Root), of(Kind::RootVerity)) else {
        problems.push(Problem::new("it has no root or no hash tree", place, AGAIN));
        return Ok(problems);
    };
    let halves = format!("{}{}", root.uuid.simple(), hashes.uuid.simple());
    if halves != root_hash {
        let what = "the identifiers of its partitions do not follow from the root hash: the initrd would not find them";
        problems.push(Problem::new(what, place.clone(), AGAIN));
    }
    let file = fs_err::File::open(raw)?.into_parts().0;
    match verity::recompute(&file, root.offset, hashes.offset) {
        Err(error) => problems.push(Problem::new(format!("{error:#}"), place, AGAIN)),
        Ok(found) if found.root_hash.to_string() != root_hash => {
            let what = format!("its root has the root hash {}, manifest.json says {root_hash}", found.root_hash);
            problems.push(Problem::new(what, place, AGAIN));
        }
        Ok(found) if !found.tree_matches => {
            problems.push(Problem::new("its hash tree is not that of its root", place, AGAIN));
        }
        Ok(_) => {}
    }
    Ok(problems)
}

fn partition(wanted: &Partition, found: &[Partition], place: &str) -> Option<Problem> {
    let place = format!("{place}, partition `{}` ({})", wanted.label, wanted.kind);
    let Some(found) = found.iter().find(|one| one.kind == wanted.kind && one.label == wanted.label) else {
        return Some(Problem::new("the disk does not have it", place, AGAIN));
    };
    let what = match found {
        found if found.uuid != wanted.uuid => "it has another identifier than manifest.json says",
        found if (found.offset, found.bytes) != (wanted.offset, wanted.bytes) => "it is elsewhere or of another size",
        // A manifest from before `used` has another digest; the sum of the whole disk and the root hash cover it all the same.
        found if wanted.used.is_some() && (found.used, found.sha256) != (wanted.used, wanted.sha256) => {
            "its content was altered"
        }
        _ => return None,
    };
    Some(Problem::new(what, place, AGAIN))
}

mod image_file;
#[cfg(test)]
mod tests;
