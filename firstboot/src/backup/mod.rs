//! Backups as part of a node's life: the repository host makes stanza and first backup, database nodes archive.
//!
//! What is agreed stands in etcd (`/pgkiln/<uuid>/backup`): the stanza exists only once that key says so. The repository
//! host alone writes it, under `lock/stanza`, after pgBackRest itself has said what is in the repository: empty is
//! used, the cluster's own is used again, anything else is refused and nothing is ever upgraded or deleted. Database
//! nodes let PostgreSQL archive from then on; a repository host that is down costs no write.

mod database;
mod info;
mod peers;
mod repository;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::durable::{self, Owner};
use crate::etcd::Client;
use crate::layout::Layout;
use crate::patroni::Patroni;
use crate::plan::Desired;
use crate::problem::Problem;
use crate::register::Keys;
use crate::spec::Role;
use crate::status::Board;
use crate::tool::{self, Tool};

pub use info::{Info, Listed};
pub use peers::{members, queue_max_mib};

/// Topic of what `firstboot status` notes.
const TOPIC: &str = "backups";
/// pgBackRest's TLS server.
const PORT: u16 = 8432;
/// A question to pgBackRest that reaches no other node, or one that answers.
const QUESTION: Duration = Duration::from_secs(60);

/// `backup`: what the cluster agreed about its backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format.
    pub schema: u32,
    /// Name of the stanza.
    pub stanza: String,
    /// Slot of the repository host.
    pub repository: String,
    /// System identifier of the database it is for.
    pub pg_system_id: String,
    /// When the stanza was made (RFC 3339, UTC).
    pub stanza_created_at: String,
    /// Label of the first full backup, once it is complete.
    pub first_full: Option<String>,
    /// Label of the newest complete backup.
    pub last: Option<String>,
}

/// What keeps the repository host from its work; read by whoever judges the node.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<Problem>>>);

impl Trouble {
    /// The problem, if there is one.
    pub fn get(&self) -> Option<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, problem: Option<Problem>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// What both sides work with.
#[derive(Debug, Clone)]
pub struct Backups {
    /// Paths.
    pub layout: Layout,
    /// Where it is said.
    pub board: Board,
    /// The cluster.
    pub keys: Keys,
    /// etcd.
    pub client: Arc<Client>,
    /// What this node is.
    pub desired: Desired,
    /// Patroni here, on database nodes.
    pub patroni: Option<Patroni>,
    /// How much WAL may wait for the repository host, in MiB.
    pub queue_max_mib: u64,
    /// What is wrong, on the repository host.
    pub trouble: Trouble,
}

impl Backups {
    /// Works until dropped; nothing here ends the agent.
    pub async fn run(self) {
        if self.desired.spec().backup.is_none() {
            std::future::pending().await
        } else if self.desired.spec().role == Role::Backup {
            repository::run(&self).await
        } else if self.patroni.is_some() {
            database::run(&self).await
        } else {
            std::future::pending().await
        }
    }

    async fn record(&self) -> Result<Option<Record>> {
        let found = self.client.get(&self.keys.backup()).await?;
        found.map(|kv| kv.json().context("reading the cluster's backup key")).transpose()
    }

    /// pgBackRest as the user that owns keys and repository.
    fn pgbackrest(&self, args: &[&str]) -> Result<Tool> {
        let program = self.desired.image.path("pgbackrest", "pgbackrest")?;
        tool(program, &self.desired.spec().cluster.name, args)
    }
}

fn tool(program: &std::path::Path, stanza: &str, args: &[&str]) -> Result<Tool> {
    let (user, group) = durable::ids(Owner { user: "postgres", group: "postgres" })?;
    let tool =
        Tool::new(program).arg("--config=/run/pgkiln/pgbackrest/pgbackrest.conf").arg(format!("--stanza={stanza}"));
    Ok(tool.args(args.iter().copied()).user(user.as_raw(), group.as_raw()).limit(QUESTION))
}

/// What the repository says on this node: for `firstboot backups`.
pub async fn list(layout: &Layout) -> Result<Listed> {
    let none = || {
        Problem::new(
            "this node has nothing to do with backups",
            layout.at("/run/pgkiln/pgbackrest/environment").display().to_string(),
            "ask a database node or the repository host of a cluster with `backup` in its specification",
        )
    };
    let accepted: crate::stored::Accepted = durable::read_json(&layout.spec())?.ok_or_else(none)?;
    if accepted.spec.backup.is_none() || !layout.at("/run/pgkiln/pgbackrest/pgbackrest.conf").exists() {
        return Err(none().into());
    }
    let image = crate::image_info::ImageInfo::load(layout)?;
    let program = image.path("pgbackrest", "pgbackrest")?;
    let text = tool(program, &accepted.spec.cluster.name, &["info", "--output=json"])?.run().await?;
    Ok(Info::parse(&text)?.list(&accepted.spec.cluster.name))
}

async fn systemctl(args: &[&str]) -> Result<()> {
    tool::systemctl(args).run().await.map(drop)
}

/// Waits before the next attempt.
async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
