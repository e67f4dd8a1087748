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
    /// The etcd in which Patroni found no database: in another one, nobody having led means nothing.
    etcd_cluster: u64,
    /// Revision of the `initialize` that goes with the directory that was put aside.
    clear: Option<i64>,
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
    /// etcd's cluster id.
    pub etcd_cluster: u64,
}

impl Pgdata<'_> {
    /// Puts an unborn directory aside and makes room in etcd; `patroni` is logged in as Patroni. Says what was done.
    /// Only for a Patroni that does not run. May be killed anywhere and run again.
    pub async fn put_unborn_aside(&self, patroni: &Client) -> Result<Option<String>> {
        let record = durable::read_json::<Record>(&self.layout.unborn())?;
        let made_here =
            record.filter(|record| (&*record.pgdata, record.etcd_cluster) == (self.path, self.etcd_cluster));
        if let Some(revision) = made_here.as_ref().and_then(|record| record.clear) {
            self.clear(patroni, revision).await?;
        }
        if is_empty(self.path)? {
            self.record(None)?;
            return Ok(None);
        }
        if made_here.is_none() {
            return Ok(None);
        }
        let whole = self.path.join("global/pg_control").exists();
        let led = self.has_led(patroni).await?;
        if whole && led {
            durable::remove(&self.layout.unborn())?;
            return Ok(None);
        }
        let initialize = if led { None } else { patroni.get(&self.initialize()).await? };
        let revision = initialize.map(|found| found.mod_revision);
        self.record(revision)?;
        let aside = self.free_name()?;
        fs::rename(self.path, &aside)?;
        durable::sync_dir(self.path.parent().unwrap_or(Path::new("/")))?;
        if let Some(revision) = revision {
            self.clear(patroni, revision).await?;
        }
        let what = if led { "the first copy of the cluster's data" } else { "the founding of PostgreSQL" };
        let (path, aside) = (self.path.display(), aside.display());
        Ok(Some(format!("{what} was interrupted: {path} is now {aside}, which nobody needs, and it is begun anew")))
    }

    fn record(&self, clear: Option<i64>) -> Result<()> {
        let record = Record { schema: 1, pgdata: self.path.to_owned(), etcd_cluster: self.etcd_cluster, clear };
        durable::write_json(&self.layout.unborn(), &record, 0o600)
    }

    fn initialize(&self) -> String {
        format!("{}initialize", self.prefix)
    }

    /// Else every Patroni waits for the founder that was. One that somebody else has written since is left alone.
    async fn clear(&self, patroni: &Client, revision: i64) -> Result<()> {
        patroni.delete_at(&self.initialize(), revision).await.context("clearing Patroni's `initialize`")?;
        self.record(None)
    }

    /// Nothing is ever replaced, let alone deleted.
    fn free_name(&self) -> Result<PathBuf> {
        let mut names = (1..=u32::MAX).map(|number| self.path.with_file_name(format!("unfinished-{number}")));
        names.find(|name| name.symlink_metadata().is_err()).context("no free name beside PostgreSQL's directory")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::tests::{Server, block_on, until_up};

    const PREFIX: &str = "/service/orders/";

    #[test]
    #[ignore = "needs an etcd binary: PGKILN_TEST_ETCD=… cargo test -- --ignored"]
    fn only_what_was_made_here_and_never_led_is_put_aside() {
        let server = Server::start();
        block_on(async {
            let etcd = server.client(None);
            until_up(&etcd).await;
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::new(dir.path());
            let path = layout.pgdata(17);
            let beside = |name: &str| path.with_file_name(name);
            let look = async |etcd_cluster| {
                let pgdata = Pgdata { layout: &layout, path: &path, prefix: PREFIX, etcd_cluster };
                pgdata.put_unborn_aside(&etcd).await.unwrap()
            };
            let founding = |file: &str| {
                fs::create_dir_all(path.join("global")).unwrap();
                fs::write(path.join(file), "bytes").unwrap();
            };
            let initialize = async || etcd.get(&format!("{PREFIX}initialize")).await.unwrap();
            let set = async |key: &str| etcd.put(&format!("{PREFIX}{key}"), b"", None).await.unwrap();

            founding("global/pg_control");
            assert_eq!(look(1).await, None, "brought by somebody");
            assert!(path.exists() && !layout.unborn().exists());
            fs::rename(&path, beside("unfinished-1")).unwrap();

            assert_eq!(look(1).await, None, "empty: from now on Patroni's work");
            set("initialize").await;
            founding("global/pg_control");
            assert_eq!(look(2).await, None, "another etcd knows nothing about it");
            assert!(path.exists() && initialize().await.is_some());
            assert!(look(1).await.unwrap().contains("founding of PostgreSQL was interrupted"));
            assert!(!path.exists() && initialize().await.is_none());
            assert_eq!(fs::read(beside("unfinished-2").join("global/pg_control")).unwrap(), b"bytes");
            assert!(beside("unfinished-1").join("global/pg_control").exists(), "what was there stays");

            // Killed between the renaming and etcd: the next run goes on, unless somebody founds meanwhile.
            let record = |clear| Record { schema: 1, pgdata: path.clone(), etcd_cluster: 1, clear };
            let keep = |clear| durable::write_json(&layout.unborn(), &record(clear), 0o600).unwrap();
            set("initialize").await;
            keep(Some(initialize().await.unwrap().mod_revision));
            assert_eq!(look(1).await, None);
            assert!(initialize().await.is_none());
            set("initialize").await;
            keep(Some(initialize().await.unwrap().mod_revision - 1));
            assert_eq!(look(1).await, None);
            assert!(initialize().await.is_some(), "another node's founding");

            set("config").await;
            founding("backup_label");
            assert!(look(1).await.unwrap().contains("first copy"), "a copy without pg_control");
            assert!(initialize().await.is_some(), "the cluster's");
            founding("global/pg_control");
            assert_eq!(look(1).await, None, "a database of a cluster that was led");
            assert!(path.exists() && !layout.unborn().exists());
        });
    }
}
