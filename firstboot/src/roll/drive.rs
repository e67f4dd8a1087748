//! The turn of one node: looks whether it has come, takes it, and ends it after the restart.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Holder, LOCK, Seen, Stopped, TOPIC, Turn, Wish, turn};
use crate::durable;
use crate::etcd::{Client, KeyValue, Swap};
use crate::layout::Layout;
use crate::member::PORT;
use crate::register::{self, Keys, Node};
use crate::spec::Role;
use crate::status::{Board, Status, Verdict};
use crate::tool::{self, Failed, Tool};

/// Between looks without a wish, and with one.
const SLOW: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(1);
/// One question to another agent.
const ASK: Duration = Duration::from_secs(2);
/// From being good again to the next node's turn: until then every proxy's checks have seen it.
const SETTLE: Duration = Duration::from_secs(3);
/// Writing a slot on a slow disk, from a slow server.
const WRITE: Duration = Duration::from_secs(3600);
/// The lock of a node that is gone for good. Longer than a restart with all its tries, although nothing depends on it: who is
/// away or not good makes the others wait, with or without the lock.
const LOCK_TTL: u32 = 900;
/// Well within it.
const RENEW: Duration = Duration::from_secs(60);
/// A server may be away for a moment.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);

/// `/var/lib/pgkiln/update.json`: what this node did about a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Attempt {
    wish: String,
    version: String,
    /// Boot in which the version was put into the other slot, or could not be.
    boot_id: String,
    /// Why it could not.
    failed: Option<String>,
}

/// This node's part of a roll.
#[derive(Debug, Clone)]
pub struct Roll {
    /// Paths.
    pub layout: Layout,
    /// Where it is said.
    pub board: Board,
    /// The agents' keys.
    pub keys: Keys,
    /// etcd, logged in as this node.
    pub client: Arc<Client>,
    /// Name of the cluster: Patroni's scope.
    pub scope: String,
    /// This slot.
    pub slot: String,
    /// Version that runs here.
    pub version: String,
    /// Identifier of this boot.
    pub boot_id: String,
    /// Asks other agents.
    pub tls: rustls::ClientConfig,
}

impl Roll {
    /// Looks until dropped; only a restart of this node ends it.
    pub async fn run(&self) {
        let mut wished = false;
        loop {
            match self.look().await {
                Ok(found) => wished = found,
                Err(error) if wished => {
                    self.board.note_on(TOPIC, Some(format!("goes on when etcd answers: {error:#}")))
                }
                Err(error) => tracing::debug!("update: {error:#}"),
            }
            tokio::time::sleep(if wished { SOON } else { SLOW }).await;
        }
    }

    /// One look; says whether something is wished.
    async fn look(&self) -> Result<bool> {
        let wish = self.client.get(&self.keys.update()).await?;
        let held = self.client.get(&self.keys.lock(LOCK)).await?;
        if held_by(&held).as_deref() == Some(&self.slot) {
            self.renew(&held).await;
        }
        let Some(wish) = wish else {
            self.board.note_on(TOPIC, None);
            return Ok(false);
        };
        let wish: Wish = wish.json().context("reading the wished version")?;
        if self.version == wish.version {
            self.end(&wish, held).await?;
            return Ok(held_by(&self.client.get(&self.keys.lock(LOCK)).await?).as_deref() == Some(&self.slot));
        }
        let attempt = self.attempt(&wish)?;
        if let Some(why) = attempt.as_ref().and_then(|attempt| self.failed(attempt)) {
            self.stop(&wish, &why, held.clone()).await?;
        }
        let nodes = self.nodes().await?;
        let leader = self.client.get(&format!("/service/{}/leader", self.scope)).await?;
        let leader = leader.and_then(|kv| String::from_utf8(kv.value).ok());
        match turn(&self.slot, &wish, &nodes, leader.as_deref(), held_by(&held).as_deref()) {
            Turn::Done => {}
            Turn::Wait(why) => {
                self.board.note_on(TOPIC, Some(why));
                // Whoever is the leader now, or not good any more: others must be able to go first.
                self.unlock(held).await?;
            }
            Turn::Mine if held_by(&held).is_none() => self.lock(&wish).await?,
            Turn::Mine if attempt.is_none() => self.take(&wish, &held).await?,
            // Seen anew since it was written, which may have taken long: the others are good, and this is still the next one.
            Turn::Mine => self.restart(&wish).await?,
        }
        Ok(true)
    }

