//! pgBackRest's configuration on both sides, and the timers of the repository host.
//!
//! Every node of a cluster with backups runs pgBackRest's TLS server: database nodes push WAL to the repository host,
//! the repository host reads the databases. Who may do what is decided by common names, which are slots. Options that
//! an older release refuses are written by version.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};

use super::host;
use crate::plan::Desired;
use crate::spec::{Backup, NodeSpec, Password, Role};
use crate::step::File;

const PKI: &str = "/run/pgkiln/pki/pgbackrest";
const CONFIG: &str = "/run/pgkiln/pgbackrest/pgbackrest.conf";

/// Another node as far as backups care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// What it does.
    pub role: Role,
    /// Where it is.
    pub address: IpAddr,
}

/// The nodes of the cluster, by slot.
pub type Peers = BTreeMap<String, Peer>;

/// Slot and address of the repository host: the node that the specification names by either.
pub fn repository<'p>(backup: &Backup, peers: &'p Peers) -> Option<(&'p str, IpAddr)> {
    let named = backup.repository.host.as_deref()?;
    let found = peers
        .iter()
        .find(|(slot, peer)| peer.role == Role::Backup && (*slot == named || named.parse() == Ok(peer.address)));
    found.map(|(slot, peer)| (slot.as_str(), peer.address))
}

/// Everything pgBackRest reads on this node; nothing if the cluster has no backups.
pub fn files(desired: &Desired, peers: &Peers, queue_max_mib: u64) -> Result<Vec<File>> {
    let spec = desired.spec();
    let Some(backup) = &spec.backup else { return Ok(Vec::new()) };
    let postgres = ("postgres", "postgres");
    let mut files = vec![
        File::owned(CONFIG, config(desired, backup, peers, queue_max_mib)?, 0o600, postgres),
        File::public("/run/pgkiln/pgbackrest/environment", environment(spec)),
    ];
    if spec.role == Role::Backup {
        files.extend(schedule(desired, backup)?);
    }
    Ok(files)
}

/// What `/usr/local/bin/pgbackrest` sets, so that people and PostgreSQL need no options.
pub fn environment(spec: &NodeSpec) -> String {
    format!("PGBACKREST_CONFIG={CONFIG}\nPGBACKREST_STANZA={}\n", spec.cluster.name)
}

fn config(desired: &Desired, backup: &Backup, peers: &Peers, queue_max_mib: u64) -> Result<String> {
    let spec = desired.spec();
    let version = desired.image.version_of("pgbackrest")?;
    let stanza = &spec.cluster.name;
    let mut text = String::from("# Written by firstboot.\n[global]\n");
    let mut put = |key: &str, value: &str| text.push_str(&format!("{key}={value}\n"));
    put("repo1-path", &format!("/var/lib/pgbackrest/{}", spec.cluster.uuid));
    put("repo1-cipher-type", "aes-256-cbc");
    put("repo1-cipher-pass", desired.secrets.passwords.get(Password::Repository)?.expose());
    put("compress-type", "zst");
    put("lock-path", "/run/pgkiln/pgbackrest/lock");
    put("spool-path", "/var/spool/pgbackrest");
    // The journal is the log.
    put("log-level-file", "off");
    put("log-level-console", "off");
    put("log-level-stderr", "warn");
    put("tls-server-address", &desired.ip()?.to_string());
    put("tls-server-ca-file", &format!("{PKI}/ca.pem"));
    put("tls-server-cert-file", &format!("{PKI}/pgbackrest.pem"));
    put("tls-server-key-file", &format!("{PKI}/pgbackrest.key"));
    let databases: BTreeMap<_, _> = peers.iter().filter(|(_, peer)| stores_data(peer.role)).collect();
    if spec.role == Role::Backup {
        for slot in databases.keys() {
            put("tls-server-auth", &format!("{slot}={stanza}"));
        }
        put("repo1-retention-full", &backup.retention_full().to_string());
        if version >= (2, 39, 0) {
            put("repo1-bundle", "y");
        }
        // Before, it was a beta and had fixes until the release before.
        if version >= (2, 55, 0) {
            put("repo1-block", "y");
        }
        put("start-fast", "y");
        put("process-max", "2");
        if version >= (2, 54, 0) {
            put("backup-standby", "prefer");
        }
        text.push_str(&format!("\n[{stanza}]\n"));
        for (number, (slot, _)) in databases.iter().enumerate() {
            let number = number + 1;
            text.push_str(&tls(&format!("pg{number}"), slot));
            text.push_str(&database(desired, number)?);
        }
        return Ok(text);
    }
    // Until it is known who that is: nobody may ask this node for anything, and there is nobody to ask.
    let named = backup.repository.host.as_deref().context("`backup.repository` names no host")?;
    let repository = repository(backup, peers).map_or(named, |(slot, _)| slot);
    put("tls-server-auth", &format!("{repository}={stanza}"));
    put("archive-async", "y");
    put("archive-push-queue-max", &format!("{queue_max_mib}MiB"));
    text.push_str(&tls("repo1", repository));
    text.push_str("\n[global:archive-push]\nprocess-max=2\narchive-timeout=30\nio-timeout=15\n");
    // One file at a time and soon: a replica that is promoted asks for files that do not exist and waits for the answer.
    text.push_str("\n[global:archive-get]\narchive-async=n\nio-timeout=15\n");
    text.push_str("\n[global:restore]\ndelta=y\nprocess-max=2\n");
    text.push_str(&format!("\n[{stanza}]\n{}", database(desired, 1)?));
    Ok(text)
}

