//! Leases: keys that vanish when nobody keeps them alive.

use serde::Deserialize;
use serde_json::json;

use super::client::{Client, Error, refusal};
use super::wire::{self, Done};

/// Identity of a lease.
pub type LeaseId = i64;

#[derive(Deserialize)]
struct Granted {
    #[serde(rename = "ID", deserialize_with = "wire::number")]
    id: LeaseId,
}

#[derive(Deserialize)]
struct KeptAlive {
    result: Ttl,
}

#[derive(Deserialize)]
struct Ttl {
    #[serde(rename = "TTL", deserialize_with = "wire::number", default)]
    ttl: i64,
}

impl Client {
    /// A new lease of `seconds`.
    pub async fn grant(&self, seconds: u32) -> Result<LeaseId, Error> {
        let granted: Granted = self.call("lease/grant", &json!({"TTL": seconds.to_string()})).await?;
        Ok(granted.id)
    }

    /// Renews a lease; `false`: it does not exist any more.
    pub async fn keep_alive(&self, lease: LeaseId) -> Result<bool, Error> {
        let kept: KeptAlive = self.call("lease/keepalive", &json!({"ID": lease.to_string()})).await?;
        Ok(kept.result.ttl > 0)
    }

    /// Seconds a lease has left; `None` if it is gone.
    pub async fn time_to_live(&self, lease: LeaseId) -> Result<Option<i64>, Error> {
        let left: Ttl = self.call("lease/timetolive", &json!({"ID": lease.to_string()})).await?;
        // Only a missing lease has a negative time; zero is left out by the gateway.
        Ok((left.ttl >= 0).then_some(left.ttl))
    }

    /// Ends a lease and deletes its keys; a missing one is fine.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        match self.call::<Done>("lease/revoke", &json!({"ID": lease.to_string()})).await {
            Err(error) if error.refused(refusal::NO_LEASE) => Ok(()),
            done => done.map(drop),
        }
    }
}