    /// What this node did about a wish.
    fn attempt(&self, wish: &Wish) -> Result<Option<Attempt>> {
        let attempt: Option<Attempt> = durable::read_json(&self.file())?;
        Ok(attempt.filter(|attempt| attempt.wish == wish.since))
    }

    /// Why this node did not take the version it tried.
    fn failed(&self, attempt: &Attempt) -> Option<String> {
        // In the other slot, restarted, and back with what it had: the boot loader went back.
        let back = || format!("it was bad there: the node came back with {}", self.version);
        attempt.failed.clone().or_else(|| (attempt.boot_id != self.boot_id).then(back))
    }

    fn file(&self) -> std::path::PathBuf {
        self.layout.lib().join("update.json")
    }

    fn remember(&self, wish: &Wish, failed: Option<&str>) -> Result<()> {
        let attempt = Attempt {
            wish: wish.since.clone(),
            version: wish.version.clone(),
            boot_id: self.boot_id.clone(),
            failed: failed.map(str::to_owned),
        };
        durable::write_json(&self.file(), &attempt, 0o600)
    }

    /// Says in the registry that this node did not take the version, and lets go.
    async fn stop(&self, wish: &Wish, why: &str, held: Option<KeyValue>) -> Result<()> {
        let key = self.keys.node(&self.slot);
        let found = self.client.get(&key).await?.context("this node is not registered")?;
        let node: Node = found.json().context("reading this node's entry")?;
        let stopped = Stopped { wish: wish.since.clone(), version: wish.version.clone(), why: why.to_owned() };
        if node.update.as_ref() != Some(&stopped) {
            tracing::error!("update to {} stopped: {why}", wish.version);
            let node = Node { update: Some(stopped), ..node };
            self.client.put(&key, &serde_json::to_vec(&node)?, None).await?;
        }
        self.unlock(held).await
    }

    /// This node has the version: once it is good, the next one may go.
    async fn end(&self, wish: &Wish, held: Option<KeyValue>) -> Result<()> {
        if held_by(&held).as_deref() != Some(&self.slot) {
            self.board.note_on(TOPIC, None);
            return Ok(());
        }
        match self.board.get().verdict {
            Verdict::Good => {
                tokio::time::sleep(SETTLE).await;
                if self.board.get().verdict == Verdict::Good {
                    tracing::info!("update: {} runs here and is good", wish.version);
                    self.board.note_on(TOPIC, None);
                    self.unlock(held).await?;
                }
            }
            Verdict::Undecided => {
                let why = self.board.get().waiting_for.unwrap_or_else(|| "this node to start".to_owned());
                self.board.note_on(TOPIC, Some(format!("{} runs here, waiting for {why}", wish.version)));
            }
            Verdict::Bad => {
                let why = "it is bad here; see `firstboot status`";
                self.board.note_on(TOPIC, Some(format!("{} stopped: {why}", wish.version)));
                self.stop(wish, why, None).await?;
            }
        }
        Ok(())
    }

    /// What fails here is tried at the next look.
    async fn renew(&self, held: &Option<KeyValue>) {
        let Some(lease) = held.as_ref().map(|kv| kv.lease).filter(|lease| *lease != 0) else { return };
        if let Err(error) = self.client.keep_alive(lease).await {
            tracing::debug!("update: the lock's lease: {error:#}");
        }
    }

    async fn unlock(&self, held: Option<KeyValue>) -> Result<()> {
        if held_by(&held).as_deref() == Some(&self.slot)
            && let Some(held) = held
        {
            self.client.delete_at(&self.keys.lock(LOCK), held.mod_revision).await?;
        }
        Ok(())
    }

    /// Claims the turn.
    async fn lock(&self, wish: &Wish) -> Result<()> {
        let purpose = format!("update to {}", wish.version);
        let holder = Holder { owner: self.slot.clone(), purpose, since: register::now() };
        let lease = self.client.grant(LOCK_TTL).await?;
        // Somebody else was faster, or the others are seen differently now: the next look tells.
        match self.client.create(&self.keys.lock(LOCK), &serde_json::to_vec(&holder)?, Some(lease)).await? {
            Swap::Done => Ok(()),
            Swap::Lost(_) => Ok(self.client.revoke(lease).await?),
        }
    }

