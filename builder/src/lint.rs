//! Hygiene of a finished tree: what must never be in an image that many nodes share. Adding a check is one row in [`LINTS`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::configure::ids::ACCOUNTS;
use crate::configure::seal::FileEntry;
use crate::problem::{Problem, Problems};

/// A finished tree: layers, topmost first, and the list of everything in it.
pub struct View<'a> {
    layers: Vec<PathBuf>,
    files: &'a [FileEntry],
}

impl<'a> View<'a> {
    /// A view of the merged layers.
    pub fn new(layers: &[&Path], files: &'a [FileEntry]) -> Self {
        Self { layers: layers.iter().map(|path| path.to_path_buf()).collect(), files }
    }

    /// Text of a file; empty if there is none.
    fn text(&self, path: &str) -> String {
        let found = self.layers.iter().map(|layer| layer.join(path)).find(|path| path.is_file());
        found.and_then(|path| fs_err::read_to_string(path).ok()).unwrap_or_default()
    }

    /// Paths for which `test` holds.
    fn paths(&self, test: impl Fn(&FileEntry) -> bool) -> Vec<String> {
        self.files.iter().filter(|file| test(file)).map(|file| file.path.clone()).collect()
    }
}

/// One check.
struct Lint {
    /// Short name, shown with every finding.
    name: &'static str,
    /// Why it matters.
    description: &'static str,
    /// What is wrong; empty if nothing.
    findings: fn(&View<'_>) -> Vec<String>,
}

const LINTS: [Lint; 13] = [
    Lint { name: "passwords", description: "an image must not know any password", findings: passwords },
    Lint { name: "host-keys", description: "nodes would share their SSH identity", findings: host_keys },
    Lint { name: "private-keys", description: "nodes would share a secret key", findings: private_keys },
    Lint { name: "machine-id", description: "nodes would share their identity", findings: machine_id },
    Lint { name: "cluster", description: "a database must be born on its node", findings: cluster },
    Lint { name: "var", description: "content of /var would be seen at most once", findings: var },
    Lint { name: "caches", description: "caches and logs of the bake mean nothing on a node", findings: caches },
    Lint { name: "apt", description: "a node is replaced, not upgraded", findings: apt },
    Lint {
        name: "set-id",
        description: "every program with more rights than its caller must be known",
        findings: set_id,
    },
    Lint { name: "services", description: "the agent starts services, nothing else does", findings: services },
    Lint { name: "ids", description: "a data disk must fit the next image", findings: ids },
    Lint { name: "leftovers", description: "unfinished or backed up files", findings: leftovers },
    Lint { name: "origin", description: "every program must be traceable to a package or to us", findings: origin },
];

/// Programs that may change user or group: what the distributions ship, one reason each.
const SET_ID: [(&str, &str); 14] = [
    ("/usr/bin/chage", "reads shadow"),
    ("/usr/bin/chfn", "changes passwd"),
    ("/usr/bin/chsh", "changes passwd"),
    ("/usr/bin/expiry", "reads shadow"),
    ("/usr/bin/gpasswd", "changes group"),
    ("/usr/bin/mount", "fstab's user mounts"),
    ("/usr/bin/newgrp", "changes group"),
    ("/usr/bin/passwd", "changes shadow"),
    ("/usr/bin/ssh-agent", "cannot be traced"),
    ("/usr/bin/su", "becomes another user"),
    ("/usr/bin/umount", "fstab's user mounts"),
    ("/usr/lib/dbus-1.0/dbus-daemon-launch-helper", "starts system services"),
    ("/usr/lib/openssh/ssh-keysign", "host-based authentication"),
    ("/usr/sbin/unix_chkpwd", "checks passwords for PAM"),
];

/// Files in `/usr` that configuring makes and no package owns, one reason each. A `*` at an end stands for anything there.
const GENERATED: [(&str, &str); 10] = [
    ("/usr/lib/sysimage/dpkg/*", "dpkg's database"),
    ("/usr/share/factory/var/*", "copies for an empty /var"),
    ("/usr/lib/tmpfiles.d/pgkiln-var.conf", "makes an empty /var what packages expect"),
    ("/usr/lib/systemd/system-preset/00-pgkiln.preset", "which units start by themselves"),
    ("/usr/lib/systemd/user-preset/00-pgkiln.preset", "likewise for users"),
    ("/usr/lib/modules/*", "depmod's indexes (files called modules.*)"),
    ("/usr/lib/udev/hwdb.bin", "udev's hardware database"),
    ("/usr/share/info/dir", "index of info pages"),
    ("/usr/local/man", "base-files' link"),
    ("*.pyc", "Python's compiled modules"),
];

/// Units that start by themselves.
const ENABLED: [&str; 13] = [
    "getty@tty1.service",
    // An alias of getty@.service, from systemd 257 on.
    "autovt@.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-network-generator.service",
    "systemd-resolved.service",
    "dbus-org.freedesktop.network1.service",
    "dbus-org.freedesktop.resolve1.service",
    // Their own sockets, by `Also=`, from systemd 258 on.
    "systemd-networkd-resolve-hook.socket",
    "systemd-networkd-varlink.socket",
    "systemd-networkd-varlink-metrics.socket",
    "systemd-resolved-monitor.socket",
    "systemd-resolved-varlink.socket",
];

/// Runs every check; all findings are reported together.
pub fn check(view: &View<'_>) -> Result<(), Problems> {
    let finding = |lint: &Lint, what: String| {
        Problem::new(what, format!("lint `{}`", lint.name), format!("{}; see builder/src/lint.rs", lint.description))
    };
    let problems: Vec<Problem> =
        LINTS.iter().flat_map(|lint| (lint.findings)(view).into_iter().map(|what| finding(lint, what))).collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

fn passwords(view: &View<'_>) -> Vec<String> {
    let shadow = view.text("etc/shadow");
    let open = shadow.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (user, hash) = (fields.next()?, fields.next()?);
        (!hash.starts_with(['*', '!'])).then(|| format!("user `{user}` has a password or needs none"))
    });
    open.collect()
}

