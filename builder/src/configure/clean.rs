//! What no image may carry, removed. The lints ([`crate::lint`]) check the result.

use std::path::Path;

use anyhow::Context;

use crate::unpack::dpkg_db::ADMIN_DIR;

/// Files that scripts made, with the reason why they go.
const FILES: [(&str, &str); 13] = [
    ("usr/sbin/policy-rc.d", "ours, for the time of configuring"),
    ("etc/ssl/certs/ssl-cert-snakeoil.pem", "a key pair every node would share"),
    ("etc/ssl/private/ssl-cert-snakeoil.key", "a key pair every node would share"),
    ("etc/postgresql-common/createcluster.conf.ucf-dist", "the package's version of a file of ours"),
    ("etc/.pwd.lock", "left by adduser"),
    ("etc/passwd-", "backup"),
    ("etc/group-", "backup"),
    ("etc/shadow-", "backup"),
    ("etc/gshadow-", "backup"),
    ("etc/subuid-", "backup"),
    ("etc/subgid-", "backup"),
    ("etc/hostname", "the agent sets it"),
    ("etc/adjtime", "state of one machine"),
];

/// Parts of dpkg's database that only a running dpkg needs.
const DPKG_SCRATCH: [&str; 9] = [
    "tmp.ci",
    "lock",
    "lock-frontend",
    "triggers/Lock",
    "status-old",
    "diversions-old",
    "statoverride-old",
    "available",
    "available-old",
];

/// Cleans a configured tree.
pub(super) fn clean(root: &Path) -> anyhow::Result<()> {
    for (file, _) in FILES {
        remove(&root.join(file))?;
    }
    for file in DPKG_SCRATCH {
        remove(&root.join(ADMIN_DIR).join(file))?;
    }
    for dir in ["run", "tmp", "dev", "proc", "sys"] {
        empty(&root.join(dir))?;
    }
    host_keys(&root.join("etc/ssh"))?;
    dangling_certificates(&root.join("etc/ssl/certs"))?;
    // Empty, not `uninitialized`: /etc is new at every boot, and systemd would take each for the first one, apply presets
    // and ask questions on the console. An empty file only means that this machine's id is still to be set.
    if root.join("etc/machine-id").exists() {
        fs_err::write(root.join("etc/machine-id"), "")?;
    }
    Ok(())
}

/// Our placeholders, and keys of kinds that openssh learned since: by name, as sshd's own scripts do.
fn host_keys(dir: &Path) -> anyhow::Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Hash links to certificates that are gone (ssl-cert's).
fn dangling_certificates(dir: &Path) -> anyhow::Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        let Ok(target) = fs_err::read_link(&path) else { continue };
        if target.components().count() == 1 && !dir.join(&target).is_symlink() && !dir.join(&target).exists() {
            fs_err::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes a file, link or directory; absent is fine.
fn remove(path: &Path) -> anyhow::Result<()> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs_err::remove_dir_all(path)?,
        Ok(_) => fs_err::remove_file(path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    }
    Ok(())
}

/// Removes what is in a directory, not the directory.
pub(super) fn empty(dir: &Path) -> anyhow::Result<()> {
    if dir.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        for entry in fs_err::read_dir(dir)? {
            remove(&entry?.path())?;
        }
    }
    Ok(())
}
