//! `qcow2`, and the ways the tool tree's qemu-img is called.

use std::path::PathBuf;

use super::Inputs;
use crate::disk::Disk;

/// Converts the disk to `/srv/<name>`.
pub(super) fn convert(inputs: &Inputs<'_>, disk: &Disk, options: &[&str], to: &str) -> anyhow::Result<()> {
    let source = format!("/mnt/{}", disk.raw.file_name().unwrap_or_default().to_string_lossy());
    let target = format!("/srv/{to}");
    let mut argv = vec!["qemu-img", "convert", "-f", "raw"];
    argv.extend(options);
    argv.extend([source.as_str(), target.as_str()]);
    inputs.tools(disk)?.run(&argv).map(drop)
}

/// Compressed qcow2; qemu-img stamps nothing into it.
pub(super) fn qcow2(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let name = format!("{}.qcow2", inputs.name);
    convert(inputs, disk, &["-O", "qcow2", "-c", "-o", "compression_type=zstd"], &name)?;
    Ok(vec![inputs.dir.join(name)])
}
