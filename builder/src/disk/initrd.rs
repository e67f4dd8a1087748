//! The initramfs: our PID 1 and the drivers it may need, nothing else.
//!
//! Modules go in decompressed, and the whole is compressed once, so that the kernel unpacks everything in one go before it
//! starts us. Debian's modules are xz; measured on 33 of them (see the README): the archive is smaller than with the packages'
//! own compression, and zstd unpacks several times as fast as xz.

use std::path::PathBuf;

use super::cpio::Archive;
use super::kernel::Kernel;
use super::{Work, modules};

/// zstd level: the highest without memory that small machines lack.
const LEVEL: i32 = 19;

/// Writes the initramfs.
pub(super) fn make(work: &Work<'_>, kernel: &Kernel) -> anyhow::Result<PathBuf> {
    let selected = modules::select(&kernel.modules)?;
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.console("dev/console");
    archive.file("init", 0o755, &fs_err::read(&work.program)?);
    archive.directory("modules");
    for module in &selected {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &modules::content(&kernel.modules, module)?);
    }
    archive.file("modules/list", 0o644, modules::list(&selected).as_bytes());
    let bytes = zstd::stream::encode_all(archive.finish().as_slice(), LEVEL)?;
    let path = work.dir.join("initrd");
    fs_err::write(&path, bytes)?;
    Ok(path)
}
