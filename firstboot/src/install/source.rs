//! What is installed: the parts the initrd offers (`firstboot/initrd/src/image_file.rs`), each checked before it is believed.
//!
//! The root is read through dm-verity, which ends the machine at the first block that is not the root hash's. The hash tree lies
//! behind the root in the image file. The head of the disk (partition table, boot loader, kernel) has its SHA-256 on the
//! command line, and its table must name the partitions of this very root hash.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::mark;
use super::write::{Part, slot};
use crate::layout::Layout;
use crate::problem::Problem;
use crate::update::gpt::{Kind, Table};
use crate::update::verity::hex;
use crate::update::{loader, slots};

const PARTS: &str = "/run/pgkiln-image";
const CMDLINE: &str = "kernel command line";
const REMEDY: &str = "take kernel, initrd, root archive and command line of one version, as `pgkiln bake` wrote them";
/// Beside slot A: slot B is as large, and `/var` must hold a small database.
const VAR: u64 = 1 << 30;

/// Everything that will be on the disk.
#[derive(Debug)]
pub struct Source {
    /// Version of the image.
    pub version: String,
    /// The partition table, as on the image's own disk.
    pub table: Table,
    /// What is written last: before it nothing boots.
    pub boot_sector: Part,
    /// The rest, in the order in which it is written.
    pub parts: Vec<Part>,
    /// How many bytes a disk must have.
    pub needed: u64,
}

impl Source {
    /// Opens and checks the parts.
    pub fn open(layout: &Layout, cmdline: &str) -> Result<Self> {
        let open = |name: &str| -> Result<File> {
            let path = layout.at(PARTS).join(name);
            let remedy = "this is no installer: boot kernel, initrd and root archive with `pgkiln.mode=install`";
            let missing = |error| Problem::new(format!("{error}"), path.display().to_string(), remedy);
            Ok(fs_err::File::open(&path).map_err(missing)?.into_parts().0)
        };
        let root_hash = loader::hash_of(cmdline).ok_or_else(|| Problem::new("no root hash", CMDLINE, REMEDY))?;
        Self::of(open("head")?, open("root")?, open("image")?, cmdline, &root_hash)
    }

    pub(super) fn of(head: File, root: File, image: File, cmdline: &str, root_hash: &str) -> Result<Self> {
        let head_bytes = check_head(&head, cmdline)?;
        let table = Table::read(&head, head_bytes)?;
        let partitions = table.partitions();
        let esp = partitions
            .first()
            .filter(|one| one.at == mark::AT)
            .context("the head of the disk has no system partition")?;
        let [root_id, hashes_id] = slots::halves(root_hash)?;
        let one = |kind: Kind, id| {
            let found = partitions.iter().find(|one| one.kind == kind && one.uuid == id);
            found.ok_or_else(|| Problem::new("the head of the disk is of another image than the root", CMDLINE, REMEDY))
        };
        let (root_slot, hashes_slot) = (one(Kind::Root, root_id)?, one(Kind::Hashes, hashes_id)?);
        let (root_bytes, image_bytes) = (size(&root)?, size(&image)?);
        let after = esp.at + table.sector();
        anyhow::ensure!(after <= head_bytes && root_bytes <= image_bytes, "the image is cut short");
        let end = partitions.iter().map(|one| one.at + one.bytes).max().unwrap_or_default();
        Ok(Self {
            version: root_slot.label.clone(),
            needed: end + root_slot.bytes + hashes_slot.bytes + VAR,
            boot_sector: Part {
                name: "boot sector",
                from: head.try_clone()?,
                from_at: esp.at,
                bytes: table.sector(),
                at: esp.at,
            },
            parts: vec![
                slot("root", root, 0, root_bytes, root_slot)?,
                slot("hash tree", image, root_bytes, image_bytes - root_bytes, hashes_slot)?,
                Part { name: "boot loader", from: head, from_at: after, bytes: head_bytes - after, at: after },
            ],
            table,
        })
    }

    /// How much is written.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// The head's size, if it has the digest of the command line.
fn check_head(head: &File, cmdline: &str) -> Result<u64> {
    let wanted = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("pgkiln.head=")).next_back();
    let wanted = wanted.ok_or_else(|| Problem::new("there is no `pgkiln.head=`", CMDLINE, REMEDY))?;
    let mut reader = head;
    reader.seek(SeekFrom::Start(0))?;
    let (mut sum, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = reader.read(&mut buffer).context("reading the head of the disk")?;
        if read == 0 {
            break;
        }
        sum.update(&buffer[..read]);
        bytes += read as u64;
    }
    let found = hex(&sum.finalize());
    if found != wanted {
        let what = format!("the head of the disk has the SHA-256 {found}, not {wanted}: it was altered");
        return Err(Problem::new(what, CMDLINE, REMEDY).into());
    }
    Ok(bytes)
}

fn size(mut file: &File) -> Result<u64> {
    Ok(file.seek(SeekFrom::End(0))?)
}
