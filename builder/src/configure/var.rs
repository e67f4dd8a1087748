//! An empty `/var`, and the tmpfiles.d lines that make it what the packages expect.
//!
//! A node's `/var` is a disk that is empty at first boot and outlives the image. So every directory a package has there
//! becomes a line for systemd-tmpfiles with its mode and owner, every file with content that matters a copy from
//! `/usr/share/factory/var`, every symbolic link a link. Paths that the image's own tmpfiles.d already makes are left to it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use walkdir::WalkDir;

use super::clean;
use crate::unpack::dpkg_db::ADMIN_DIR;
use crate::unpack::tree::{Ids, text};

/// The generated file.
pub const TMPFILES: &str = "usr/lib/tmpfiles.d/pgkiln-var.conf";

/// Where copies for [`TMPFILES`] lie.
const FACTORY: &str = "usr/share/factory/var";

/// What is left behind in `/var` and means nothing on a node, with the reason. A trailing `/` drops the content only.
const DROPPED: [(&str, &str); 14] = [
    ("/var/cache/", "caches"),
    ("/var/log/", "logs of configuring"),
    ("/var/backups/", "made by timers that are off"),
    ("/var/lib/apt", "apt's state; no apt in the image"),
    ("/var/lib/dbus/machine-id", "dbus reads /etc/machine-id itself"),
    ("/var/lib/systemd/catalog", "a cache; the journal works without"),
    ("/var/lib/systemd/deb-systemd-helper-enabled", "remembers links for package upgrades"),
    ("/var/lib/systemd/deb-systemd-helper-masked", "remembers links for package upgrades"),
    ("/var/lib/systemd/deb-systemd-user-helper-enabled", "remembers links for package upgrades"),
    ("/var/lib/systemd/deb-systemd-user-helper-masked", "remembers links for package upgrades"),
    ("/var/lib/ucf/", "remembers configuration files for package upgrades"),
    ("/var/lib/pam/", "remembers PAM profiles for package upgrades"),
    ("/var/lib/python", "remembers versions for package upgrades"),
    ("/var/lib/shells.state", "remembers shells for package upgrades"),
];

/// Writes the tmpfiles.d lines for what is in `/var`, and empties it.
pub fn empty(root: &Path) -> anyhow::Result<()> {
    let ids = Ids::read(root)?;
    let (users, groups) = ids.names();
    let made_elsewhere = existing_lines(root)?;
    let mut lines = String::from("# What packages ship and make in /var; written by `pgkiln bake`.\n");
    let _ = writeln!(lines, "L /var/lib/dpkg - - - - /{ADMIN_DIR}");
    let walk = WalkDir::new(root.join("var")).min_depth(1).sort_by_file_name().into_iter();
    for entry in walk.filter_entry(|entry| !is_dropped(root, entry.path())) {
        let entry = entry?;
        let inside = entry.path().strip_prefix(root)?;
        let path = format!("/{}", text(inside.as_os_str())?);
        if path == "/var/lib/dpkg" || made_elsewhere.contains(&path) {
            continue;
        }
        let meta = entry.metadata()?;
        let owner = |table: &std::collections::BTreeMap<u32, &str>, id: u32| {
            table.get(&id).map_or_else(|| id.to_string(), |name| (*name).to_owned())
        };
        let (user, group) = (owner(&users, meta.uid()), owner(&groups, meta.gid()));
        let mode = meta.permissions().mode() & 0o7777;
        let quoted = if path.contains(char::is_whitespace) { format!("\"{path}\"") } else { path.clone() };
        if meta.is_dir() {
            let _ = writeln!(lines, "d {quoted} {mode:04o} {user} {group} -");
        } else if meta.is_symlink() {
            let target = fs_err::read_link(entry.path())?;
            let _ = writeln!(lines, "L {quoted} - - - - {}", target.display());
        } else if meta.is_file() {
            let copy = root.join(FACTORY).join(inside.strip_prefix("var")?);
            fs_err::create_dir_all(copy.parent().context("path")?)?;
            fs_err::rename(entry.path(), &copy)?;
            let _ = writeln!(lines, "C {quoted} {mode:04o} {user} {group} - /{FACTORY}{}", &path["/var".len()..]);
        }
    }
    if root.join("usr/lib/tmpfiles.d").is_dir() {
        fs_err::write(root.join(TMPFILES), lines)?;
    }
    clean::empty(&root.join("var"))
}

