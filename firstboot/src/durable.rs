//! File writes that survive a power cut: a temporary file beside the target with its mode set at creation, fsync,
//! rename, fsync of the directory. A reader sees the old bytes or the new ones, never a part, and never a secret with
//! a mode it should not have.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;

/// Owner of a written file by name, as the image defines it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    /// User name.
    pub user: &'a str,
    /// Group name.
    pub group: &'a str,
}

/// Replaces `path` with `bytes` durably; the file has `mode` from the moment it exists.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    replace(path, bytes, mode, None, true)
}

/// As [`write`], owned by `owner`.
pub fn write_owned(path: &Path, bytes: &[u8], mode: u32, owner: Owner<'_>) -> Result<()> {
    replace(path, bytes, mode, Some(owner), true)
}

/// Atomic but not synced: for files on a tmpfs, where fsync only costs time.
pub fn write_volatile(path: &Path, bytes: &[u8], mode: u32, owner: Option<Owner<'_>>) -> Result<()> {
    replace(path, bytes, mode, owner, false)
}

/// Writes `value` as JSON, durably.
pub fn write_json(path: &Path, value: &impl serde::Serialize, mode: u32) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).with_context(|| format!("encoding {}", path.display()))?;
    text.push(b'\n');
    write(path, &text, mode)
}

/// Reads JSON written by [`write_json`]; `None` if there is no such file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display())).map(Some)
}

/// Creates `path` and its parents with `mode` for the last one, and makes the new names durable.
pub fn create_dir(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.exists() {
        create_dir(parent, 0o755)?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        // The umask may have taken bits away that a service needs to reach its files.
        Ok(()) => fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(|| format!("creating {}", path.display())),
    }
    sync_dir(parent)
}

/// Removes a file durably; a missing file is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes what writes under `dir` were preparing when they were killed: whoever calls is the only writer there.
pub fn remove_unfinished(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    for entry in entries {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        let name = name.to_string_lossy();
        if kind.is_dir() {
            remove_unfinished(&entry.path())?;
        } else if kind.is_file() && name.starts_with('.') && name.ends_with(".new") {
            tracing::info!("removing {}, which a killed run left unfinished", entry.path().display());
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes names created in, renamed into or removed from `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// Numeric ids of `owner`; the error names who is missing.
pub fn ids(owner: Owner<'_>) -> Result<(nix::unistd::Uid, nix::unistd::Gid)> {
    let user = nix::unistd::User::from_name(owner.user)?.with_context(|| format!("no user `{}`", owner.user))?;
    let group = nix::unistd::Group::from_name(owner.group)?.with_context(|| format!("no group `{}`", owner.group))?;
    Ok((user.uid, group.gid))
}

fn replace(path: &Path, bytes: &[u8], mode: u32, owner: Option<Owner<'_>>, durable: bool) -> Result<()> {
    let dir = path.parent().with_context(|| format!("{} has no directory", path.display()))?;
    create_dir(dir, 0o755)?;
    let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
    // A fixed name: what a killed run left behind is overwritten by the next one instead of piling up.
    let temporary = dir.join(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    options.options_mut().mode(mode);
    let mut file = options.open(&temporary)?;
    // The umask may have taken bits away; it never adds any.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    if let Some(owner) = owner
        && nix::unistd::Uid::effective().is_root()
    {
        let (uid, gid) = ids(owner)?;
        nix::unistd::fchown(file.file(), Some(uid), Some(gid))
            .with_context(|| format!("giving {} to {}", temporary.display(), owner.user))?;
    }
    file.write_all(bytes)?;
    if durable {
        file.sync_all()?;
    }
    drop(file);
    fs::rename(&temporary, path)?;
    if durable { sync_dir(dir) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_content_and_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/secret");
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/.secret.new"), "left by a killed run").unwrap();
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        remove_unfinished(&dir.path().join("missing")).unwrap();
        for name in ["a/.x.cfg.new", "a/x.cfg", "a/x.new", ".hidden"] {
            fs::create_dir_all(dir.path().join("a")).unwrap();
            fs::write(dir.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("a/.link.new")).unwrap();
        remove_unfinished(dir.path()).unwrap();
        let kept =
            ["a/x.cfg", "a/x.new", ".hidden", "a/.link.new"].map(|name| dir.path().join(name).symlink_metadata());
        assert!(kept.iter().all(Result::is_ok), "{kept:?}");
        assert!(!dir.path().join("a/.x.cfg.new").exists());
    }

    #[test]
    fn missing_json_is_none_and_broken_json_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert!(read_json::<u32>(&path).unwrap().is_none());
        fs::write(&path, "{").unwrap();
        let error = format!("{:#}", read_json::<u32>(&path).unwrap_err());
        assert!(error.contains("x.json"), "{error}");
    }
}
