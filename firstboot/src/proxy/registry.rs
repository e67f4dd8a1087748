//! The cluster as etcd tells it: nodes, held slots, Patroni's leader. Whoever listens sees the last state only.
//!
//! Nothing read is nothing changed: without quorum, with a lost watch or a compacted revision the last state stands, and
//! everything is read again from whichever member answers. Works for the agent's user and for the proxies', who may
//! only read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::Sender;

use super::servers::Registry;
use crate::etcd::{Client, Error, KeyValue};
use crate::register::Keys;

/// Between two readings although the watches are silent: a connection can be dead without saying so.
const AGAIN: Duration = Duration::from_secs(10);
/// Pauses after a failure: first, longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// What is known of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// Nodes and leases.
    pub registry: Registry,
    /// Slot under Patroni's leader key; `None` while nobody leads.
    pub leader: Option<String>,
}

/// Where the view comes from.
#[derive(Debug, Clone)]
pub struct Source {
    /// etcd, as a user that may read both trees.
    pub client: Arc<Client>,
    /// The agents' keys.
    pub keys: Keys,
    /// Name of the cluster: Patroni's scope.
    pub scope: String,
}

impl Source {
    fn leader_key(&self) -> String {
        format!("/service/{}/leader", self.scope)
    }

    async fn read(&self) -> Result<View, Error> {
        let (nodes, slots) = (self.keys.node(""), self.keys.slot(""));
        let mut view = View::default();
        let name =
            |kv: &KeyValue, prefix: &str| String::from_utf8_lossy(&kv.key).strip_prefix(prefix).map(str::to_owned);
        for kv in self.client.list(&nodes).await? {
            // An entry of a later version with other fields is no deleted entry: the reading fails as a whole.
            let garbled = |e: serde_json::Error| Error::Garbled {
                endpoint: "registry".to_owned(),
                call: "kv/range".to_owned(),
                why: format!("{}: {e}", String::from_utf8_lossy(&kv.key)),
            };
            if let Some(slot) = name(&kv, &nodes) {
                view.registry.nodes.insert(slot, kv.json().map_err(garbled)?);
            }
        }
        view.registry.held = self.client.list(&slots).await?.iter().filter_map(|kv| name(kv, &slots)).collect();
        view.leader = self.client.get(&self.leader_key()).await?.and_then(leader);
        Ok(view)
    }

    /// Keeps `view` as it is in etcd, for ever.
    pub async fn follow(&self, view: &Sender<Option<View>>) {
        let (mut pause, mut said) = (PAUSES[0], false);
        loop {
            let before = tokio::time::Instant::now();
            let mut answered = false;
            if let Err(error) = self.follow_once(view, &mut answered).await
                && (answered || !said)
            {
                tracing::info!("HAProxy's servers stay as they are until etcd answers: {error}");
                said = true;
            }
            said &= !answered;
            pause = if before.elapsed() > AGAIN { PAUSES[0] } else { (pause * 2).min(PAUSES[1]) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Until a watch ends, or turns out to have missed something.
    async fn follow_once(&self, view: &Sender<Option<View>>, answered: &mut bool) -> Result<(), Error> {
        // Watches first, so that nothing falls between them and the reading.
        let mut registry = self.client.watch(&self.keys.prefix()).await?;
        let mut leaders = self.client.watch(&self.leader_key()).await?;
        publish(view, self.read().await?);
        *answered = true;
        loop {
            tokio::select! {
                events = registry.next() => {
                    let (nodes, slots) = (self.keys.node(""), self.keys.slot(""));
                    let ours = |key: &[u8]| key.starts_with(nodes.as_bytes()) || key.starts_with(slots.as_bytes());
                    if events?.iter().any(|event| ours(&event.kv.key)) {
                        publish(view, self.read().await?);
                    }
                }
                // The event itself says who leads: no question more on the way to HAProxy.
                events = leaders.next() => {
                    let key = self.leader_key();
                    if let Some(event) = events?.into_iter().rfind(|event| event.kv.key == key.as_bytes()) {
                        let now = if event.is_delete() { None } else { leader(event.kv) };
                        let known = view.borrow().clone().unwrap_or_default();
                        publish(view, View { leader: now, ..known });
                    }
                }
                () = tokio::time::sleep(AGAIN) => {
                    let now = self.read().await?;
                    if publish(view, now) {
                        tracing::info!("a watch missed a change; watching anew");
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn leader(kv: KeyValue) -> Option<String> {
    String::from_utf8(kv.value).ok().filter(|name| !name.is_empty())
}

/// Whether that was news.
fn publish(view: &Sender<Option<View>>, now: View) -> bool {
    view.send_if_modified(|known| {
        let news = known.as_ref() != Some(&now);
        *known = Some(now);
        news
    })
}