fn is_dropped(root: &Path, path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(root) else { return false };
    let path = format!("/{}", inside.display());
    DROPPED.iter().any(|(dropped, _)| match dropped.strip_suffix('/') {
        // Directories below stay: packages ship them. Files go.
        Some(_) => {
            path.starts_with(dropped) && !root.join(&path[1..]).symlink_metadata().is_ok_and(|meta| meta.is_dir())
        }
        None => path == *dropped || path.strip_prefix(dropped).is_some_and(|rest| rest.starts_with('/')),
    })
}

/// Paths in `/var` that the tree's own tmpfiles.d makes (whatever the kind of line).
fn existing_lines(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let dir = root.join("usr/lib/tmpfiles.d");
    let mut paths = BTreeSet::new();
    if !dir.is_dir() {
        return Ok(paths);
    }
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|ext| ext != "conf") {
            continue;
        }
        for line in fs_err::read_to_string(&path)?.lines() {
            let mut words = line.split_whitespace();
            let (Some(kind), Some(path)) = (words.next(), words.next()) else { continue };
            if kind.starts_with(['d', 'D', 'q', 'Q', 'v', 'L', 'f', 'C']) && path.starts_with("/var/") {
                paths.insert(path.trim_end_matches('/').to_owned());
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_links_and_files_come_back_and_caches_do_not() {
        let root = tempfile::tempdir().unwrap();
        let dir = |path: &str| fs_err::create_dir_all(root.path().join(path)).unwrap();
        let file = |path: &str| fs_err::write(root.path().join(path), "x").unwrap();
        for path in [
            "etc",
            "usr/lib/tmpfiles.d",
            "var/lib/app",
            "var/lib/known",
            "var/cache/app",
            "var/lib/ucf/cache",
            "var/log/app",
        ] {
            dir(path);
        }
        for path in ["var/lib/app/data", "var/cache/app/blob", "var/lib/ucf/cache/x", "var/log/app/log"] {
            file(path);
        }
        std::os::unix::fs::symlink("/run", root.path().join("var/run")).unwrap();
        fs_err::write(root.path().join("usr/lib/tmpfiles.d/app.conf"), "d /var/lib/known 0700 app app -\n").unwrap();
        fs_err::set_permissions(root.path().join("var/lib/app"), PermissionsExt::from_mode(0o2750)).unwrap();
        fs_err::write(root.path().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs_err::write(root.path().join("etc/group"), "root:x:0:\n").unwrap();
        empty(root.path()).unwrap();
        let lines = fs_err::read_to_string(root.path().join(TMPFILES)).unwrap();
        let expected = [
            "L /var/lib/dpkg - - - - /usr/lib/sysimage/dpkg",
            "d /var/cache 0755 root root -",
            "d /var/cache/app 0755 root root -",
            "d /var/lib 0755 root root -",
            "d /var/lib/app 2750 root root -",
            "C /var/lib/app/data 0644 root root - /usr/share/factory/var/lib/app/data",
            // Packages ship the directories; only what was put into them goes.
            "d /var/lib/ucf 0755 root root -",
            "d /var/lib/ucf/cache 0755 root root -",
            "d /var/log 0755 root root -",
            "d /var/log/app 0755 root root -",
            "L /var/run - - - - /run",
        ];
        assert_eq!(lines.lines().skip(1).collect::<Vec<_>>(), expected);
        assert_eq!(fs_err::read_dir(root.path().join("var")).unwrap().count(), 0);
        assert!(root.path().join("usr/share/factory/var/lib/app/data").is_file());
    }
}