    /// Puts the version into the other slot; remembered before anything restarts, for whoever comes back without it must know
    /// that it tried.
    async fn take(&self, wish: &Wish, held: &Option<KeyValue>) -> Result<()> {
        self.board.note_on(TOPIC, Some(format!("{} is being written to the other slot", wish.version)));
        tracing::info!("update: it is this node's turn to take {}", wish.version);
        let renewed = async {
            loop {
                tokio::time::sleep(RENEW).await;
                self.renew(held).await;
            }
        };
        let written = tokio::select! {
            written = self.write(wish) => written,
            never = renewed => never,
        };
        match written {
            Ok(()) => self.remember(wish, None),
            Err(error) => {
                let failed = error.downcast_ref::<Failed>().filter(|failed| !failed.stderr.is_empty());
                let why = failed.map_or_else(|| format!("{error:#}"), |failed| failed.stderr.clone());
                self.remember(wish, Some(why.trim_start_matches("error: ")))
            }
        }
    }

    /// Ends with this node.
    async fn restart(&self, wish: &Wish) -> Result<()> {
        self.board.note_on(TOPIC, Some(format!("restarting into {}", wish.version)));
        tool::systemctl(&["--no-block", "reboot"]).run().await.context("restarting")?;
        std::future::pending().await
    }

    /// In a process of its own, which gives way to the database's.
    async fn write(&self, wish: &Wish) -> Result<()> {
        // An operator's update of this node is no reason to stop the roll.
        let mut args = vec!["update", wish.source.as_str(), "--sha256", wish.sums_sha256.as_str(), "--wait"];
        args.extend(wish.older.then_some("--older"));
        args.extend(wish.collations.then_some("--allow-collation-change"));
        let mut tries = 1;
        loop {
            let tool = Tool::new("nice").args(["-n", "10", "ionice", "-c", "3", "/usr/bin/firstboot"]);
            match tool.args(args.iter().copied()).limit(WRITE).run().await {
                Ok(_) => return Ok(()),
                Err(error) if tries == TRIES => return Err(error),
                Err(error) => tracing::warn!("update: {error:#}"),
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// All registered nodes, and what their agents say.
    async fn nodes(&self) -> Result<Vec<Seen>> {
        let prefix = self.keys.node("");
        let mut nodes = Vec::new();
        for found in self.client.list(&prefix).await? {
            let key = String::from_utf8_lossy(&found.key).into_owned();
            let (Some(slot), Ok(node)) = (key.strip_prefix(&prefix), found.json::<Node>()) else { continue };
            let role = Role::NAMES.iter().find(|(name, _)| *name == node.role).map(|(_, role)| *role);
            let role = role.with_context(|| format!("{slot} has the unknown role {}", node.role))?;
            let trouble = match slot == self.slot {
                true => trouble(&self.board.get()),
                false => match self.ask(slot, &node.address).await {
                    Ok(status) => trouble(&status),
                    Err(error) => Some(format!("{error:#}")),
                },
            };
            nodes.push(Seen {
                slot: slot.to_owned(),
                role,
                version: node.image.version,
                stopped: node.update,
                trouble,
            });
        }
        Ok(nodes)
    }

    async fn ask(&self, slot: &str, address: &str) -> Result<Status> {
        let ip: IpAddr = address.parse().context("its address")?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ASK)
            .http1_only()
            .pool_max_idle_per_host(0)
            .resolve(slot, SocketAddr::new(ip, PORT))
            .tls_backend_preconfigured(self.tls.clone())
            .build()?;
        let url = format!("https://{slot}:{}/v1/status", PORT);
        let answer = http.get(url).send().await.map_err(|error| anyhow::anyhow!(crate::etcd::plain(&error)))?;
        serde_json::from_slice(&answer.bytes().await?).context("reading its status")
    }
}

fn trouble(status: &Status) -> Option<String> {
    let why = || status.waiting_for.clone().or_else(|| status.error.as_ref().map(|error| error.what.clone()));
    let verdict = format!("{:?}", status.verdict).to_lowercase();
    (status.verdict != Verdict::Good).then(|| why().unwrap_or(verdict))
}

fn held_by(held: &Option<KeyValue>) -> Option<String> {
    held.as_ref().map(|kv| kv.json::<Holder>().map_or_else(|_| "somebody".to_owned(), |holder| holder.owner))
}
