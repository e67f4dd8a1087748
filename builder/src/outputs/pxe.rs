//! `pxe`: what a machine without a disk boots over the network: kernel, initrd, the image as one file, and an iPXE script.
//!
//! The image file comes as an archive of the initramfs by itself, not as a bare file that the boot loader would have to wrap:
//! then every boot loader that can load two initrds can boot it, the oldest iPXE and BIOS included. All names have the image's
//! version, so that a server that is being updated never mixes two.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Inputs;
use super::image_file::{self, ImageFile};
use crate::disk::{Disk, cpio};

/// Archives begin at whole words, and some boot loaders put one right behind the other.
const ALIGNMENT: usize = 512;

pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let image = ImageFile::of(disk)?;
    let kernel = inputs.versioned("vmlinuz");
    // A copy: the kernel belongs to a cached tree.
    fs_err::copy(&disk.kernel, &kernel)?;
    let initrd = inputs.versioned("initrd");
    let mut bytes = fs_err::read(&disk.initrd)?;
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    fs_err::write(&initrd, bytes)?;
    let root = inputs.versioned("root.cpio");
    archive(&image, &root)?;
    let script = inputs.versioned("ipxe");
    fs_err::write(
        &script,
        text([&kernel, &initrd, &root], &format!("{} {}", inputs.name, inputs.version), &disk.command_line)?,
    )?;
    for file in [&kernel, &initrd, &root, &script] {
        fs_err::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(vec![kernel, initrd, root, script])
}

/// An archive with the image file alone.
fn archive(image: &ImageFile<'_>, to: &Path) -> anyhow::Result<()> {
    let size = u32::try_from(image.bytes).context("the image is too large for an archive of the initramfs (4 GiB)")?;
    let mut head = cpio::Archive::default();
    head.directory("pgkiln");
    let mut file = BufWriter::new(fs_err::File::create(to)?);
    file.write_all(&head.into_head_of(image_file::PATH, size))?;
    image.write(&mut file)?;
    let mut end = cpio::end();
    let length = file.get_ref().metadata()?.len() as usize + file.buffer().len() + end.len();
    end.resize(end.len() + length.next_multiple_of(ALIGNMENT) - length, 0);
    file.write_all(&end)?;
    Ok(file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?)
}

/// The script: files beside itself. UEFI's kernel is told which of them are its initrds, BIOS's takes all.
fn text(files: [&Path; 3], name: &str, line: &str) -> anyhow::Result<String> {
    let names: Option<Vec<&str>> = files.iter().map(|path| path.file_name()?.to_str()).collect();
    let names = names.context("names of outputs")?;
    let [kernel, initrd, root] = names[..] else { anyhow::bail!("three files") };
    Ok(format!(
        "#!ipxe\n\
         # {name}: boots a node whose root is in memory and whose data is on a disk.\n\
         # Further words for the kernel, set before this script is chained to: `set pgkiln_words pgkiln.disk=serial:NUMBER`\n\
         kernel {kernel} initrd={initrd} initrd={root} {line} pgkiln.live ${{pgkiln_words}}\n\
         initrd {initrd}\n\
         initrd {root}\n\
         boot\n"
    ))
}
