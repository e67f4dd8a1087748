//! What a person asks for: a version for the whole cluster, no version any more, and how far it is.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Holder, LOCK, Wish};
use crate::durable;
use crate::etcd::{Client, Credentials};
use crate::layout::Layout;
use crate::member;
use crate::pki;
use crate::problem::Problem;
use crate::register::{Keys, Node};
use crate::spec::{NodeSpec, Secrets};
use crate::stored::Accepted;
use crate::update::Allow;
use crate::update::set::Set;

/// For etcd to answer a person.
const LIMIT: Duration = Duration::from_secs(10);

struct Cluster {
    spec: NodeSpec,
    client: Client,
    keys: Keys,
}

fn cluster(layout: &Layout) -> Result<Cluster> {
    let none =
        || Problem::new("this node belongs to no cluster", layout.spec().display().to_string(), "run it on a node");
    let accepted: Accepted = durable::read_json(&layout.spec())?.ok_or_else(none)?;
    let secrets: Secrets = durable::read_json(&layout.secrets())?.context("secrets.json is gone")?;
    let spec = accepted.spec;
    let user = Credentials::of_agent(&spec.slot, &secrets)?;
    let client = Client::new(member::endpoints(&spec), pki::client(&layout.pki(), "agent", None)?, Some(user))?;
    Ok(Cluster { keys: Keys(spec.cluster.uuid), client, spec })
}

async fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(LIMIT, work).await.map_err(|_| {
        let what = format!("etcd does not answer within {} s", LIMIT.as_secs());
        Problem::new(what, "etcd", "`etcdctl endpoint status` shows which members are there")
    })?
}

/// Wishes for a version; every node takes it in its turn.
pub async fn wish(layout: &Layout, set: &Set, source: &str, allow: Allow) -> Result<Wish> {
    let Cluster { spec, client, keys } = cluster(layout)?;
    let voters_only = || {
        let what = format!("`{}` has no vote: it may not decide what the cluster runs", spec.slot);
        Problem::new(what, "pgkiln.seeds", format!("run the same command on one of {}", slots(&spec)))
    };
    if !spec.is_voter() {
        return Err(voters_only().into());
    }
    let wish = Wish {
        schema: 1,
        version: set.image.version.clone(),
        source: source.to_owned(),
        sums_sha256: set.sums_sha256.clone(),
        older: allow.older,
        collations: allow.collations,
        by: spec.slot.clone(),
        since: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
    };
    within(async { Ok(client.put(&keys.update(), &serde_json::to_vec(&wish)?, None).await?) }).await?;
    Ok(wish)
}

fn slots(spec: &NodeSpec) -> String {
    Vec::from_iter(spec.seeds.keys().cloned()).join(", ")
}

/// Takes the wish back, and the lock of a node that does not come back. Nodes that have the version keep it.
pub async fn cancel(layout: &Layout) -> Result<()> {
    let Cluster { client, keys, .. } = cluster(layout)?;
    within(async {
        client.delete(&keys.update()).await?;
        Ok(client.delete(&keys.lock(LOCK)).await?)
    })
    .await
}

/// How far the cluster is.
#[derive(Debug, Clone, Serialize)]
pub struct Overview {
    /// What is wished, if anything.
    pub wish: Option<Wish>,
    /// Slot whose turn it is.
    pub turn: Option<String>,
    /// Since when (RFC 3339, UTC).
    pub turn_since: Option<String>,
    /// Every node.
    pub nodes: Vec<Version>,
}

/// A node's version.
#[derive(Debug, Clone, Serialize)]
pub struct Version {
    /// Its slot.
    pub slot: String,
    /// Its role.
    pub role: String,
    /// What it runs.
    pub version: String,
    /// Why it did not take what is wished.
    pub stopped: Option<String>,
}

/// Reads wish, lock and registry; `None` on a node that belongs to no cluster.
pub async fn overview(layout: &Layout) -> Result<Option<Overview>> {
    if !layout.spec().exists() {
        return Ok(None);
    }
    let Cluster { client, keys, .. } = cluster(layout)?;
    within(async {
        let wish = client.get(&keys.update()).await?.map(|kv| kv.json::<Wish>()).transpose()?;
        let holder = client.get(&keys.lock(LOCK)).await?.map(|kv| kv.json::<Holder>()).transpose()?;
        let prefix = keys.node("");
        let version = |kv: &crate::etcd::KeyValue| {
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            let (slot, node) = (key.strip_prefix(&prefix)?.to_owned(), kv.json::<Node>().ok()?);
            let about = |stopped: &super::Stopped| wish.as_ref().is_some_and(|wish| wish.since == stopped.wish);
            let stopped = node.update.filter(about).map(|stopped| stopped.why);
            Some(Version { slot, role: node.role, version: node.image.version, stopped })
        };
        let nodes = client.list(&prefix).await?.iter().filter_map(version).collect();
        let (turn, turn_since) = holder.map(|holder| (holder.owner, holder.since)).unzip();
        Ok(Some(Overview { wish, turn, turn_since, nodes }))
    })
    .await
}
