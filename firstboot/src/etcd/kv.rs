//! Keys: read, write, compare-and-swap, watch.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Error};
use super::lease::LeaseId;
use super::wire::{self, Done, encode};

/// One key as etcd stores it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct KeyValue {
    /// The key.
    #[serde(deserialize_with = "wire::bytes", default)]
    pub key: Vec<u8>,
    /// Its value.
    #[serde(deserialize_with = "wire::bytes", default)]
    pub value: Vec<u8>,
    /// Revision of its last change: what [`Client::replace`] compares.
    #[serde(deserialize_with = "wire::number", default)]
    pub mod_revision: i64,
    /// The lease it lives on; 0 if none.
    #[serde(deserialize_with = "wire::number", default)]
    pub lease: LeaseId,
}

impl KeyValue {
    /// The value as JSON of type `T`.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.value)
    }
}

/// Outcome of a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The comparison held: written, or deleted.
    Done,
    /// It did not: what is there instead (`None`: nothing).
    Lost(Option<KeyValue>),
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct Txn {
    #[serde(default)]
    succeeded: bool,
    #[serde(default)]
    responses: Vec<TxnResponse>,
}

#[derive(Deserialize)]
struct TxnResponse {
    response_range: Option<Range>,
}

impl Client {
    /// One key, read linearizably: an answer proves quorum.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let range: Range = self.call("kv/range", &json!({"key": encode(key)})).await?;
        Ok(range.kvs.into_iter().next())
    }

    /// All keys under `prefix`.
    pub async fn list(&self, prefix: &str) -> Result<Vec<KeyValue>, Error> {
        let body = json!({"key": encode(prefix), "range_end": encode(wire::prefix_end(prefix))});
        let range: Range = self.call("kv/range", &body).await?;
        Ok(range.kvs)
    }

    /// Writes a key, on a lease if one is given.
    pub async fn put(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<(), Error> {
        self.call::<Done>("kv/put", &put(key, value, lease)).await.map(drop)
    }

    /// Deletes a key; a missing one is fine.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        self.call::<Done>("kv/deleterange", &json!({"key": encode(key)})).await.map(drop)
    }

    /// Writes a key if it does not exist. A call that was repeated may find its own value: callers compare it.
    pub async fn create(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<Swap, Error> {
        self.replace(key, value, lease, 0).await
    }

    /// Writes a key if its last change is still `revision` (0: if it does not exist).
    pub async fn replace(&self, key: &str, value: &[u8], lease: Option<LeaseId>, revision: i64) -> Result<Swap, Error> {
        self.compare(key, revision, json!({"request_put": put(key, value, lease)})).await
    }

    /// Deletes a key if its last change is still `revision`.
    pub async fn delete_at(&self, key: &str, revision: i64) -> Result<Swap, Error> {
        self.compare(key, revision, json!({"request_delete_range": {"key": encode(key)}})).await
    }

    async fn compare(&self, key: &str, revision: i64, then: Value) -> Result<Swap, Error> {
        let body = json!({
            "compare": [{"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string()}],
            "success": [then],
            "failure": [{"request_range": {"key": encode(key)}}],
        });
        let txn: Txn = self.call("kv/txn", &body).await?;
        if txn.succeeded {
            return Ok(Swap::Done);
        }
        let found = txn.responses.into_iter().find_map(|r| r.response_range).and_then(|r| r.kvs.into_iter().next());
        Ok(Swap::Lost(found))
    }

    /// Watches all keys under `prefix` from now on.
    pub async fn watch(&self, prefix: &str) -> Result<Watcher, Error> {
        let create = json!({"key": encode(prefix), "range_end": encode(wire::prefix_end(prefix))});
        let response = self.stream("watch", &json!({"create_request": create})).await?;
        let mut watcher = Watcher { response, buffer: Vec::new() };
        // The first message only says that the watch exists: everything after it is seen.
        watcher.message().await?;
        Ok(watcher)
    }
}

fn put(key: &str, value: &[u8], lease: Option<LeaseId>) -> Value {
    json!({"key": encode(key), "value": encode(value), "lease": lease.unwrap_or(0).to_string()})
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// `PUT` (left out by the gateway) or `DELETE`.
    #[serde(rename = "type", default)]
    kind: String,
    /// The key after the change; without value if deleted.
    pub kv: KeyValue,
}

impl Event {
    /// Whether the key is gone.
    pub fn is_delete(&self) -> bool {
        self.kind == "DELETE"
    }
}

/// A running watch. Any error ends it: read the keys again and start another one.
#[derive(Debug)]
pub struct Watcher {
    response: reqwest::Response,
    buffer: Vec<u8>,
}

#[derive(Deserialize)]
struct Envelope {
    result: Option<Notice>,
}

#[derive(Deserialize)]
struct Notice {
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    events: Vec<Event>,
}

impl Watcher {
    /// The next changes; waits until there are some.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            let events = self.message().await?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    /// One message is one line.
    async fn message(&mut self) -> Result<Vec<Event>, Error> {
        let ended = |why: String| Error::Unavailable { endpoint: "watch".to_owned(), why, ambiguous: false };
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return match serde_json::from_slice::<Envelope>(&line) {
                    Ok(Envelope { result: Some(notice) }) if !notice.canceled => Ok(notice.events),
                    _ => Err(ended(format!("ended: {}", String::from_utf8_lossy(&line).trim()))),
                };
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Err(ended("ended".to_owned())),
                Err(e) => return Err(ended(super::plain(&e))),
            }
        }
    }
}
