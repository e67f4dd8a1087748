//! The repository host: looks at what is in the repository, makes the stanza, waits until archiving works, makes the
//! first full backup, and from then on lets timers do the rest.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fs_err as fs;
use serde_json::json;

use super::info::{self, Content, Info};
use super::peers::Registered;
use super::{Backups, QUESTION, Record, TOPIC, pause, systemctl};
use crate::etcd::Swap;
use crate::problem::Problem;
use crate::register::{self, ClusterKey};
use crate::render::pgbackrest::KINDS;
use crate::roll;
use crate::spec::Role;
use crate::tool::Failed;

/// Between looks, until the first backup exists and afterwards.
const SOON: Duration = Duration::from_secs(1);
const SLOW: Duration = Duration::from_secs(15);
/// Lifetime of the stanza's lock: longer than what is done under it.
const LOCK_TTL: u32 = 90;
/// After a first backup that failed.
const AGAIN: Duration = Duration::from_secs(30);
/// Exit status of pgBackRest when something cannot be decrypted.
const CRYPTO_ERROR: i32 = 95;

/// What is done already, by this run of the agent.
#[derive(Default)]
struct Done {
    timers: bool,
    failed: Option<Instant>,
}

pub(super) async fn run(backups: &Backups) -> ! {
    let mut done = Done::default();
    loop {
        let (trouble, note, settled) = match look(backups, &mut done).await {
            Ok(None) => (None, None, true),
            Ok(Some(waiting)) => (None, Some(waiting), false),
            Err(error) => match error.downcast::<Problem>() {
                Ok(problem) => (Some(problem), None, false),
                Err(error) => (None, Some(format!("{error:#}")), false),
            },
        };
        if let Some(problem) = trouble.as_ref().filter(|problem| backups.trouble.get().as_ref() != Some(*problem)) {
            tracing::error!("{problem}");
        }
        backups.board.note_on(TOPIC, note);
        backups.trouble.set(trouble);
        pause(if settled { SLOW } else { SOON }).await;
    }
}

/// One look; says what is still waited for.
async fn look(backups: &Backups, done: &mut Done) -> Result<Option<String>> {
    let (peers, registered) = backups.peers().await?;
    backups.configure(&peers).await?;
    let cluster = backups.client.get(&backups.keys.cluster()).await?;
    let cluster: Option<ClusterKey> = cluster.map(|kv| kv.json()).transpose().context("reading the cluster key")?;
    let Some(system_id) = cluster.and_then(|cluster| cluster.pg_system_id) else {
        return Ok(Some("the database to be founded".to_owned()));
    };
    let content = content(backups, &system_id).await?;
    if let Some(problem) = info::refuse(&content, &system_id, &path(backups)) {
        return Err(problem.into());
    }
    let record = backups.record().await?;
    let pauses = match other_version(backups, &registered)? {
        None => None,
        // Between the first node's turn and this one's nothing else is to be expected, and the roll waits for who is not good.
        Some(problem) if roll::under_way(&backups.client, backups.keys).await? => {
            Some(format!("archiving may pause until the update has reached this node, too: {}", problem.what))
        }
        Some(problem) => return Err(problem.into()),
    };
    let record = match (record, &content) {
        (Some(record), Content::Empty) => return Err(lost(backups, &record).into()),
        (Some(record), _) => record,
        // Neither a stanza nor a first backup can be made between two versions.
        (None, _) if pauses.is_some() => return Ok(pauses),
        (None, content) => match stanza(backups, &system_id, content).await? {
            Ok(record) => record,
            Err(waiting) => return Ok(Some(waiting)),
        },
    };
    let Content::Own { first_full, last } = content else { return Ok(Some("the first full backup".to_owned())) };
    let Some(first_full) = first_full else {
        return if pauses.is_some() { Ok(pauses) } else { first(backups, done).await };
    };
    // The first one stays known after it has expired.
    let known = Record { first_full: record.first_full.clone().or(Some(first_full)), last, ..record.clone() };
    if known != record {
        if record.first_full.is_none() {
            tracing::info!("first full backup: {}", known.first_full.as_deref().unwrap_or_default());
        }
        backups.client.put(&backups.keys.backup(), &serde_json::to_vec(&known)?, None).await?;
    }
    if !done.timers {
        systemctl(&["daemon-reload"]).await?;
        for kind in KINDS {
            let timer = format!("pgkiln-backup-{kind}.timer");
            systemctl(&["start", &timer]).await.with_context(|| format!("starting {timer}"))?;
        }
        done.timers = true;
    }
    Ok(pauses)
}

