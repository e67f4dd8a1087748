//! `pxe`: what a machine without a disk boots over the network: kernel, initrd, the image as one file, and an iPXE script.
//!
//! The same files install: with `pgkiln.mode=install` among the words the machine writes them to its disk. All names have the
//! image's version, so that a server that is being updated never mixes two.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Inputs;
use super::image_file::{self, ALIGNMENT};
use crate::disk::Disk;

pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let kernel = inputs.versioned("vmlinuz");
    // A copy: the kernel belongs to a cached tree.
    fs_err::copy(&disk.kernel, &kernel)?;
    let initrd = inputs.versioned("initrd");
    let mut bytes = fs_err::read(&disk.initrd)?;
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    fs_err::write(&initrd, bytes)?;
    let root = inputs.versioned("root.cpio");
    image_file::archive(disk, &root)?;
    let script = inputs.versioned("ipxe");
    fs_err::write(
        &script,
        text([&kernel, &initrd, &root], &format!("{} {}", inputs.name, inputs.version), &disk.image_file_line())?,
    )?;
    for file in [&kernel, &initrd, &root, &script] {
        fs_err::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(vec![kernel, initrd, root, script])
}

/// The script: files beside itself. UEFI's kernel is told which of them are its initrds, BIOS's takes all.
fn text(files: [&Path; 3], name: &str, line: &str) -> anyhow::Result<String> {
    let names: Option<Vec<&str>> = files.iter().map(|path| path.file_name()?.to_str()).collect();
    let names = names.context("names of outputs")?;
    let [kernel, initrd, root] = names[..] else { anyhow::bail!("three files") };
    Ok(format!(
        "#!ipxe\n\
         # {name}: boots a node whose root is in memory and whose data is on a disk.\n\
         # Further words for the kernel, set before this script is chained to: `set pgkiln_words pgkiln.disk=serial:NUMBER`;\n\
         # `pgkiln.mode=install` among them writes the image to that disk instead.\n\
         kernel {kernel} initrd={initrd} initrd={root} {line} pgkiln.live ${{pgkiln_words}}\n\
         initrd {initrd}\n\
         initrd {root}\n\
         boot\n"
    ))
}
