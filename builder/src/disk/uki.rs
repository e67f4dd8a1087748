//! The unified kernel image: kernel, initramfs and command line as one EFI program that can be signed as a whole.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::kernel::Kernel;
use super::{Work, boot};

/// Assembles it with the tool tree's ukify; `initrds` are archives in the directory of the disk, one behind the other.
pub(super) fn make(
    work: &Work<'_>,
    kernel: &Kernel,
    initrds: &[&Path],
    command_line: &str,
    name: &str,
) -> anyhow::Result<PathBuf> {
    let dir = work.dir;
    fs_err::copy(&kernel.image, dir.join("linux"))?;
    fs_err::write(dir.join("os-release"), os_release(work)?)?;
    let argument = |initrd: &&Path| {
        let name = initrd.file_name().and_then(|name| name.to_str()).context("path of the initrd")?;
        anyhow::Ok(format!("--initrd=/srv/{name}"))
    };
    let initrds: Vec<String> = initrds.iter().map(argument).collect::<anyhow::Result<_>>()?;
    let stub = format!("{}/linux{}.efi.stub", boot::PROGRAMS, boot::efi_name(&work.image.architecture)?);
    let rest = [
        format!("--cmdline={command_line}"),
        format!("--uname={}", kernel.release),
        format!("--stub={stub}"),
        format!("--output=/srv/{name}"),
    ];
    let mut argv = vec!["ukify", "build", "--linux=/srv/linux", "--os-release=@/srv/os-release"];
    argv.extend(initrds.iter().chain(&rest).map(String::as_str));
    work.run(&argv)?;
    Ok(dir.join(name))
}

/// What systemd-boot takes for a version, in its order (`src/boot/boot.c`).
const VERSIONS: [&str; 4] = ["IMAGE_VERSION=", "VERSION=", "VERSION_ID=", "BUILD_ID="];

fn os_release(work: &Work<'_>) -> anyhow::Result<String> {
    let text = fs_err::read_to_string(work.tree.join("usr/lib/os-release"))?;
    Ok(for_the_boot_loader(&text, work.version, &work.image.full_name()))
}

/// The distribution's, and which image this is: the boot loader shows it and sorts by its `IMAGE_ID`. The version is in the
/// name it shows alone, because any field of [`VERSIONS`] would decide before the file's name does: two bakes of one day are
/// neither older nor newer than each other, the distribution's own version changes with its point releases, and a node that
/// takes either of two images must be able to put it first.
fn for_the_boot_loader(text: &str, version: &str, image_id: &str) -> String {
    let pretty = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let pretty = pretty.unwrap_or("Linux").trim_matches('"');
    let replaced = |line: &&str| ["PRETTY_NAME=", "IMAGE_ID="].iter().chain(&VERSIONS).any(|key| line.starts_with(key));
    let rest: String = text.lines().filter(|line| !replaced(line)).map(|line| format!("{line}\n")).collect();
    format!("PRETTY_NAME=\"{pretty} ({version})\"\n{rest}IMAGE_ID={image_id}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_name_of_the_file_says_which_version_is_newer() {
        let ubuntu = |point: &str| {
            format!(
                "PRETTY_NAME=\"Ubuntu 24.04.{point} LTS\"\nNAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\n\
                 VERSION=\"24.04.{point} LTS (Noble Numbat)\"\nVERSION_CODENAME=noble\nBUILD_ID={point}\nID=ubuntu\n"
            )
        };
        let made = for_the_boot_loader(&ubuntu("3"), "20261124.00000001", "i-metal");
        assert_eq!(
            made,
            "PRETTY_NAME=\"Ubuntu 24.04.3 LTS (20261124.00000001)\"\nNAME=\"Ubuntu\"\nVERSION_CODENAME=noble\n\
             ID=ubuntu\nIMAGE_ID=i-metal\n"
        );
        let compared = |text: &str| {
            let field = |key: &str| text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
            (VERSIONS.map(field), field("IMAGE_ID="))
        };
        assert_eq!(compared(&made), compared(&for_the_boot_loader(&ubuntu("4"), "20261125.00000001", "i-metal")));
    }
}
