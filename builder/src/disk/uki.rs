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

/// The distribution's, and which image this is: the boot loader shows it and sorts by its `IMAGE_ID`. The version is in the
/// name it shows, not in `IMAGE_VERSION`, which would decide before the file's name does: two bakes of one day are neither
/// older nor newer than each other, and a node that takes one of them must be able to put it first.
fn os_release(work: &Work<'_>) -> anyhow::Result<String> {
    let text = fs_err::read_to_string(work.tree.join("usr/lib/os-release"))?;
    let pretty = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let pretty = pretty.unwrap_or("Linux").trim_matches('"');
    let lines = text.lines().filter(|line| !line.starts_with("PRETTY_NAME="));
    let rest: String = lines.map(|line| format!("{line}\n")).collect();
    Ok(format!("PRETTY_NAME=\"{pretty} ({})\"\n{rest}IMAGE_ID={}\n", work.version, work.image.full_name()))
}
