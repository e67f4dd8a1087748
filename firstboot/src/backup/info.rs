//! What pgBackRest says about a repository (`info --output=json`), and what that means for a cluster.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// `info --output=json` for one stanza.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Info {
    #[serde(default)]
    status: Status,
    #[serde(default)]
    db: Vec<Db>,
    #[serde(default)]
    backup: Vec<Backup>,
    #[serde(default)]
    archive: Vec<Archive>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Status {
    code: u32,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Db {
    #[serde(rename = "system-id")]
    system_id: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Archive {
    min: Option<String>,
    max: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Backup {
    label: String,
    #[serde(rename = "type")]
    kind: String,
    timestamp: Span,
    info: Sizes,
    archive: Wal,
    #[serde(default)]
    error: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Span {
    start: i64,
    stop: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Sizes {
    size: u64,
    repository: Repository,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Repository {
    #[serde(default)]
    delta: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Wal {
    start: Option<String>,
    stop: Option<String>,
}

/// The stanza's path is not there.
const MISSING_PATH: u32 = 1;
/// The stanza is there, without any backup.
const NO_BACKUPS: u32 = 2;
/// Its path is there, without data.
const MISSING_DATA: u32 = 3;

/// What a repository is to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No stanza.
    Empty,
    /// This cluster's stanza, with the labels of the first full and the newest backup.
    Own {
        /// Oldest full backup.
        first_full: Option<String>,
        /// Newest backup.
        last: Option<String>,
    },
    /// The stanza of a database with this system identifier.
    Foreign(u64),
    /// Not to be read; pgBackRest's words.
    Unreadable(String),
}

impl Info {
    /// Reads the output; without a stanza there is an empty list or an entry that says so.
    pub fn parse(text: &str) -> Result<Self> {
        // Of what it cannot decrypt pgBackRest quotes the bytes as they are.
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let stanzas: Vec<Self> = serde_json::from_str(&text).context("reading what pgBackRest says")?;
        let none = Self { status: Status { code: MISSING_PATH, message: String::new() }, ..Self::default() };
        Ok(stanzas.into_iter().next().unwrap_or(none))
    }

    /// What the repository is to the database with `system_id`.
    pub fn content(&self, system_id: &str) -> Content {
        match self.status.code {
            MISSING_PATH | MISSING_DATA if self.db.is_empty() => Content::Empty,
            0 | NO_BACKUPS => match self.db.iter().find(|db| db.system_id.to_string() != system_id) {
                Some(db) => Content::Foreign(db.system_id),
                None => Content::Own { first_full: self.first_full(), last: self.last() },
            },
            _ => Content::Unreadable(self.status.message.clone()),
        }
    }

    fn first_full(&self) -> Option<String> {
        let full = self.backup.iter().find(|backup| backup.kind == "full" && backup.error != Some(true));
        full.map(|backup| backup.label.clone())
    }

    fn last(&self) -> Option<String> {
        self.backup.last().map(|backup| backup.label.clone())
    }

    /// For people and machines.
    pub fn list(&self, stanza: &str) -> Listed {
        let time = |seconds: i64| {
            let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
            time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
        };
        let backups = self.backup.iter().map(|backup| Entry {
            label: backup.label.clone(),
            kind: backup.kind.clone(),
            started_at: time(backup.timestamp.start),
            finished_at: time(backup.timestamp.stop),
            bytes: backup.info.size,
            repository_bytes: backup.info.repository.delta,
            wal_start: backup.archive.start.clone(),
            wal_stop: backup.archive.stop.clone(),
            error: backup.error.unwrap_or(false),
        });
        let archive = self.archive.last();
        let status = if self.status.code == 0 { "ok".to_owned() } else { self.status.message.clone() };
        Listed {
            schema: 1,
            stanza: stanza.to_owned(),
            status,
            wal_min: archive.and_then(|archive| archive.min.clone()),
            wal_max: archive.and_then(|archive| archive.max.clone()),
            backups: backups.collect(),
        }
    }
}

/// Refuses what is not this cluster's; `place` is the repository's path.
pub(super) fn refuse(content: &Content, system_id: &str, place: &str) -> Option<Problem> {
    match content {
        Content::Empty | Content::Own { .. } => None,
        Content::Foreign(other) => Some(Problem::new(
            format!(
                "the repository here is of a database with system identifier {other}, the cluster's is {system_id}"
            ),
            place,
            "nothing was written here. Move the directory away (never delete it) and restart firstboot.service: \
             a new repository is made; to go back to that database restore it as a cluster of its own",
        )),
        Content::Unreadable(why) => Some(Problem::new(
            format!("the repository here cannot be read: {why}"),
            place,
            "nothing was written here. See `pgbackrest info`; mount the disk the repository is on, or move what \
             is left of it away (never delete it) and restart firstboot.service",
        )),
    }
}

/// What is said when the passphrase does not open the repository.
pub(super) fn wrong_passphrase(place: &str) -> Problem {
    Problem::new(
        "the passphrase of this cluster does not open the repository here: it was changed, or the repository is another \
         cluster's",
        place,
        "nothing was written here. Put the passphrase that the repository was made with (`passwords.repository` \
         in secrets.toml) back, or move the directory away (never delete it) and restart firstboot.service",
    )
}

/// `firstboot backups --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Version of this object.
    pub schema: u32,
    /// The stanza.
    pub stanza: String,
    /// `ok`, or what pgBackRest says is missing.
    pub status: String,
    /// Oldest WAL segment in the archive.
    pub wal_min: Option<String>,
    /// Newest WAL segment in the archive.
    pub wal_max: Option<String>,
    /// Oldest first.
    pub backups: Vec<Entry>,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its label.
    pub label: String,
    /// `full`, `diff` or `incr`.
    #[serde(rename = "type")]
    pub kind: String,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// RFC 3339, UTC.
    pub finished_at: String,
    /// Size of the database.
    pub bytes: u64,
    /// What this backup added to the repository.
    pub repository_bytes: u64,
    /// First WAL segment it needs.
    pub wal_start: Option<String>,
    /// Last WAL segment it needs.
    pub wal_stop: Option<String>,
    /// Whether it met damaged pages.
    pub error: bool,
}

impl std::fmt::Display for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dash = |value: &Option<String>| value.clone().unwrap_or("-".to_owned());
        writeln!(f, "stanza {}: {}; WAL {} to {}", self.stanza, self.status, dash(&self.wal_min), dash(&self.wal_max))?;
        for backup in &self.backups {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            writeln!(
                f,
                "  {:<34} {:<4}  {}  database {} MiB, in the repository {} MiB{}",
                backup.label,
                backup.kind,
                backup.finished_at,
                mib(backup.bytes),
                mib(backup.repository_bytes),
                if backup.error { ", DAMAGED PAGES" } else { "" }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What pgBackRest 2.55.1 printed.
    const ONE: &str = r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"17-1","max":"000000010000000000000007","min":"000000010000000000000001"}],"backup":[{"archive":{"start":"000000010000000000000006","stop":"000000010000000000000007"},"backrest":{"format":5,"version":"2.55.1"},"database":{"id":1,"repo-key":1},"error":false,"info":{"delta":23503771,"repository":{"delta":2827272,"delta-map":24832,"size-map":24832},"size":23503771},"label":"20261124-172004F","lsn":{"start":"0/6000028","stop":"0/7000050"},"prior":null,"reference":null,"timestamp":{"start":1795540804,"stop":1795540806},"type":"full"}],"cipher":"aes-256-cbc","db":[{"id":1,"repo-key":1,"system-id":7711786044218138513,"version":"17"}],"name":"orders","repo":[{"cipher":"aes-256-cbc","key":1,"status":{"code":0,"message":"ok"}}],"status":{"code":0,"lock":{"backup":{"held":false}},"message":"ok"}}]"#;
    const MISSING: &str = r#"[{"archive":[],"backup":[],"cipher":"aes-256-cbc","db":[],"name":"orders","repo":[{"cipher":"aes-256-cbc","key":1,"status":{"code":1,"message":"missing stanza path"}}],"status":{"code":1,"lock":{"backup":{"held":false}},"message":"missing stanza path"}}]"#;
    const CREATED: &str = r#"[{"archive":[{"database":{"id":1,"repo-key":1},"id":"17-1","max":null,"min":null}],"backup":[],"cipher":"aes-256-cbc","db":[{"id":1,"repo-key":1,"system-id":7711786044218138513,"version":"17"}],"name":"orders","repo":[{"cipher":"aes-256-cbc","key":1,"status":{"code":2,"message":"no valid backups"}}],"status":{"code":2,"lock":{"backup":{"held":false}},"message":"no valid backups"}}]"#;
    const WRONG: &str = r#"[{"archive":[],"backup":[],"cipher":"aes-256-cbc","db":[],"name":"orders","repo":[{"cipher":"aes-256-cbc","key":1,"status":{"code":99,"message":"[FormatError] unable to load info file\nFormatError: CONTROLG�"}}],"status":{"code":99,"lock":{"backup":{"held":false}},"message":"other"}}]"#;

    #[test]
    fn what_a_repository_is_to_a_cluster() {
        let content = |text: &str, id: &str| Info::parse(text).unwrap().content(id);
        let (own, other) = ("7711786044218138513", "7711786044218138514");
        let label = Some("20261124-172004F".to_owned());
        assert_eq!(content("[]", own), Content::Empty);
        assert_eq!(content(MISSING, own), Content::Empty);
        assert_eq!(content(CREATED, own), Content::Own { first_full: None, last: None });
        assert_eq!(content(ONE, own), Content::Own { first_full: label.clone(), last: label });
        assert_eq!(content(ONE, other), Content::Foreign(7_711_786_044_218_138_513));
        assert_eq!(content(CREATED, other), Content::Foreign(7_711_786_044_218_138_513));
        assert_eq!(content(WRONG, own), Content::Unreadable("other".to_owned()));
        assert_eq!(content(&WRONG.replace("CONTROL", "\u{1}\u{7f}"), own), Content::Unreadable("other".to_owned()));
    }

    #[test]
    fn nothing_but_empty_and_own_is_used() {
        let refused = |content: &Content| refuse(content, "1", "/var/lib/pgbackrest/x").map(|p| (p.what, p.remedy));
        assert_eq!(refused(&Content::Empty), None);
        assert_eq!(refused(&Content::Own { first_full: None, last: None }), None);
        let (what, remedy) = refused(&Content::Foreign(2)).unwrap();
        assert!(what.contains("system identifier 2, the cluster's is 1") && remedy.contains("never delete"), "{what}");
        assert!(refused(&Content::Unreadable("other".to_owned())).unwrap().1.contains("pgbackrest info"));
    }

    #[test]
    fn listing() {
        let listed = Info::parse(ONE).unwrap().list("orders");
        insta::assert_snapshot!(listed, @r"
        stanza orders: ok; WAL 000000010000000000000001 to 000000010000000000000007
          20261124-172004F                   full  2026-11-24T17:20:06Z  database 23 MiB, in the repository 3 MiB
        ");
    }
}
