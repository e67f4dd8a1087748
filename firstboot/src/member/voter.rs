//! This node as a voter: how its etcd is born, takes the place of a dead member, and gets its vote.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use super::{Member, PORT, transient};
use crate::birth::{self, Agreement, Born, Record, Replacement, Stage, Voters};
use crate::etcd::{self, Accounts, Client, LeaseId};
use crate::pki;
use crate::problem::Problem;
use crate::register::Slot;
use crate::render::etcd::{InitialState, environment};
use crate::render::{self, Input};
use crate::retry::{Policy, retry};
use crate::spec::{NodeSpec, Password};
use crate::step::File;

/// What etcd needs from its start until it answers peers, and a little.
const STAGGER: Duration = Duration::from_millis(150);

fn peer_url(ip: IpAddr) -> String {
    format!("https://{}:2380", render::host(ip))
}

impl Member {
    /// Which way etcd may start.
    pub(super) async fn agree(&self) -> Result<Agreement> {
        let (layout, spec) = (&self.host.layout, self.spec());
        let voters = Voters { cluster: spec.cluster.uuid, seeds: spec.seeds.clone() };
        let record = match Record::load(layout)? {
            Some(record) => record,
            None => Record::new(&spec.slot, voters),
        };
        let tls = pki::client(&layout.pki(), "agent", Some(spec.cluster.uuid))?;
        let peers = spec.seeds.iter().filter(|(slot, _)| **slot != spec.slot);
        let peers = peers.map(|(slot, ip)| (slot.clone(), SocketAddr::new(*ip, PORT))).collect();
        birth::agree(layout, record, self.facts.data.pg_control, tls, peers, &self.desk, &self.host.board).await
    }

    pub(super) fn write_environment(&self, state: InitialState, members: &BTreeMap<String, IpAddr>) -> Result<()> {
        let spec = NodeSpec { seeds: members.clone(), ..self.spec().clone() };
        let text = environment(&Input { spec: &spec, ..self.desired.input()? }, state);
        File::owned("/run/pgkiln/etcd/etcd.env", text, 0o640, ("root", "etcd")).write(&self.host.layout)
    }

    pub(super) fn accounts(&self) -> Result<Accounts> {
        let password = |name| self.desired.secrets.passwords.get(name).cloned();
        Ok(Accounts {
            root: password(Password::EtcdRoot)?,
            agent: password(Password::EtcdAgent)?,
            patroni: password(Password::EtcdPatroni)?,
            proxy: password(Password::EtcdProxy)?,
            patroni_prefix: self.patroni_prefix(),
            agent_prefix: self.keys().prefix(),
        })
    }

    /// Lets the running cluster expect this node's etcd in place of its dead member, and returns the lock under which
    /// that happens. Waits for the others' quorum; `problem` is what the reader sees until then.
    pub(super) async fn enlist(&self, client: &Client, problem: Problem) -> Result<LeaseId> {
        let (spec, board) = (self.spec(), &self.host.board);
        board.update(|status| status.error = Some(problem.clone()));
        tracing::warn!("{problem}");
        let url = peer_url(self.desired.ip()?);
        let waiting = |error: &anyhow::Error, since: Duration| {
            let why = format!("a majority of the other voters for {} s ({error:#})", since.as_secs());
            board.waiting(format!("{why}: {}; {}", problem.what, problem.remedy));
        };
        let (lock, members) = retry(Policy { cap: Duration::from_secs(2), ..Policy::PROMPT }, waiting, async || {
            // Held by a living clone: refused. Held by the dead predecessor: waited for.
            Slot::take(client, self.keys(), &spec.slot, self.holder(), board).await.map_err(transient)?;
            let replacement = self.replacement(client, &url);
            let lock = replacement.lock().await.map_err(transient)?;
            match replacement.enlist().await {
                Ok(members) => Ok((lock, members)),
                Err(error) => {
                    client.revoke(lock).await?;
                    Err(transient(error))
                }
            }
        })
        .await?;
        let seeds = spec.seeds.iter().filter(|(_, ip)| members.iter().any(|m| m.peer_urls.contains(&peer_url(**ip))));
        let members = seeds.map(|(slot, ip)| (slot.clone(), *ip)).collect();
        // Before etcd's first start: whatever happens now, founding is out of the question on this disk.
        let cluster = self.any_status(client).await?.cluster_id();
        Born::store(&self.host.layout, spec.cluster.uuid, &spec.slot, cluster)?;
        self.write_environment(InitialState::Existing, &members)?;
        Ok(lock)
    }

    fn replacement<'a>(&'a self, client: &'a Client, peer_url: &'a str) -> Replacement<'a> {
        let lock_key = self.keys().membership();
        Replacement { client, slot: &self.spec().slot, peer_url, lock_key, board: &self.host.board }
    }

    pub(super) async fn any_status(&self, client: &Client) -> Result<etcd::MemberStatus> {
        for endpoint in client.endpoints() {
            if let Ok(status) = client.status(&endpoint.slot).await {
                return Ok(status);
            }
        }
        anyhow::bail!("no member of etcd answers")
    }

    /// When this seed starts etcd after the founders agreed. A founding etcd first asks every peer whether it knows it
    /// already: one that is not there refuses at once, one that starts in the same moment keeps it waiting for 1 s.
    pub(super) fn stagger(&self) -> Duration {
        let rank = self.spec().seeds.keys().position(|slot| *slot == self.spec().slot).unwrap_or(0);
        STAGGER * u32::try_from(rank).unwrap_or(0)
    }

    /// Waits for quorum, makes sure of accounts, authentication and this member's vote, and remembers that the cluster
    /// is born.
    pub(super) async fn settle(&self, client: &Client, lock: Option<LeaseId>) -> Result<()> {
        let (spec, board, accounts) = (self.spec(), &self.host.board, self.accounts()?);
        let unit = self.desired.image.unit("etcd")?;
        let waiting = |error: &anyhow::Error, since: Duration| {
            let since = since.as_secs();
            board.waiting(match board.broken().filter(|broken| broken.place == unit) {
                // Nobody answers here, which says nothing about the others.
                Some(_) => format!("{unit} to start on this node for {since} s"),
                None => format!("etcd's quorum for {since} s: {error:#}"),
            });
        };
        let status = retry(Policy::PROMPT, waiting, async || {
            client.ensure_accounts(&spec.slot, &accounts).await.map_err(transient)?;
            Ok(client.status(&spec.slot).await?)
        })
        .await?;
        // The accounts went through etcd's log: it has served.
        Born::store(&self.host.layout, spec.cluster.uuid, &spec.slot, status.cluster_id())?;
        if let Some(record) = self.desk.shown() {
            self.desk.show(Record { stage: Stage::Born, ..record });
        }
        if status.learner {
            let url = peer_url(self.desired.ip()?);
            let waiting = |error: &anyhow::Error, _| board.waiting(format!("etcd here to get its vote: {error:#}"));
            retry(Policy::PROMPT, waiting, async || {
                let replacement = self.replacement(client, &url);
                let lock = match lock {
                    Some(lock) => lock,
                    None => replacement.lock().await.map_err(transient)?,
                };
                replacement.promote(lock).await.map_err(transient)
            })
            .await?;
            tracing::info!("etcd here has caught up and votes");
        }
        if let Some(lock) = lock {
            client.revoke(lock).await?;
        }
        self.write_environment(InitialState::Existing, &spec.seeds)?;
        board.update(|status| status.error = None);
        board.waited();
        Ok(())
    }
}
