//! Founding with real peers: polls them, applies the rule, stores before showing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::decide::{Decision, Own, Seen, decide};
use super::record::{Born, Disks, Record, Stage};
use crate::layout::Layout;
use crate::problem::Problem;
use crate::status::Board;

/// A peer is asked this often at first …
const FAST: Duration = Duration::from_millis(100);
/// … and this often after a while; what a peer tells us by asking is acted upon at once anyway.
const SLOW: Duration = Duration::from_secs(1);
/// One question, connection included.
const LIMIT: Duration = Duration::from_secs(2);
/// After this long the reader is told what to do about a voter that never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What this node shows on `GET /v1/intent`, and what peers told about themselves by asking.
#[derive(Debug)]
pub struct Desk {
    shown: watch::Sender<Option<Record>>,
    heard: Mutex<BTreeMap<String, Stage>>,
    knocks: watch::Sender<u64>,
}

impl Default for Desk {
    fn default() -> Self {
        Self { shown: watch::Sender::new(None), heard: Mutex::default(), knocks: watch::Sender::new(0) }
    }
}

impl Desk {
    /// Shows a record; it must be stored already.
    pub fn show(&self, record: Record) {
        self.shown.send_replace(Some(record));
    }

    /// What is shown.
    pub fn shown(&self) -> Option<Record> {
        self.shown.borrow().clone()
    }

    /// A peer asked, and said how far it is itself: news make us ask it back without waiting for the next turn.
    /// Only a hint to hurry: decisions rest on records read from the peer.
    pub fn heard(&self, slot: &str, stage: Stage) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded by the voters: strangers with a valid certificate must not fill memory.
        let known = self.shown.borrow().as_ref().is_some_and(|r| r.voters.seeds.contains_key(slot));
        if known && heard.insert(slot.to_owned(), stage) != Some(stage) {
            self.knocks.send_modify(|count| *count += 1);
        }
    }
}

/// How etcd may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agreement {
    /// Found the cluster: `new`.
    Found(Disks),
    /// The cluster exists and this disk belongs to it: `existing`.
    Born,
    /// The cluster exists, this disk holds no member of it: only a replacement may start. What to say until then.
    Replace(Problem),
}

/// Runs the rule until it says how etcd may start, or that nothing may start (an error with its remedy).
///
/// `tls` must be [`crate::pki::client`] with `agents_of`: a peer's certificate then names its slot and an agent of
/// this cluster. `port` is 8443 except in tests.
pub async fn agree(
    layout: &Layout,
    mut record: Record,
    pg_data: bool,
    tls: rustls::ClientConfig,
    peers: BTreeMap<String, SocketAddr>,
    desk: &std::sync::Arc<Desk>,
    board: &Board,
) -> Result<Agreement> {
    let born = Born::load(layout)?.is_some();
    let etcd_data = layout.etcd_data().join("member").exists();
    if born {
        desk.show(Record { stage: Stage::Born, ..record.clone() });
    } else {
        record.store(layout)?;
        desk.show(record.clone());
    }
    let (send, mut receive) = mpsc::channel(16);
    let mut pollers = JoinSet::new();
    let mut seen = BTreeMap::new();
    let start = Instant::now();
    loop {
        let decision = decide(Own { record: &record, born, etcd_data, pg_data }, &seen);
        tracing::debug!(?decision, "founding");
        match decision {
            Decision::Born => return Ok(Agreement::Born),
            Decision::StartNew => {
                board.waited();
                return Ok(Agreement::Found(record.disks.unwrap_or_default()));
            }
            Decision::Replace(problem) => return Ok(Agreement::Replace(problem)),
            Decision::Refuse(problem) => return Err(problem.into()),
            Decision::Accept(disks) => {
                record = Record { stage: Stage::Accepted, disks: Some(disks), ..record };
                record.store(layout)?;
                desk.show(record.clone());
                continue;
            }
            Decision::Commit => {
                record.stage = Stage::Committed;
                record.store(layout)?;
                desk.show(record.clone());
                continue;
            }
            Decision::Wait(why) => board.waiting(describe(&why, start.elapsed())),
        }
        if pollers.is_empty() {
            for (slot, address) in &peers {
                let poller = Poller::new(&record.slot, slot, *address, tls.clone(), desk.clone())?;
                pollers.spawn(poller.run(send.clone()));
            }
        }
        let (slot, answer) = receive.recv().await.context("asking peers ended")?;
        seen.insert(slot, answer);
    }
}

fn describe(why: &[String], waited: Duration) -> String {
    let mut text = format!("the other founding voters: {}", why.join("; "));
    if waited > PATIENCE {
        text.push_str(
            ". A cluster is founded by all its voters together: repair or start the missing one, or, if it is gone for \
             good, make a new cluster without it (`pgkiln cluster new`, new UUID) and seed all nodes from it",
        );
    }
    text
}

/// Asks one peer again and again.
struct Poller {
    http: reqwest::Client,
    url: String,
    own_slot: String,
    slot: String,
    desk: std::sync::Arc<Desk>,
}

impl Poller {
    fn new(
        own_slot: &str,
        slot: &str,
        address: SocketAddr,
        tls: rustls::ClientConfig,
        desk: std::sync::Arc<Desk>,
    ) -> Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(LIMIT)
            .http1_only()
            .tls_backend_preconfigured(tls)
            .resolve(slot, address)
            .build()?;
        let url = format!("https://{slot}:{}/v1/intent", address.port());
        Ok(Self { http, url, own_slot: own_slot.to_owned(), slot: slot.to_owned(), desk })
    }

    async fn run(self, send: mpsc::Sender<(String, Seen)>) {
        let (mut shown, mut knocks) = (self.desk.shown.subscribe(), self.desk.knocks.subscribe());
        let mut pause = FAST;
        let mut last = None;
        loop {
            shown.mark_unchanged();
            knocks.mark_unchanged();
            let answer = self.ask().await;
            if last.as_ref() != Some(&answer) {
                last = Some(answer.clone());
                pause = FAST;
            }
            if send.send((self.slot.clone(), answer)).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 5 / 4).min(SLOW),
                _ = shown.changed() => pause = FAST,
                _ = knocks.changed() => pause = FAST,
            }
        }
    }

    async fn ask(&self) -> Seen {
        let stage = self.desk.shown().map_or(Stage::Intent, |r| r.stage);
        let stage = serde_json::to_value(stage).ok().and_then(|s| s.as_str().map(str::to_owned)).unwrap_or_default();
        match self.fetch(&stage).await {
            Ok(record) if record.slot != self.slot => Seen::Silent(format!("answers as `{}`", record.slot)),
            Ok(record) if record.schema != 1 => Seen::Silent("runs another version of the agent".to_owned()),
            Ok(record) => Seen::Shows(Box::new(record)),
            Err(why) => Seen::Silent(why),
        }
    }

    async fn fetch(&self, stage: &str) -> Result<Record, String> {
        let url = format!("{}?slot={}&stage={stage}", self.url, self.own_slot);
        let plain = |e: reqwest::Error| crate::etcd::plain(&e);
        let response = self.http.get(url).send().await.map_err(plain)?;
        if !response.status().is_success() {
            return Err(format!("not ready yet ({})", response.status()));
        }
        let bytes = response.bytes().await.map_err(plain)?;
        serde_json::from_slice(&bytes).map_err(|e| format!("answers with something unexpected: {e}"))
    }
}
