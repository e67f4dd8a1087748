//! The installer's medium: a disk whose only partition firmware boots from, with a kernel image that has everything in it (kernel,
//! initramfs, and the archive with root, hash tree and disk head). The firmware reads all of it, so no driver of ours has to
//! find the medium again: a virtual CD of a remote console does as well as a stick.

use std::path::{Path, PathBuf};

use super::{Disk, Work, boot, esp, kernel::Kernel, uki};
use crate::outputs::image_file;

/// Somebody may have to add `pgkiln.disk=`. Where firmware checks signatures, nothing can be added whatever this says.
const LOADER: &str = "timeout 5\neditor yes\n";
const MIB: u64 = 1 << 20;
/// File allocation tables, directories, and both partition tables.
const BESIDE_MIB: u64 = 8;
/// Both partition tables.
const TABLES_MIB: u64 = 2;

/// Makes the medium's disk.
pub(super) fn make(work: &Work<'_>, kernel: &Kernel, disk: &Disk) -> anyhow::Result<PathBuf> {
    let archive = work.dir.join("root.cpio");
    image_file::archive(disk, &archive)?;
    let line = format!("{} pgkiln.mode=install", disk.image_file_line());
    let program = uki::make(work, kernel, &[&disk.initrd, &archive], &line, "installer.efi")?;
    fs_err::remove_file(archive)?;
    let program = super::signed(work, program, "installer.efi")?;
    let files = work.dir.join("installer");
    let name = format!("{}_{}_install.efi", work.image.full_name(), work.version);
    boot::fill(work, &files, &program, &name, LOADER)?;
    fs_err::remove_file(&program)?;
    let raw = partition(work, &files)?;
    fs_err::remove_dir_all(files)?;
    Ok(raw)
}

fn partition(work: &Work<'_>, files: &Path) -> anyhow::Result<PathBuf> {
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(files) {
        bytes += entry?.metadata()?.len();
    }
    let mib = bytes.div_ceil(MIB) + BESIDE_MIB;
    let definitions = work.dir.join("installer.repart.d");
    fs_err::create_dir(&definitions)?;
    let text =
        format!("[Partition]\nType=esp\nLabel=pgkiln-install\nFormat=vfat\nSizeMinBytes={mib}M\nSizeMaxBytes={mib}M\n");
    fs_err::write(definitions.join("10-esp.conf"), text)?;
    work.run(&[
        "systemd-repart",
        "--offline=yes",
        "--empty=create",
        &format!("--size={}", (mib + TABLES_MIB) * MIB),
        "--sector-size=512",
        "--dry-run=no",
        "--definitions=/srv/installer.repart.d",
        &format!("--seed={}", work.uuid("installer")),
        "/srv/installer.raw",
    ])?;
    esp::fill(work, "installer.raw", files)?;
    Ok(work.dir.join("installer.raw"))
}
