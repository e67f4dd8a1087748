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
use crate::cache::Cache;
use crate::digest::Sha256;

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
    let path = work.dir.join("initrd");
    fs_err::write(&path, compressed(&archive.finish(), work.cache, work.fresh)?)?;
    Ok(path)
}

/// Compressed by this zstd, or earlier by the same: it takes four seconds, and a changed agent changes nothing here.
fn compressed(archive: &[u8], cache: &Cache, fresh: bool) -> anyhow::Result<Vec<u8>> {
    let key = Sha256::of(format!("zstd {} {LEVEL} {}", zstd::zstd_safe::version_number(), Sha256::of(archive)));
    // Never more than was compressed, whatever the file says.
    let right = |known: &Vec<u8>| zstd::bulk::decompress(known, archive.len()).is_ok_and(|bytes| bytes == archive);
    if let Some(known) = cache.made(&key).filter(|_| !fresh).filter(right) {
        return Ok(known);
    }
    let bytes = zstd::stream::encode_all(archive, LEVEL)?;
    cache.remember(&key, &bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_memory_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let first = compressed(b"modules and a program", &cache, false).unwrap();
        let kept = fs_err::read_dir(dir.path().join("made")).unwrap().next().unwrap().unwrap().path();
        for damage in [zstd::encode_all(&b"another"[..], LEVEL).unwrap(), first[..first.len() - 1].to_vec(), vec![]] {
            fs_err::write(&kept, &damage).unwrap();
            assert_eq!(compressed(b"modules and a program", &cache, false).unwrap(), first);
            assert_eq!(fs_err::read(&kept).unwrap(), first);
        }
        let marked = zstd::encode_all(&b"modules and a program"[..], 1).unwrap();
        fs_err::write(&kept, &marked).unwrap();
        assert_eq!(compressed(b"modules and a program", &cache, false).unwrap(), marked, "it is what is used");
        assert_eq!(compressed(b"modules and a program", &cache, true).unwrap(), first, "and not when all is made anew");
    }
}