fn path(backups: &Backups) -> String {
    format!("/var/lib/pgbackrest/{}", backups.desired.spec().cluster.uuid)
}

/// What is in the repository.
async fn content(backups: &Backups, system_id: &str) -> Result<Content> {
    let said = backups.pgbackrest(&["info", "--output=json"])?.run().await?;
    let garbled = |error: anyhow::Error| Content::Unreadable(format!("{error:#}"));
    let content = Info::parse(&said).map_or_else(garbled, |info| info.content(system_id));
    let path = path(backups);
    match content {
        Content::Unreadable(_) => {
            let file = format!("archive/{}/archive.info", backups.desired.spec().cluster.name);
            // `info` reads with whatever it has; this command tells a wrong passphrase from a damaged file.
            let read = backups.pgbackrest(&["repo-get", &file])?.run().await;
            if is_wrong_passphrase(&read) { Err(info::wrong_passphrase(&path).into()) } else { Ok(content) }
        }
        // No stanza of this name is not yet an empty repository.
        Content::Empty => {
            let used = ["archive", "backup"].iter().find_map(|directory| {
                let entries = fs::read_dir(backups.layout.at(&path).join(directory)).ok()?;
                entries.flatten().next().map(|entry| format!("{directory}/{}", entry.file_name().to_string_lossy()))
            });
            match used {
                Some(used) => Err(Problem::new(
                    format!("the repository here is not empty ({used}) and has no stanza of this cluster"),
                    path,
                    "nothing was written here. Move the directory away (never delete it) and restart \
                     firstboot.service: a new repository is made",
                )
                .into()),
                None => Ok(Content::Empty),
            }
        }
        content => Ok(content),
    }
}

/// What a file of sections comes out as when it is decrypted with another passphrase: one time in 256 its end looks like
/// padding all the same, and the rest of it is noise.
fn is_wrong_passphrase(read: &Result<String>) -> bool {
    match read {
        Ok(text) => !text.is_empty() && !text.starts_with('['),
        Err(error) => error.downcast_ref::<Failed>().is_some_and(|failed| failed.code == Some(CRYPTO_ERROR)),
    }
}

/// Both ends must be exactly the same version: archiving would stop at the first difference in protocol.
fn other_version(backups: &Backups, registered: &[Registered]) -> Result<Option<Problem>> {
    let mine = backups.desired.image.upstream_of("pgbackrest")?;
    let other = registered.iter().find_map(|node| {
        let theirs = node.pgbackrest.as_ref().filter(|theirs| node.role != Role::Backup && **theirs != mine)?;
        Some((node.slot.as_str(), theirs))
    });
    Ok(other.map(|(slot, theirs)| {
        Problem::new(
            format!("pgBackRest here is {mine}, on {slot} it is {theirs}: both ends must be exactly the same version"),
            format!("etcd key nodes/{slot}"),
            "give all nodes the same image, the repository host last (`firstboot update --cluster` does): segments that \
             wait on a running primary are archived then, those of one that stopped may be lost to the archive",
        )
    }))
}

fn lost(backups: &Backups, record: &Record) -> Problem {
    Problem::new(
        format!("the repository here is empty, but the cluster has one since {}", record.stanza_created_at),
        path(backups),
        format!(
            "nothing was written here. Mount the disk the backups are on; if they are lost for good, run `etcdctl \
             del {}` on a voter: a new repository is made",
            backups.keys.backup()
        ),
    )
}