fn host_keys(view: &View<'_>) -> Vec<String> {
    view.paths(|file| file.path.starts_with("/etc/ssh/ssh_host_"))
}

fn private_keys(view: &View<'_>) -> Vec<String> {
    let in_etc = view.paths(|file| file.path.starts_with("/etc/") && file.sha256.is_some());
    in_etc.into_iter().filter(|path| view.text(&path[1..]).contains("PRIVATE KEY-----")).collect()
}

fn machine_id(view: &View<'_>) -> Vec<String> {
    let id = view.text("etc/machine-id");
    if id.trim().is_empty() { Vec::new() } else { vec!["/etc/machine-id is set".to_owned()] }
}

fn cluster(view: &View<'_>) -> Vec<String> {
    view.paths(|file| file.path.ends_with("/PG_VERSION") || file.path.starts_with("/etc/postgresql/"))
}

fn var(view: &View<'_>) -> Vec<String> {
    view.paths(|file| file.path.starts_with("/var/"))
}

fn caches(view: &View<'_>) -> Vec<String> {
    let starts = ["/run/", "/tmp/", "/boot/initrd", "/usr/share/factory/var/cache/", "/usr/share/factory/var/log/"];
    view.paths(|file| starts.iter().any(|start| file.path.starts_with(start)))
}

fn apt(view: &View<'_>) -> Vec<String> {
    let programs = ["apt", "apt-get", "gcc", "cc", "make", "ld", "rustc", "go"];
    view.paths(|file| programs.iter().any(|name| file.path.strip_prefix("/usr/bin/") == Some(name)))
}

fn set_id(view: &View<'_>) -> Vec<String> {
    let changes = |file: &FileEntry| u32::from_str_radix(&file.mode, 8).is_ok_and(|mode| mode & 0o6000 != 0);
    let is_file = |file: &FileEntry| file.mode.starts_with("10");
    view.paths(|file| is_file(file) && changes(file) && !SET_ID.iter().any(|(path, _)| *path == file.path))
}

fn services(view: &View<'_>) -> Vec<String> {
    let enabled = view.paths(|file| file.path.starts_with("/etc/systemd/system/") && file.mode.starts_with("12"));
    let name = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
    enabled.into_iter().filter(|path| !ENABLED.contains(&name(path).as_str())).collect()
}

fn ids(view: &View<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in ["etc/passwd", "etc/group"] {
        let text = view.text(file);
        let table: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| Some((line.split(':').next()?, line.split(':').nth(2)?))).collect();
        for account in ACCOUNTS {
            if table.get(account.name) != Some(&account.id.to_string().as_str()) {
                wrong.push(format!("`{}` is not {} in /{file}", account.name, account.id));
            }
        }
    }
    wrong
}

fn leftovers(view: &View<'_>) -> Vec<String> {
    let ends = [".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-tmp", ".ucf-dist", ".ucf-old"];
    view.paths(|file| ends.iter().any(|end| file.path.ends_with(end)))
}

