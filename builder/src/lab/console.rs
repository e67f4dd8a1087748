//! A node's console on disk: enough to see how it booted, bounded however long it runs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// At this size the log moves to `console.log.1` and begins again.
const LIMIT: u64 = 4 << 20;

/// File with the console of the node whose directory is `dir`.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("console.log")
}

/// Copies a console to its file until it ends.
pub(super) fn copy(mut from: impl Read, dir: &Path) -> anyhow::Result<()> {
    let path = path(dir);
    let mut log = open(&path)?;
    let mut size = log.metadata()?.len();
    let mut buffer = [0; 8192];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        log.write_all(&buffer[..n])?;
        size += n as u64;
        if size >= LIMIT {
            fs_err::rename(&path, path.with_extension("log.1"))?;
            (log, size) = (open(&path)?, 0);
        }
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    let log = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(log.into_parts().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_console_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        copy(std::io::repeat(b'x').take(3 * LIMIT), dir.path()).unwrap();
        copy(&b"login:"[..], dir.path()).unwrap();
        let sizes = ["console.log", "console.log.1"].map(|name| dir.path().join(name).metadata().unwrap().len());
        assert!(sizes.iter().all(|size| *size <= LIMIT + 8192), "{sizes:?}");
        assert!(fs_err::read(path(dir.path())).unwrap().ends_with(b"login:"));
    }
}