/// Makes the stanza, or adopts the one that is there, under the cluster's lock.
async fn stanza(backups: &Backups, system_id: &str, content: &Content) -> Result<Result<Record, String>> {
    let spec = backups.desired.spec();
    let owner = serde_json::to_vec(&json!({"owner": spec.slot, "purpose": "make the stanza"}))?;
    let lease = backups.client.grant(LOCK_TTL).await?;
    if let Swap::Lost(held) = backups.client.create(&backups.keys.stanza(), &owner, Some(lease)).await?
        && held.as_ref().is_none_or(|held| held.lease != lease)
    {
        backups.client.revoke(lease).await?;
        return Ok(Err("another repository host, which makes the stanza".to_owned()));
    }
    let made = async {
        if *content == Content::Empty {
            backups.pgbackrest(&["stanza-create"])?.limit(QUESTION).run().await.context("making the stanza")?;
            tracing::info!("stanza {} made for system identifier {system_id}", spec.cluster.name);
        }
        let record = Record {
            schema: 1,
            stanza: spec.cluster.name.clone(),
            repository: spec.slot.clone(),
            pg_system_id: system_id.to_owned(),
            stanza_created_at: register::now(),
            first_full: None,
            last: None,
        };
        match backups.client.create(&backups.keys.backup(), &serde_json::to_vec(&record)?, None).await? {
            Swap::Done => Ok(Ok(record)),
            Swap::Lost(found) => {
                let found: Option<Record> = found.map(|kv| kv.json()).transpose()?;
                Ok(found.ok_or_else(|| "the cluster's backup key".to_owned()))
            }
        }
    };
    let made = made.await;
    backups.client.revoke(lease).await?;
    made
}

/// The first full backup: once a segment has made its way here.
async fn first(backups: &Backups, done: &mut Done) -> Result<Option<String>> {
    if done.failed.is_some_and(|failed| failed.elapsed() < AGAIN) {
        return Ok(Some("another attempt at the first full backup; see `journalctl -u pgkiln-backup-full`".to_owned()));
    }
    backups.board.note_on(TOPIC, Some("WAL to arrive in the repository".to_owned()));
    let check = backups.pgbackrest(&["--archive-timeout=20", "check"])?.run().await;
    check.context("archiving does not work yet")?;
    backups.board.note_on(TOPIC, Some("the first full backup is being made".to_owned()));
    systemctl(&["daemon-reload"]).await?;
    if let Err(error) = backup(backups).await {
        done.failed = Some(Instant::now());
        return Err(error.context("the first full backup failed"));
    }
    Ok(Some("the first full backup".to_owned()))
}

/// Runs one as systemd's: it outlives this agent.
async fn backup(backups: &Backups) -> Result<()> {
    const UNIT: &str = "pgkiln-backup-full.service";
    systemctl(&["start", "--no-block", UNIT]).await?;
    loop {
        pause(SOON).await;
        let shown = crate::tool::systemctl(&["show", "--property=ActiveState,Result", UNIT]).run().await?;
        let value = |key: &str| shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        match value("ActiveState") {
            Some("active" | "inactive") if value("Result") == Some("success") => return Ok(()),
            Some("activating") => {}
            state => anyhow::bail!(
                "{UNIT} is {}; see `journalctl -u {UNIT}` on {}",
                state.unwrap_or("unknown"),
                backups.desired.spec().slot
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_a_wrong_passphrase_and_a_damaged_file_is_not() {
        let failed = |code| {
            let (command, outcome) = ("pgbackrest".to_owned(), format!("exited with {code}"));
            Err(Failed { command, outcome, stderr: String::new(), code: Some(code) }.into())
        };
        assert!(is_wrong_passphrase(&failed(CRYPTO_ERROR)) && !is_wrong_passphrase(&failed(55)));
        for (text, wrong) in
            [("\u{fffd}\u{2}8s\u{fffd}", true), ("[backrest]\nbackrest-format=5\n\u{fffd}", false), ("", false)]
        {
            assert_eq!(is_wrong_passphrase(&Ok(text.to_owned())), wrong, "{text}");
        }
    }
}
