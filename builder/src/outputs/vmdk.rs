//! `vmdk`: stream-optimised, as vSphere imports it. qemu-img writes it and draws a random content identifier (`CID=`) into its
//! descriptor; ours follows from the image.
//!
//! VMware, "Virtual Disk Format 5.0".

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::Context;

use super::{Inputs, qemu_img};
use crate::disk::Disk;

const SECTOR: u64 = 512;
/// Of the header: where the descriptor is and how long, in sectors.
const DESCRIPTOR_OFFSET: u64 = 28;

/// Writes the disk.
pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<PathBuf> {
    let name = format!("{}.vmdk", inputs.name);
    let path = inputs.dir.join(&name);
    if path.exists() {
        return Ok(path);
    }
    let options = "subformat=streamOptimized,adapter_type=lsilogic,hwversion=13";
    qemu_img::convert(inputs, disk, &["-O", "vmdk", "-o", options], &name)?;
    let file = fs_err::OpenOptions::new().read(true).write(true).open(&path)?.into_parts().0;
    let mut numbers = [0; 16];
    file.read_exact_at(&mut numbers, DESCRIPTOR_OFFSET)?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| numbers[at + n]));
    let (offset, length) = (number(0) * SECTOR, number(8) * SECTOR);
    anyhow::ensure!((SECTOR..1 << 20).contains(&length), "qemu-img wrote a VMDK without a descriptor");
    let mut bytes = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut bytes, offset)?;
    let id = &inputs.digest("vmdk").to_string()[..8];
    file.write_all_at(&with_id(&bytes, id)?, offset)?;
    Ok(path)
}

/// The descriptor with another content identifier, in the same space: qemu-img writes the number without leading zeros, so what
/// follows it may move.
fn with_id(descriptor: &[u8], id: &str) -> anyhow::Result<Vec<u8>> {
    let text = descriptor.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).context("the VMDK's descriptor")?;
    let line = text.lines().find(|line| line.starts_with("CID=")).context("no CID= in the VMDK's descriptor")?;
    let mut bytes = text.replacen(line, &format!("CID={id}"), 1).into_bytes();
    anyhow::ensure!(bytes.len() <= descriptor.len(), "no room in the VMDK's descriptor");
    bytes.resize(descriptor.len(), 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_random_identifiers_become_the_same_descriptor() {
        let descriptor = |id: &str| {
            let mut bytes = format!("# Disk DescriptorFile\nCID={id}\nparentCID=ffffffff\n").into_bytes();
            bytes.resize(512, 0);
            bytes
        };
        let (one, two) = (descriptor("8a1b2c3d"), descriptor("1b2c3d"));
        let made = with_id(&one, "00c0ffee").unwrap();
        assert_eq!(made, with_id(&two, "00c0ffee").unwrap());
        assert_eq!(made.len(), 512);
        assert!(String::from_utf8_lossy(&made).contains("\nCID=00c0ffee\nparentCID=ffffffff\n"));
    }
}
