//! What the firmware starts: systemd-boot, which starts a UKI and counts how often that went wrong.

use std::path::{Path, PathBuf};

use super::Work;
use crate::assemble::layer;
use crate::problem::Problem;

/// Where the tool tree has systemd's EFI programs.
pub(super) const PROGRAMS: &str = "/usr/lib/systemd/boot/efi";

/// How often an image is tried that was never good (systemd's Automatic Boot Assessment): `<name>+3.efi`.
const TRIES: u32 = 3;

/// The menu can be reached, but nobody may change the command line.
const LOADER: &str = "timeout 2\neditor no\n";

/// Kernel command line of an image. Both kinds of console, the serial one last: it is the one `/dev/console` means. The root is
/// set up and the disk's parts are named by the initrd, so systemd's own generators for that stay out. A panic, which is how
/// the kernel ends on an altered root, restarts the machine after its reason could be read. `gpt`: a power cut while an update
/// writes the partition table leaves one of its two copies, and the kernel then takes whichever that is. Caches that packages' updates make stale
/// are never stale in an image, although `/etc` is new at every boot.
pub(super) fn command_line(root_hash: &str) -> String {
    let console = "loglevel=6 console=tty0 console=ttyS0,115200 panic=10 gpt";
    let systemd = "systemd.verity=no systemd.gpt_auto=no systemd.condition_needs_update=no";
    format!("roothash={root_hash} ro {console} {systemd}")
}

/// UEFI's name of a Debian architecture.
pub(super) fn efi_name(architecture: &str) -> anyhow::Result<&'static str> {
    match architecture {
        "amd64" => Ok("x64"),
        "arm64" => Ok("aa64"),
        other => {
            Err(Problem::new(format!("no boot loader is known for `{other}`"), "", "bake the output `tree` only")
                .into())
        }
    }
}

/// File name of the UKI on the EFI system partition, with its tries.
pub fn uki_name(image: &str, version: &str) -> String {
    format!("{image}_{version}+{TRIES}.efi")
}

/// Fills the directory that becomes the EFI system partition.
pub(super) fn system_partition(work: &Work<'_>, uki: &Path) -> anyhow::Result<PathBuf> {
    let esp = work.dir.join("esp");
    fill(work, &esp, uki, &uki_name(&work.image.full_name(), work.version), LOADER)?;
    Ok(esp)
}

/// Boot loader, its configuration, and what it starts.
pub(super) fn fill(work: &Work<'_>, esp: &Path, uki: &Path, name: &str, configuration: &str) -> anyhow::Result<()> {
    let efi = efi_name(&work.image.architecture)?;
    let from = work.tools.join(&PROGRAMS[1..]).join(format!("systemd-boot{efi}.efi"));
    let loader = work.dir.join("loader.efi");
    fs_err::copy(from, &loader)?;
    let loader = super::signed(work, loader, "loader.efi")?;
    let copies = [
        // Where firmware looks that was told nothing.
        (loader.as_path(), format!("EFI/BOOT/BOOT{}.EFI", efi.to_uppercase())),
        (&loader, format!("EFI/systemd/systemd-boot{efi}.efi")),
        (uki, format!("EFI/Linux/{name}")),
    ];
    for (from, to) in copies {
        let to = esp.join(to);
        fs_err::create_dir_all(to.parent().unwrap_or(esp))?;
        fs_err::copy(from, to)?;
    }
    fs_err::create_dir_all(esp.join("loader"))?;
    fs_err::write(esp.join("loader/loader.conf"), configuration)?;
    layer::level_times(esp, work.epoch)
}
