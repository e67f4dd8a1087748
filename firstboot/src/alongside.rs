//! What runs beside the watch for as long as the agent does: HAProxy in step with the cluster, and the wins that a
//! specification can switch off. None of it can end the agent: what fails here is tried again, and degrades to what the
//! components do by themselves.

use std::sync::Arc;

use anyhow::Result;

use crate::etcd::Client;
use crate::etcd_leader::Mover;
use crate::layout::Layout;
use crate::patroni::Patroni;
use crate::plan::Desired;
use crate::proxy::Proxy;
use crate::proxy::registry::Source;
use crate::register::Keys;
use crate::{pki, postmaster};

/// The parts this node runs.
#[derive(Debug)]
pub struct Alongside {
    proxy: Option<Proxy>,
    postmaster: Option<(std::path::PathBuf, Patroni)>,
    mover: Option<Mover>,
}

impl Alongside {
    /// Of a node as `desired`; `client` may be logged in as agent or as proxy, `patroni` is the one here.
    pub fn new(layout: &Layout, desired: &Desired, client: &Arc<Client>, patroni: Option<&Patroni>) -> Result<Self> {
        let spec = desired.spec();
        let (keys, client, tweaks) = (Keys(spec.cluster.uuid), client.clone(), spec.tweaks);
        let proxy = if desired.runs("haproxy") {
            let source = Source { client: client.clone(), keys, scope: spec.cluster.name.clone() };
            Some(Proxy::new(layout, spec, source, pki::client(&layout.pki(), "agent", None)?))
        } else {
            None
        };
        let postmaster = match patroni.filter(|_| tweaks.wake_patroni) {
            Some(patroni) => Some((layout.pgdata(desired.image.postgresql_major()?), patroni.clone())),
            None => None,
        };
        let votes = desired.runs("etcd") && tweaks.move_etcd_leader;
        let mover = patroni.filter(|_| votes).map(|patroni| Mover {
            slot: spec.slot.clone(),
            client,
            keys,
            patroni: patroni.clone(),
        });
        Ok(Self { proxy, postmaster, mover })
    }

    /// Runs until dropped.
    pub async fn run(&self) -> std::convert::Infallible {
        let proxy = async {
            if let Some(proxy) = &self.proxy {
                proxy.run().await;
            }
        };
        let postmaster = async {
            if let Some((pgdata, patroni)) = &self.postmaster {
                postmaster::watch(pgdata, patroni).await;
            }
        };
        let mover = async {
            if let Some(mover) = &self.mover {
                mover.run().await;
            }
        };
        tokio::join!(proxy, postmaster, mover);
        std::future::pending().await
    }
}
