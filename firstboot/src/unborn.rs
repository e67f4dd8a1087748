//! PostgreSQL's founding, or a replica's first copy, that a power cut ended: what is on disk then can neither lead nor
//! follow, and Patroni leaves it at that.
//!
//! Patroni founds in steps: `initialize` in etcd, initdb, start, roles and databases, and at last `config` and the leader
//! key. Nobody has written anything before that. So a data directory is unborn if it was empty when Patroni was first
//! started here (there is a record) and either has no `global/pg_control`, which initdb and pg_basebackup write late or
//! last, or the cluster has no `config` and never had a leader. It is put aside, and Patroni begins anew. Anything else is
//! somebody's data and left alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::etcd::Client;
use crate::layout::Layout;

/// What Patroni writes once somebody has led (`patroni/ha.py`, `post_bootstrap`).
const LED: [&str; 4] = ["config", "leader", "status", "history"];

/// "PostgreSQL's directory was empty when Patroni was started": whatever is there since, Patroni made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    schema: u32,
    pgdata: PathBuf,
}

/// The data directory before Patroni is started.
#[derive(Debug)]
pub struct Pgdata<'a> {
    /// Where things are.
    pub layout: &'a Layout,
    /// PostgreSQL's data directory.
    pub path: &'a Path,
    /// Patroni's tree in etcd: `/service/<scope>/`.
    pub prefix: &'a str,
}

impl Pgdata<'_> {
    /// Puts an unborn directory aside and makes room in etcd; `patroni` is logged in as Patroni. Says what was done.
    /// Only for a Patroni that does not run.
    pub async fn put_unborn_aside(&self, patroni: &Client) -> Result<Option<String>> {
        let record = self.layout.unborn();
        let made_here = durable::read_json::<Record>(&record)?.is_some_and(|record| record.pgdata == self.path);
        if is_empty(self.path)? {
            durable::write_json(&record, &Record { schema: 1, pgdata: self.path.to_owned() }, 0o600)?;
            return Ok(None);
        }
        if !made_here {
            return Ok(None);
        }
        let whole = self.path.join("global/pg_control").exists();
        let led = self.has_led(patroni).await?;
        if whole && led {
            return Ok(None);
        }
        let aside = self.path.with_file_name("unfinished");
        // An earlier one of the same kind: nobody has ever written to it.
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::rename(self.path, &aside)?;
        durable::sync_dir(self.path.parent().unwrap_or(Path::new("/")))?;
        if !led {
            // Else every Patroni waits for the founder that was.
            patroni.delete(&format!("{}initialize", self.prefix)).await.context("clearing Patroni's `initialize`")?;
        }
        let what = if led { "the first copy of the cluster's data" } else { "the founding of PostgreSQL" };
        Ok(Some(format!("{what} was interrupted: {} is now {}, begun anew", self.path.display(), aside.display())))
    }

    async fn has_led(&self, patroni: &Client) -> Result<bool> {
        for key in LED {
            if patroni.get(&format!("{}{key}", self.prefix)).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn is_empty(dir: &Path) -> Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error.into()),
    }
}