/// The topmost of several layers is ours.
fn origin(view: &View<'_>) -> Vec<String> {
    let ours = |path: &str| view.layers.first().is_some_and(|layer| layer.join(&path[1..]).symlink_metadata().is_ok());
    let alternative = |path: &str| {
        let targets = view.layers.iter().filter_map(|layer| fs_err::read_link(layer.join(&path[1..])).ok());
        targets.into_iter().any(|target| target.starts_with("/etc/alternatives"))
    };
    view.paths(|file| {
        let unowned = file.path.starts_with("/usr/") && file.owner_package.is_none() && !file.mode.starts_with("04");
        unowned && !is_generated(&file.path) && !alternative(&file.path) && !ours(&file.path)
    })
}

fn is_generated(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    GENERATED.iter().any(|(pattern, _)| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some("/usr/lib/modules/"), _) => path.starts_with("/usr/lib/modules/") && name.starts_with("modules."),
        (Some(start), _) => path.starts_with(start),
        (None, Some(end)) => path.ends_with(end),
        (None, None) => path == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configure::seal;

    /// A tree every lint passes, changed by `change`, and the lints that then complain.
    fn complaints(change: impl Fn(&Path)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["etc/ssh", "etc/systemd/system", "usr/bin", "var", "boot"] {
            fs_err::create_dir_all(root.join(path)).unwrap();
        }
        let line = |account: &crate::configure::ids::Account| {
            format!("{}:x:{}:{}::/:/bin/sh\n", account.name, account.id, account.id)
        };
        let accounts: String = ACCOUNTS.iter().map(line).collect();
        for (path, text) in [
            ("etc/passwd", accounts.as_str()),
            ("etc/group", &accounts),
            ("etc/shadow", "root:*:1::::::\n"),
            ("etc/machine-id", ""),
        ] {
            fs_err::write(root.join(path), text).unwrap();
        }
        change(root);
        let files = seal::list(root, &|_| None).unwrap();
        match check(&View::new(&[root], &files)) {
            Ok(()) => Vec::new(),
            Err(problems) => problems.0.iter().map(|problem| problem.place.clone()).collect(),
        }
    }

    fn write(root: &Path, path: &str, text: &str) {
        fs_err::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs_err::write(root.join(path), text).unwrap();
    }

    #[test]
    fn a_clean_tree_passes_and_every_lint_finds_its_fault() {
        assert_eq!(complaints(|_| ()), [""; 0]);
        let faults: [(&str, &str, &str); 11] = [
            ("passwords", "etc/shadow", "root:$y$j9T$x:1::::::\n"),
            ("host-keys", "etc/ssh/ssh_host_rsa_key.pub", "x"),
            ("private-keys", "etc/app.pem", "-----BEGIN EC PRIVATE KEY-----"),
            ("machine-id", "etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
            ("cluster", "usr/share/seed/PG_VERSION", "17"),
            ("var", "var/lib/x", ""),
            ("caches", "boot/initrd.img-6.12", ""),
            ("apt", "usr/bin/apt-get", ""),
            ("ids", "etc/group", "postgres:x:105:\n"),
            ("leftovers", "etc/app.conf.dpkg-new", ""),
            ("leftovers", "etc/app.conf.ucf-dist", ""),
        ];
        for (lint, path, text) in faults {
            let found = complaints(|root| write(root, path, text));
            assert!(found.contains(&format!("lint `{lint}`")), "{lint}: {found:?}");
        }
        let found = complaints(|root| {
            write(root, "usr/bin/danger", "");
            crate::unpack::dpkg_db::set_mode(&root.join("usr/bin/danger"), 0o4755).unwrap();
        });
        assert_eq!(found, ["lint `set-id`"]);
        let found = complaints(|root| {
            fs_err::create_dir_all(root.join("etc/systemd/system/multi-user.target.wants")).unwrap();
            std::os::unix::fs::symlink("/x", root.join("etc/systemd/system/multi-user.target.wants/haproxy.service"))
                .unwrap();
        });
        assert_eq!(found, ["lint `services`"]);
    }

    #[test]
    fn what_no_package_owns_is_ours_or_known_to_be_generated() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, base) = (dir.path().join("layer"), dir.path().join("base"));
        write(&layer, "usr/bin/firstboot", "");
        for path in ["usr/bin/stray", "usr/lib/modules/6/modules.dep", "usr/lib/modules/6/x.ko", "usr/lib/a.pyc"] {
            write(&base, path, "");
        }
        std::os::unix::fs::symlink("/etc/alternatives/awk", base.join("usr/bin/awk")).unwrap();
        let files = seal::merge(&seal::list(&base, &|_| None).unwrap(), seal::list(&layer, &|_| None).unwrap());
        let view = View::new(&[&layer, &base], &files);
        assert_eq!(origin(&view), ["/usr/bin/stray", "/usr/lib/modules/6/x.ko"]);
    }
}
