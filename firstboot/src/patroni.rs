//! Patroni's REST interface, as far as the agent uses it: health of the local PostgreSQL, the members, switchover.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::spec::Secret;

/// A question that is asked again at once.
const PROBE: Duration = Duration::from_secs(1);

/// `GET /patroni` of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Local {
    /// `running`, `starting`, `creating replica`, `stopped`, …
    #[serde(default)]
    pub state: String,
    /// `primary` (`master` before 4.0), `replica`, `standby_leader`, `uninitialized`.
    #[serde(default)]
    pub role: String,
    /// `streaming` or `in archive recovery` on replicas (Patroni 3.0.4 and later; before, the watch asks PostgreSQL).
    #[serde(default)]
    pub replication_state: Option<String>,
}

impl Local {
    /// Whether PostgreSQL accepts writes here.
    pub fn leads(&self) -> bool {
        self.state == "running" && matches!(self.role.as_str(), "primary" | "master")
    }

    /// False if PostgreSQL was to be started here and did not (states of Patroni, `postgresql/__init__.py`; the state before follows in
    /// parentheses after some); that it is being started once more says nothing either way.
    pub fn starts(&self) -> Option<bool> {
        match self.state.split(" (").next().unwrap_or_default() {
            "start failed" | "restart failed" | "crashed" => Some(false),
            "starting" | "restarting" | "stopping" | "stopped" => None,
            _ => Some(true),
        }
    }

    /// Whether it follows.
    pub fn follows(&self) -> bool {
        let streaming = self.replication_state.as_deref().is_none_or(|state| state == "streaming");
        self.state == "running" && self.role == "replica" && streaming
    }
}

/// One member of `GET /cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// Its slot.
    pub name: String,
    /// `leader`, `replica`, `sync_standby`, `quorum_standby` …
    pub role: String,
    /// `running`, `streaming`, `stopped` …
    #[serde(default)]
    pub state: String,
}

impl Member {
    /// Whether Patroni's `/sync` key names it: only such a member may take over when nothing may be lost.
    pub fn may_take_over(&self) -> bool {
        matches!(self.role.as_str(), "sync_standby" | "quorum_standby")
    }

    /// Whether it receives WAL from the leader.
    pub fn streams(&self) -> bool {
        self.state == "streaming"
    }
}

/// The interface of one node.
#[derive(Debug, Clone)]
pub struct Patroni {
    http: reqwest::Client,
    base: String,
    password: Secret,
}

impl Patroni {
    /// Patroni of `slot` at `ip`; `tls` presents a client certificate (unsafe methods need one).
    pub fn new(slot: &str, ip: IpAddr, tls: rustls::ClientConfig, password: &Secret) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(3))
            .http1_only()
            // Patroni answers from a small pool of threads: an idle connection would hold one of them.
            .pool_max_idle_per_host(0)
            .resolve(slot, SocketAddr::new(ip, 8008))
            .tls_backend_preconfigured(tls)
            .build()?;
        Ok(Self { http, base: format!("https://{slot}:8008"), password: password.clone() })
    }

    /// The node itself.
    pub async fn local(&self) -> Result<Local> {
        self.get("patroni").await
    }

    /// Whether it accepts writes and holds the leader key: what HAProxy's check asks.
    pub async fn is_primary(&self) -> bool {
        let asked = self.http.request(reqwest::Method::OPTIONS, format!("{}/primary", self.base)).timeout(PROBE);
        asked.send().await.is_ok_and(|response| response.status() == reqwest::StatusCode::OK)
    }

    /// The cluster as this node sees it.
    pub async fn members(&self) -> Result<Vec<Member>> {
        #[derive(Deserialize)]
        struct Cluster {
            #[serde(default)]
            members: Vec<Member>,
        }
        Ok(self.get::<Cluster>("cluster").await?.members)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let sent = self.http.get(format!("{}/{path}", self.base)).send().await;
        let response = sent.map_err(|e| anyhow::anyhow!("Patroni: {}", crate::etcd::plain(&e)))?;
        let bytes = response.bytes().await.context("Patroni: reading the answer")?;
        serde_json::from_slice(&bytes).with_context(|| format!("Patroni: reading the answer of /{path}"))
    }

    /// Changes cluster-wide settings: `null` removes one.
    pub async fn patch_config(&self, patch: &serde_json::Value) -> Result<()> {
        let request = self.http.patch(format!("{}/config", self.base));
        let request = request.basic_auth("patroni", Some(self.password.expose())).json(patch);
        let sent = request.send().await;
        let response = sent.map_err(|e| anyhow::anyhow!("Patroni: {}", crate::etcd::plain(&e)))?;
        let status = response.status();
        anyhow::ensure!(status.is_success(), "Patroni refused to change its settings ({status})");
        Ok(())
    }

    /// Makes Patroni look at once instead of at the end of its `loop_wait`. A patch that changes nothing writes nothing to
    /// etcd, but wakes the loop (`do_PATCH_config` in Patroni's `api.py`).
    pub async fn wake(&self) -> Result<()> {
        self.patch_config(&serde_json::json!({"woken_by_firstboot": null})).await
    }

    /// Hands leadership from `leader` to whichever replica is best; returns what Patroni said once it is done.
    pub async fn switchover(&self, leader: &str, limit: Duration) -> Result<String> {
        let request = self
            .http
            .post(format!("{}/switchover", self.base))
            .basic_auth("patroni", Some(self.password.expose()))
            .timeout(limit)
            .json(&serde_json::json!({"leader": leader}));
        let sent = request.send().await;
        let response = sent.map_err(|e| anyhow::anyhow!("Patroni: {}", crate::etcd::plain(&e)))?;
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        anyhow::ensure!(status.is_success(), "Patroni refused ({status}): {}", text.trim());
        Ok(text.trim().to_owned())
    }
}
