//! Users and groups with fixed numbers: a data disk written under one image must fit the next one.
//!
//! They are made before any package is configured; the packages' own `adduser` then finds them and lets them be. The block
//! lies inside the distributions' range for system users, far from where `adduser` (upwards from 100) and `systemd-sysusers`
//! (downwards from 999) arrive. Never changed once released.

use std::fmt::Write as _;
use std::path::Path;

use crate::unpack::dpkg_db::set_mode;

/// A user and its group of the same name and number.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// Name of user and group.
    pub name: &'static str,
    /// Number of both.
    pub id: u32,
    gecos: &'static str,
    home: &'static str,
    /// Mode of the home directory if the package leaves making it to `adduser`.
    home_mode: Option<u32>,
    shell: &'static str,
}

const fn account(name: &'static str, id: u32, gecos: &'static str, home: &'static str) -> Account {
    Account { name, id, gecos, home, home_mode: None, shell: "/usr/sbin/nologin" }
}

/// The block of fixed ids, the same in every image.
pub const ACCOUNTS: [Account; 9] = [
    Account { shell: "/bin/bash", ..account("postgres", 900, "PostgreSQL administrator", "/var/lib/postgresql") },
    Account { home_mode: Some(0o700), ..account("etcd", 901, "etcd", "/var/lib/etcd") },
    account("haproxy", 902, "HAProxy", "/var/lib/haproxy"),
    account("keepalived_script", 903, "Keepalived check scripts", "/nonexistent"),
    account("pgbouncer", 904, "PgBouncer", "/nonexistent"),
    account("pgpool", 905, "Pgpool-II", "/nonexistent"),
    account("pgagroal", 906, "pgagroal", "/nonexistent"),
    account("prometheus", 907, "Prometheus exporters", "/nonexistent"),
    account("pgkiln", 908, "pgkiln helpers", "/nonexistent"),
];

/// Adds the accounts to a tree whose `passwd` and `group` exist but are not shadowed yet (passwd's postinst does that).
pub fn add(root: &Path) -> anyhow::Result<()> {
    let (mut passwd, mut group) = (String::new(), String::new());
    for Account { name, id, gecos, home, home_mode, shell } in ACCOUNTS {
        if let Some(mode) = home_mode {
            let home = root.join(home.trim_start_matches('/'));
            fs_err::create_dir_all(&home)?;
            std::os::unix::fs::chown(&home, Some(id), Some(id))?;
            set_mode(&home, mode)?;
        }
        let _ = writeln!(passwd, "{name}:*:{id}:{id}:{gecos}:{home}:{shell}");
        let _ = writeln!(group, "{name}:*:{id}:");
    }
    for (file, lines) in [("etc/passwd", passwd), ("etc/group", group)] {
        let path = root.join(file);
        let text = fs_err::read_to_string(&path)? + &lines;
        fs_err::write(&path, text)?;
    }
    Ok(())
}
