//! Archiving on database nodes: tells PostgreSQL's archive and restore commands what is known, and people what is wrong.
//!
//! Whether segments may be thrown away (no repository yet) only the leader says, and only after it has read etcd: a
//! node that cannot read it archives nothing and keeps everything.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;
use tokio::net::TcpStream;

use super::{Backups, PORT, TOPIC, pause};
use crate::durable;
use crate::render::pgbackrest::{Gate, repository};
use crate::roll;

/// Between looks, until there is a stanza and afterwards.
const SOON: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(5);
/// A host in the same network answers sooner.
const CONNECT: Duration = Duration::from_secs(1);
/// Segments may wait for a moment without anything being wrong.
const WAITING: u64 = 8;
/// Size of a segment, in MiB.
const SEGMENT_MIB: u64 = 16;

pub(super) async fn run(backups: &Backups) -> ! {
    let mut gate = Gate::default();
    loop {
        let looked = look(backups, &mut gate).await;
        if let Err(error) = looked {
            tracing::warn!("backups: {error:#}");
        }
        pause(if gate.stanza == Some(true) { SLOW } else { SOON }).await;
    }
}

async fn look(backups: &Backups, last: &mut Gate) -> Result<()> {
    let local = match &backups.patroni {
        Some(patroni) => patroni.local().await.ok(),
        None => None,
    };
    let leads = local.is_some_and(|local| local.leads());
    let mut gate = Gate { leads, ..*last };
    let known = backups.record().await;
    match &known {
        Ok(record) => gate.stanza = Some(record.is_some()),
        // What was true stays true: a stanza is never taken back. That there is none may have changed.
        Err(_) => gate.stanza = gate.stanza.filter(|stanza| *stanza),
    }
    let spec = backups.desired.spec();
    let mut note = None;
    if known.is_ok() {
        let (peers, registered) = backups.peers().await?;
        backups.configure(&peers).await?;
        let host = spec.backup.as_ref().and_then(|backup| repository(backup, &peers));
        gate.repository = match host {
            Some((_, ip)) if answers(ip).await => Some(ip),
            _ => None,
        };
        note = host
            .filter(|_| gate.repository.is_none())
            .map(|(slot, ip)| format!("{slot} ({ip}:{PORT}) does not answer"));
        let mine = backups.desired.image.upstream_of("pgbackrest")?;
        let theirs = registered.iter().find(|node| Some(node.slot.as_str()) == host.map(|(slot, _)| slot));
        if let Some(theirs) = theirs.and_then(|node| node.pgbackrest.as_ref()).filter(|theirs| **theirs != mine) {
            let host = host.map_or("the repository host", |(slot, _)| slot);
            // Newer ones know the files of older ones, but two of them only talk to each other if they are the same.
            let versions = format!("pgBackRest here is {mine}, on {host} {theirs}");
            let rolls = roll::under_way(&backups.client, backups.keys).await?;
            note = Some(match rolls {
                true => format!("nothing is archived from here until the update has reached {host}, too: {versions}"),
                false => format!("nothing is archived from here: {versions}; give both the same image"),
            });
        }
    } else if let Some(ip) = last.repository {
        gate.repository = answers(ip).await.then_some(ip);
    }
    let waiting = ready(backups)?;
    let most = backups.queue_max_mib;
    let mib = waiting * SEGMENT_MIB;
    gate.full = mib > most;
    if gate.stanza == Some(true) && waiting > WAITING {
        let why = note.unwrap_or_else(|| "archiving fails; see `journalctl -b -u patroni`".to_owned());
        let then = match gate.full {
            true => "THE QUEUE IS FULL: WAL is dropped. Once the repository host is back, make a full backup there: \
                     `systemctl start pgkiln-backup-full`"
                .to_owned(),
            false => format!("{waiting} WAL segments ({mib} MiB) wait here, up to {most} MiB may; writes go on"),
        };
        note = Some(format!("{why}; {then}"));
    } else if gate.stanza == Some(false) {
        note = Some(format!("not yet: {}", note.unwrap_or_else(|| "the repository host is setting up".to_owned())));
    }
    if gate != *last {
        let path = backups.layout.at("/run/pgkiln/pgbackrest/gate");
        durable::write_volatile(&path, gate.text().as_bytes(), 0o644, None)?;
        *last = gate;
    }
    backups.board.note_on(TOPIC, note);
    Ok(())
}

/// Whether pgBackRest's server accepts connections there.
async fn answers(ip: IpAddr) -> bool {
    matches!(tokio::time::timeout(CONNECT, TcpStream::connect((ip, PORT))).await, Ok(Ok(_)))
}

/// Segments that wait to be archived.
fn ready(backups: &Backups) -> Result<u64> {
    let major = backups.desired.image.postgresql_major()?;
    let Ok(entries) = fs::read_dir(backups.layout.pgdata(major).join("pg_wal/archive_status")) else { return Ok(0) };
    let ready = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".ready"));
    Ok(ready.count() as u64)
}
