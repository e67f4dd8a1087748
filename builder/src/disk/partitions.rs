//! The partitions of the disk, written by the tool tree's systemd-repart from the definitions in `repart.d`.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Work, esp, gpt};
use crate::digest::Sha256;
use crate::image::Image;
use crate::manifest::Partition;
use crate::problem::Problem;
use crate::progress::size;
use crate::sparse;

/// How much of its slot a root may fill: the next image will be larger, and the size of a slot is for ever.
const SLOT_PERCENT: u64 = 80;

/// Room for both partition tables: a MiB each, so that the disk's size is in whole MiB (Azure).
const TABLES: u64 = 2 << 20;

/// The definitions of an image: its own, else the common ones.
fn definitions(image: &Image) -> anyhow::Result<PathBuf> {
    let places = [image.dir().join("repart.d"), image.dir().join("../common/repart.d")];
    let found = places.iter().find(|place| place.is_dir());
    let remedy = "add the directory, or bake the output `tree` only";
    Ok(found
        .cloned()
        .ok_or_else(|| Problem::new("there is no `repart.d`", image.dir().display().to_string(), remedy))?)
}

/// Digest of them; of nothing for an image without disks.
pub(super) fn digest(image: &Image) -> anyhow::Result<Sha256> {
    let mut texts = Vec::new();
    for entry in definitions(image).map_or_else(|_| Ok(Vec::new()), |dir| fs_err::read_dir(dir)?.collect())? {
        texts.push(format!("{} {}", entry.file_name().display(), Sha256::of_file(&entry.path())?.0));
    }
    texts.sort();
    Ok(Sha256::of(texts.join("\n")))
}

/// A disk that is all defined, and not written yet.
pub(super) struct Plan {
    bytes: u64,
    esp: PathBuf,
}

/// Defines what goes where.
pub(super) fn plan(work: &Work<'_>, esp: &Path, hashes: &Path, root_hash: &str) -> anyhow::Result<Plan> {
    let target = work.dir.join("repart.d");
    fs_err::create_dir(&target)?;
    let mut bytes = TABLES;
    for entry in fs_err::read_dir(definitions(work.image)?)? {
        let entry = entry?;
        let text = fs_err::read_to_string(entry.path())?;
        if text.lines().any(|line| line.starts_with("CopyFiles=")) {
            let what = "`CopyFiles=` copies in whatever order the host's file system has";
            let remedy = "leave it out: what belongs on the EFI system partition is put there";
            return Err(Problem::new(what, entry.path().display().to_string(), remedy).into());
        }
        let slot = slot_bytes(&text);
        bytes += slot.with_context(|| format!("{}: no SizeMaxBytes= in M or G", entry.path().display()))?;
        fs_err::copy(entry.path(), target.join(entry.file_name()))?;
    }
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned).context("path");
    let halves = [("20-root", work.root, &root_hash[..32]), ("30-root-verity", hashes, &root_hash[32..])];
    for (definition, content, uuid) in halves {
        check_slot(&target.join(format!("{definition}.conf")), content)?;
        let text = format!("[Partition]\nLabel={}\nUUID={uuid}\nCopyBlocks=/srv/{}\n", work.version, name(content)?);
        let dir = target.join(format!("{definition}.conf.d"));
        fs_err::create_dir(&dir)?;
        fs_err::write(dir.join("bake.conf"), text)?;
    }
    Ok(Plan { bytes, esp: esp.to_owned() })
}

impl Plan {
    /// Writes the disk called `name`, for drives whose sectors have that many bytes: table and file system of the system
    /// partition depend on it, no byte of the root does.
    pub(super) fn write(&self, work: &Work<'_>, sector: u32, name: &str) -> anyhow::Result<PathBuf> {
        work.run(&[
            "systemd-repart",
            "--offline=yes",
            "--empty=create",
            &format!("--size={}", self.bytes),
            &format!("--sector-size={sector}"),
            "--dry-run=no",
            "--definitions=/srv/repart.d",
            &format!("--seed={}", work.uuid("disk")),
            &format!("/srv/{name}"),
        ])?;
        esp::fill(work, name, &self.esp)?;
        Ok(work.dir.join(name))
    }
}

/// What a raw disk holds, as the manifest says it.
pub fn describe(raw: &Path) -> anyhow::Result<Vec<Partition>> {
    let table = gpt::read(raw)?;
    let disk = fs_err::File::open(raw)?.into_parts().0;
    let describe = |one: gpt::Partition| {
        let content = sparse::content(&disk, one.offset, one.bytes);
        let (used, sha256) = content
            .with_context(|| format!("partition `{}` of {} cannot be read to its end", one.label, raw.display()))?;
        let (kind, label) = (one.kind.name().to_owned(), one.label);
        Ok(Partition { kind, label, uuid: one.uuid, offset: one.offset, bytes: one.bytes, used: Some(used), sha256 })
    };
    table.partitions.into_iter().map(describe).collect()
}

/// Refuses what fills its slot too far.
fn check_slot(definition: &Path, content: &Path) -> anyhow::Result<()> {
    let text = fs_err::read_to_string(definition)?;
    let slot = slot_bytes(&text).with_context(|| format!("{}: no SizeMaxBytes= in M or G", definition.display()))?;
    let bytes = content.metadata().with_context(|| format!("looking at {}", content.display()))?.len();
    if bytes > slot / 100 * SLOT_PERCENT {
        let what = format!("{} of {} are more than {SLOT_PERCENT} % of the slot", size(bytes), size(slot));
        let remedy = "leave out packages, or make the slot larger; disks that are in use keep theirs";
        return Err(Problem::new(what, definition.display().to_string(), remedy).into());
    }
    Ok(())
}

fn slot_bytes(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("SizeMaxBytes="))?;
    let (number, unit) = value.trim().split_at(value.trim().len().checked_sub(1)?);
    let shift = match unit {
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_nearly_fills_its_slot_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (definition, content) = (dir.path().join("20-root.conf"), dir.path().join("root"));
        fs_err::write(&definition, "[Partition]\nSizeMaxBytes=1M\n").unwrap();
        for (bytes, fits) in [(800_000, true), (900_000, false)] {
            fs_err::write(&content, vec![0; bytes]).unwrap();
            assert_eq!(check_slot(&definition, &content).is_ok(), fits, "{bytes}");
        }
    }

    /// A slot made on the node must take what a slot made at the bake holds, and the other way round.
    #[test]
    fn both_sets_of_definitions_have_the_same_slots() {
        let common = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/common");
        let bytes = |path: &str| slot_bytes(&fs_err::read_to_string(common.join(path)).unwrap()).unwrap();
        for (shipped, on_node) in
            [("20-root", ["20-root", "40-root"]), ("30-root-verity", ["30-root-verity", "50-root-verity"])]
        {
            for name in on_node {
                assert_eq!(
                    bytes(&format!("repart.d/{shipped}.conf")),
                    bytes(&format!("tree/usr/lib/repart.d/{name}.conf"))
                );
            }
        }
    }
}
