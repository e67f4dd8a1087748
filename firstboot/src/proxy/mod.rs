//! HAProxy in step with the cluster: its servers follow the registry, role changes are pushed the moment Patroni's leader
//! key says so, and the health checks confirm or correct both.
//!
//! Three parts that know nothing of each other's insides: [`registry`] reads and watches etcd, [`servers`] decides
//! (pure), [`socket`] talks to HAProxy. Works on every host with HAProxy, with the agent's credentials or the proxies'.

pub mod registry;
pub mod servers;
pub mod socket;
pub mod state;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::watch::{self, Receiver};

use crate::durable;
use crate::layout::Layout;
use crate::patroni::Patroni;
use crate::render::{haproxy, preset};
use crate::spec::{NodeSpec, Role, Secret};
use crate::step::File;
use registry::{Source, View};
use servers::Servers;
use socket::Socket;

/// Between looks at HAProxy without news: it may have been restarted, and a server that is to go may have stopped.
const LOOK: Duration = Duration::from_secs(5);
/// Between questions to a new leader whether it accepts writes yet.
const ASK: Duration = Duration::from_millis(100);
/// A promotion takes less; after that the questions become rare: a standby cluster's leader never is a primary.
const SOON: Duration = Duration::from_secs(15);

/// `servers.json`: what was written last, for a boot without etcd.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    schema: u32,
    servers: Servers,
}

/// The servers written last; none if there is no list, or none that can be read.
pub fn kept(layout: &Layout) -> Servers {
    match durable::read_json::<Kept>(&layout.servers()) {
        Ok(kept) => kept.filter(|kept| kept.schema == 1).map(|kept| kept.servers).unwrap_or_default(),
        Err(error) => {
            tracing::warn!("{error:#}; HAProxy begins with the nodes of the specification");
            Servers::new()
        }
    }
}

/// The servers to begin with: those written last, or what the specification names.
pub fn first_servers(kept: &Servers, spec: &NodeSpec) -> Servers {
    if kept.is_empty() { servers::unregistered(&spec.members_that(Role::stores_data)) } else { kept.clone() }
}

/// Keeps one HAProxy in step.
#[derive(Debug)]
pub struct Proxy {
    layout: Layout,
    spec: NodeSpec,
    source: Source,
    socket: Socket,
    tls: rustls::ClientConfig,
}

impl Proxy {
    /// HAProxy of this node. `tls` verifies Patroni's certificate.
    pub fn new(layout: &Layout, spec: &NodeSpec, source: Source, tls: rustls::ClientConfig) -> Self {
        let ca = layout.service_pki("haproxy").join("ca.pem");
        let socket = Socket::new(layout.haproxy_socket(), preset::of(spec.postgres.rto), &ca);
        Self { layout: layout.clone(), spec: spec.clone(), source, socket, tls }
    }

    /// Runs until dropped.
    pub async fn run(&self) {
        let (sender, receiver) = watch::channel(None);
        let pushes = self.spec.tweaks.push_roles.then(|| self.push(receiver.clone()));
        let push = async {
            match pushes {
                Some(pushes) => pushes.await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.source.follow(&sender), self.keep(receiver), push);
    }

    /// Servers as the registry says.
    async fn keep(&self, mut view: Receiver<Option<View>>) {
        let mut known = first_servers(&kept(&self.layout), &self.spec);
        let mut said = String::new();
        loop {
            let now = view.borrow_and_update().clone();
            if let Some(now) = now {
                match self.reconcile(&mut known, &now).await {
                    Ok(()) => said.clear(),
                    Err(error) => {
                        let error = format!("{error:#}");
                        if error != said {
                            tracing::warn!("HAProxy's servers: {error}");
                            said = error;
                        }
                    }
                }
            }
            tokio::select! {
                // The sender lives as long as this future.
                _ = view.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn reconcile(&self, known: &mut Servers, view: &View) -> Result<()> {
        let running = self.socket.running().await?;
        let servers = servers::desired(known, &running, &view.registry);
        if servers != *known {
            // The list first, then the file, then HAProxy: whatever happens in between, a reload or a boot has the new set.
            let kept = Kept { schema: 1, servers: servers.clone() };
            durable::write_json(&self.layout.servers(), &kept, 0o600)?;
            self.write_config(&servers)?;
            known.clone_from(&servers);
        }
        for command in servers::diff(&running, &servers, &view.registry) {
            self.socket.apply(&command).await?;
            tracing::info!("HAProxy: {command}");
        }
        Ok(())
    }

    fn write_config(&self, servers: &Servers) -> Result<()> {
        let written = files(&self.spec, servers).iter().try_for_each(|file| file.write(&self.layout));
        written.context("writing HAProxy's configuration")
    }

    /// Tells HAProxy who leads, as soon as that node accepts writes.
    async fn push(&self, mut view: Receiver<Option<View>>) {
        let mut pushed: Option<String> = None;
        loop {
            let now = view.borrow_and_update().clone().unwrap_or_default();
            // Nobody leads: the same node may lead again, and HAProxy may have seen it fail meanwhile.
            pushed = pushed.filter(|_| now.leader.is_some());
            let leader = now.leader.clone().filter(|leader| pushed.as_ref() != Some(leader));
            let Some((leader, address)) =
                leader.and_then(|leader| Some((leader.clone(), self.address(&leader, &now)?)))
            else {
                // The sender lives as long as this future.
                let _ = view.changed().await;
                continue;
            };
            tokio::select! {
                _ = view.changed() => {}
                told = self.tell(&leader, address) => match told {
                    Ok(changed) => {
                        tracing::info!("HAProxy: {leader} leads ({})", changed.join(", "));
                        pushed = Some(leader);
                    }
                    Err(error) => {
                        tracing::info!("HAProxy was not told that {leader} leads: {error:#}");
                        tokio::time::sleep(ASK).await;
                    }
                }
            }
        }
    }

    /// The key names the leader before it is promoted, and a watch may be late: only a node that says itself that it is
    /// the primary is one.
    async fn tell(&self, leader: &str, address: IpAddr) -> Result<Vec<String>> {
        // Reading needs no password.
        let patroni = Patroni::new(leader, address, self.tls.clone(), &Secret::new(String::new()))?;
        let start = tokio::time::Instant::now();
        while !patroni.is_primary().await {
            tokio::time::sleep(if start.elapsed() < SOON { ASK } else { LOOK }).await;
        }
        self.socket.lead(leader).await
    }

    fn address(&self, slot: &str, view: &View) -> Option<IpAddr> {
        let registered = view.registry.nodes.get(slot).and_then(|node| node.address.parse().ok());
        registered.or_else(|| self.spec.members_that(Role::stores_data).get(slot).copied())
    }
}

/// The configuration, and the states a starting HAProxy begins with.
pub fn files(spec: &NodeSpec, servers: &Servers) -> [File; 2] {
    let owned =
        |name: &str, text: String| File::owned(format!("/run/pgkiln/haproxy/{name}"), text, 0o640, ("root", "haproxy"));
    [owned("start.state", haproxy::states(servers)), owned("haproxy.cfg", haproxy::config(spec, servers))]
}

/// Before a reload: the states the new HAProxy continues with.
pub async fn save_states(layout: &Layout) -> Result<()> {
    let path = layout.at(haproxy::STATE_FILE);
    let states = socket::ask(&layout.haproxy_socket(), "show servers state").await?;
    durable::write_volatile(&path, format!("{states}\n").as_bytes(), 0o600, None)
}

#[cfg(test)]
mod tests;
