//! This node as a member of its cluster: the agent's server, etcd's birth, the slot's lease, the watch.

use anyhow::Result;

use crate::apply::Cluster;
use crate::plan::Desired;
use crate::step::Host;

/// The running parts of the agent.
#[derive(Debug)]
pub struct Member {
    _host: Host,
    _desired: Desired,
}

impl Member {
    /// Prepares; nothing runs yet.
    pub fn new(host: &Host, desired: &Desired) -> Self {
        Self { _host: host.clone(), _desired: desired.clone() }
    }
}

impl Cluster for Member {
    async fn etcd(&mut self, _unit: &str) -> Result<()> {
        Ok(())
    }

    async fn slot(&mut self) -> Result<()> {
        Ok(())
    }

    async fn watch(&mut self) -> Result<()> {
        Ok(())
    }
}