/// Whether nodes of a role have a copy of the database.
fn stores_data(role: Role) -> bool {
    matches!(role, Role::Node | Role::Database | Role::Replica | Role::Standby)
}

/// How to reach another node. By name: certificates are checked against it, addresses only from 2.53 on.
fn tls(prefix: &str, slot: &str) -> String {
    format!(
        "{prefix}-host={slot}\n{prefix}-host-type=tls\n{prefix}-host-ca-file={PKI}/ca.pem\n\
         {prefix}-host-cert-file={PKI}/pgbackrest.pem\n{prefix}-host-key-file={PKI}/pgbackrest.key\n"
    )
}

fn database(desired: &Desired, number: usize) -> Result<String> {
    let major = desired.image.postgresql_major()?;
    Ok(format!(
        "pg{number}-path=/var/lib/postgresql/{major}/main\npg{number}-socket-path=/run/postgresql\n\
         pg{number}-port=5432\npg{number}-user=postgres\n"
    ))
}

/// Units of the kinds of backups, in the order in which they run when both are due.
pub const KINDS: [&str; 2] = ["full", "diff"];

/// Service and timer of each kind.
fn schedule(desired: &Desired, backup: &Backup) -> Result<Vec<File>> {
    let program = desired.image.path("pgbackrest", "pgbackrest")?;
    let mut files = Vec::new();
    for (kind, calendar) in KINDS.into_iter().zip([backup.full().to_owned(), backup.diff()]) {
        let name = &desired.spec().cluster.name;
        // Both at the same time: the full one first, or one of them finds the other's lock.
        let order = if kind == "full" { "" } else { "After=pgkiln-backup-full.service\n" };
        let service = format!(
            "# Written by firstboot at every boot.\n[Unit]\nDescription=Backup of cluster {name} ({kind})\n{order}\n\
             [Service]\nType=oneshot\nUser=postgres\nEnvironmentFile=/run/pgkiln/pgbackrest/environment\n\
             ExecStart={} --type={kind} --log-level-console=info backup\nNice=10\nIOSchedulingClass=idle\n",
            program.display()
        );
        let timer = format!(
            "# Written by firstboot at every boot.\n[Unit]\nDescription=Backups of cluster {name} ({kind})\n\n\
             [Timer]\nOnCalendar={calendar}\nPersistent=true\n"
        );
        files.push(File::public(format!("/run/systemd/system/pgkiln-backup-{kind}.service"), service));
        files.push(File::public(format!("/run/systemd/system/pgkiln-backup-{kind}.timer"), timer));
    }
    Ok(files)
}

/// `/etc/hosts` with every peer; pgBackRest finds others by name only.
pub fn hosts(present: &str, peers: &Peers) -> String {
    let known = |line: &str| {
        let mut words = line.split_whitespace();
        let address: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
        address.is_some_and(|ip| ip.is_loopback()) || !words.any(|word| peers.contains_key(word))
    };
    let mut text: String = present.lines().filter(|line| known(line)).map(|line| format!("{line}\n")).collect();
    for (slot, peer) in peers {
        text.push_str(&format!("{} {slot}\n", peer.address));
    }
    text
}

/// What the commands PostgreSQL calls must know before they ask pgBackRest: shell assignments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gate {
    /// Whether the stanza exists; `None`: unknown.
    pub stanza: Option<bool>,
    /// Whether this node leads.
    pub leads: bool,
    /// The repository host, while it answers.
    pub repository: Option<IpAddr>,
    /// Whether so much WAL waits that pgBackRest must decide what to drop.
    pub full: bool,
}

impl Gate {
    /// The file that the commands read.
    pub fn text(&self) -> String {
        let word = |known: Option<bool>| known.map_or("unknown", |yes| if yes { "yes" } else { "no" });
        let repository = self.repository.map(host).unwrap_or_default();
        format!(
            "STANZA={}\nLEADS={}\nREPOSITORY={}\nQUEUE_FULL={}\n",
            word(self.stanza),
            word(Some(self.leads)),
            repository.trim_matches(['[', ']']),
            word(Some(self.full))
        )
    }
}
