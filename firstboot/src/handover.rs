//! Shutting down is a handover: say that this node leaves, give leadership to a replica, then let services stop.
//! Membership, slot and data stay.
//!
//! Everything is bounded. A handover that cannot succeed (no healthy replica, the whole cluster going down) gives up at
//! once: PostgreSQL then stops in order and Patroni releases the leader key, which is what a handover saves time on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::durable;
use crate::etcd::{Client, Credentials};
use crate::layout::Layout;
use crate::member;
use crate::patroni::{Member, Patroni};
use crate::pki;
use crate::register::{self, Keys, Node};
use crate::spec::{Password, Secrets};
use crate::stored::Accepted;
use crate::tool::{self, Tool};

/// The whole handover.
const LIMIT: Duration = Duration::from_secs(20);
/// Telling etcd; it may be gone already.
const SAY: Duration = Duration::from_secs(2);
/// A checkpoint here makes the switchover's own one short.
const CHECKPOINT: Duration = Duration::from_secs(8);

/// Hands over if this machine is going down. Stopping or restarting only the agent changes nothing.
pub async fn run(layout: &Layout) -> Result<()> {
    let state = tool::systemctl(&["show", "--property=SystemState"]).run().await.unwrap_or_default();
    if state.trim() != "SystemState=stopping" {
        tracing::info!("no handover: only the agent stops");
        return Ok(());
    }
    match tokio::time::timeout(LIMIT, hand_over(layout)).await {
        Ok(Ok(outcome)) => tracing::info!("handover: {outcome}"),
        Ok(Err(error)) => tracing::warn!("handover: {error:#}; services stop in order"),
        Err(_) => tracing::warn!("handover: not done in {} s; services stop in order", LIMIT.as_secs()),
    }
    Ok(())
}

async fn hand_over(layout: &Layout) -> Result<String> {
    let start = Instant::now();
    let accepted: Accepted = durable::read_json(&layout.spec())?.context("this node has no specification")?;
    let secrets: Secrets = durable::read_json(&layout.secrets())?.context("secrets.json is gone")?;
    let spec = &accepted.spec;
    let tls = pki::client(&layout.pki(), "agent", None)?;
    let user = Credentials::of_agent(&spec.slot, &secrets)?;
    let client = Client::new(member::endpoints(spec), tls.clone(), Some(user))?;
    let keys = Keys(spec.cluster.uuid);
    if let Err(why) = tokio::time::timeout(SAY, set_state(&client, keys, &spec.slot, "leaving")).await {
        tracing::warn!("etcd was not told: {why}");
    }
    if !spec.role.stores_data() {
        return Ok("no PostgreSQL here".to_owned());
    }
    let ip = spec.ip().context("the specification gives this node no address")?;
    let patroni = Patroni::new(&spec.slot, ip, tls, secrets.passwords.get(Password::PatroniRest)?)?;
    if !patroni.local().await?.leads() {
        return Ok("this node does not lead".to_owned());
    }
    let members = patroni.members().await?;
    let leaving = leaving(&client, keys).await;
    if !members.iter().any(|m| can_lead(m, &spec.slot, &leaving)) {
        return Ok("no replica is able to lead".to_owned());
    }
    checkpoint().await;
    let left = LIMIT.saturating_sub(start.elapsed());
    let said = patroni.switchover(&spec.slot, left).await?;
    Ok(format!("{said} in {:.1} s", start.elapsed().as_secs_f64()))
}

/// Whether `member` may take over from `own`.
fn can_lead(member: &Member, own: &str, leaving: &[String]) -> bool {
    member.name != own && matches!(member.state.as_str(), "streaming" | "running") && !leaving.contains(&member.name)
}

async fn leaving(client: &Client, keys: Keys) -> Vec<String> {
    let prefix = keys.node("");
    let listed = tokio::time::timeout(SAY, client.list(&prefix)).await;
    let nodes = listed.ok().and_then(Result::ok).unwrap_or_default();
    let slot = |key: &[u8]| String::from_utf8_lossy(key).strip_prefix(&prefix).map(str::to_owned);
    let leaves = nodes.iter().filter(|kv| kv.json::<Node>().is_ok_and(|node| node.state == "leaving"));
    leaves.filter_map(|kv| slot(&kv.key)).collect()
}

async fn set_state(client: &Client, keys: Keys, slot: &str, state: &str) -> Result<()> {
    let Some(found) = client.get(&keys.node(slot)).await? else { return Ok(()) };
    let node = Node { state: state.to_owned(), since: register::now(), ..found.json()? };
    client.put(&keys.node(slot), &serde_json::to_vec(&node)?, None).await?;
    Ok(())
}

/// Best effort: the switchover makes its own, only longer.
async fn checkpoint() {
    let psql = Tool::new("psql").args(["--no-psqlrc", "--quiet", "--no-password"]);
    let psql = psql.arg("--dbname=host=/run/postgresql user=postgres dbname=postgres").arg("--command=CHECKPOINT");
    if let Err(error) = psql.limit(CHECKPOINT).run().await {
        tracing::info!("no checkpoint: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates() {
        let member =
            |name: &str, state: &str| Member { name: name.into(), role: "replica".into(), state: state.into() };
        assert!(can_lead(&member("pg-2", "streaming"), "pg-1", &[]));
        assert!(!can_lead(&member("pg-1", "running"), "pg-1", &[]));
        assert!(!can_lead(&member("pg-2", "stopped"), "pg-1", &[]));
        assert!(!can_lead(&member("pg-2", "streaming"), "pg-1", &["pg-2".to_owned()]));
    }
}
