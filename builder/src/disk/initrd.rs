//! The initramfs: our PID 1 and the drivers it may need, nothing else.
//!
//! Modules go in decompressed, and the whole is compressed once, so that the kernel unpacks everything in one go before it
//! starts us. Measured with our program and the 35 modules of Debian 13's cloud kernel, 8.2 MB:
//!
//! | | MB | ms of CPU to unpack |
//! | --- | --- | --- |
//! | all of it zstd 19 | 1.76 | 14 |
//! | all of it xz 9 | 1.59 | 97 |
//! | modules as packaged (xz), the rest zstd 19 | 1.81 | 74 if all were loaded |

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
    archive.file("init", 0o755, &fs_err::read(work.program)?);
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
