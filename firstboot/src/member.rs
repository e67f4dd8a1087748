//! This node as a member of its cluster: the agent's server, the slot's lease, the watch. Its etcd, if it has a vote: [`voter`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::alongside::Alongside;
use crate::apply::{After, Cluster};
use crate::backup::{Backups, Trouble};
use crate::birth::{Agreement, Desk};
use crate::durable;
use crate::etcd::{Client, Credentials, Endpoint};
use crate::facts::Facts;
use crate::fence::Fence;
use crate::form;
use crate::join;
use crate::patroni::Patroni;
use crate::pki::{self, Clients};
use crate::plan::Desired;
use crate::problem::Problem;
use crate::register::{self, Keys, LeaseCell, Slot, SlotHolder};
use crate::render;
use crate::render::etcd::InitialState;
use crate::renew::Renewal;
use crate::retry::{Failure, Policy, retry};
use crate::roll::Roll;
use crate::server;
use crate::services::Services;
use crate::spec::{Durability, NodeSpec, Password, Role, Secrets};
use crate::status::Phase;
use crate::step::Host;
use crate::stored;
use crate::tool;
use crate::unborn::Pgdata;
use crate::update::fits;
use crate::watch::Watch;

mod voter;

/// The agent's own port.
pub const PORT: u16 = 8443;
/// At the end: giving the slot back, if etcd still answers.
const FAREWELL: Duration = Duration::from_secs(2);

/// The running parts of the agent.
#[derive(Debug)]
pub struct Member {
    host: Host,
    desired: Desired,
    facts: Facts,
    desk: Arc<Desk>,
    admissions: Arc<join::Desk>,
    etcd: Option<Arc<Client>>,
    server: Option<JoinHandle<Result<()>>>,
    keeper: Option<JoinHandle<Result<()>>>,
    lease: Arc<LeaseCell>,
}

/// etcd's members, this node's own first.
pub fn endpoints(spec: &NodeSpec) -> Vec<Endpoint> {
    let mut endpoints: Vec<_> = spec.seeds.iter().map(|(slot, ip)| Endpoint::new(slot, *ip)).collect();
    endpoints.sort_by_key(|endpoint| endpoint.slot != spec.slot);
    endpoints
}

impl Member {
    /// Prepares; nothing runs yet.
    pub fn new(host: &Host, desired: &Desired) -> Self {
        Self {
            host: host.clone(),
            desired: desired.clone(),
            facts: Facts::gather(&host.layout),
            desk: Arc::default(),
            admissions: Arc::default(),
            etcd: None,
            server: None,
            keeper: None,
            lease: Arc::default(),
        }
    }

    fn spec(&self) -> &NodeSpec {
        self.desired.spec()
    }

    /// What ends a primary that Patroni no longer watches; a watchdog device does it better.
    fn fence(&self, client: &Arc<Client>, patroni: Option<&Patroni>) -> Result<Option<Fence>> {
        let Some(patroni) = patroni.filter(|_| !self.facts.watchdog) else { return Ok(None) };
        let spec = self.spec();
        Ok(Some(Fence {
            slot: spec.slot.clone(),
            scope: spec.cluster.name.clone(),
            pgdata: self.host.layout.pgdata(self.desired.image.postgresql_major()?),
            client: client.clone(),
            patroni: patroni.clone(),
            preset: render::preset::of(spec.postgres.rto),
            board: self.host.board.clone(),
        }))
    }

    fn keys(&self) -> Keys {
        Keys(self.spec().cluster.uuid)
    }

    async fn serve(&mut self) -> Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        let address = SocketAddr::new(self.desired.ip()?, PORT);
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        // Where nobody may join, nobody without a certificate gets past the handshake.
        let clients = match self.desired.secrets.joiners.is_empty() {
            true => Clients::Known,
            false => Clients::Joining,
        };
        let tls = pki::server(&self.host.layout.pki(), "agent", clients)?;
        let endpoints = server::Endpoints {
            cluster: self.spec().cluster.uuid,
            bundle: form::digest(&self.desired.secrets)?,
            desk: self.desk.clone(),
            admissions: self.admissions.clone(),
            board: self.host.board.clone(),
        };
        self.server = Some(tokio::spawn(server::serve(listener, tls, endpoints)));
        Ok(())
    }

    fn patroni_prefix(&self) -> String {
        format!("/service/{}/", self.spec().cluster.name)
    }

    /// A client of etcd with this node's own login.
    fn connect(&self) -> Result<Arc<Client>> {
        let tls = pki::client(&self.host.layout.pki(), "agent", None)?;
        let user = Credentials::of_agent(&self.spec().slot, &self.desired.secrets)?;
        Ok(Arc::new(Client::new(endpoints(self.spec()), tls, Some(user))?))
    }

    /// From now on nodes that have a token are let in here.
    fn open_admissions(&self, client: &Arc<Client>) {
        let registry = join::Voter { client: client.clone(), keys: self.keys(), patroni_prefix: self.patroni_prefix() };
        let (spec, secrets) = (self.spec().clone(), self.desired.secrets.clone());
        // Open already: the agent reached this point before.
        let _ = self.admissions.set(join::Admission { spec, secrets, registry });
    }

    /// What a power cut left of a founding or a copy; not while Patroni is at it.
    async fn put_unborn_aside(&self, client: &Client, path: &Path) -> Result<()> {
        let unit = self.desired.image.unit("patroni")?;
        let state = tool::systemctl(&["show", "--property=ActiveState", "--value", unit]).run().await?;
        if !["inactive", "failed"].contains(&state.trim()) {
            return Ok(());
        }
        let login = Credentials::new("patroni", self.desired.secrets.passwords.get(Password::EtcdPatroni)?);
        let etcd_cluster = self.any_status(client).await?.cluster_id();
        let pgdata = Pgdata { layout: &self.host.layout, path, prefix: &self.patroni_prefix(), etcd_cluster };
        if let Some(note) = pgdata.put_unborn_aside(&client.with_credentials(Some(login))).await? {
            tracing::warn!("{note}");
            self.host.board.note(note);
        }
        Ok(())
    }

    fn holder(&self) -> SlotHolder {
        SlotHolder { boot_id: self.facts.boot_id.clone(), machine: self.facts.machine.clone(), since: register::now() }
    }

    fn node(&self) -> Result<register::Node> {
        let image = &self.desired.image;
        Ok(register::Node {
            role: self.spec().role.name().to_owned(),
            address: self.desired.ip()?.to_string(),
            image: register::Image {
                name: image.name.clone(),
                version: image.version.clone(),
                root_hash: image.root_hash.clone(),
            },
            state: "running".to_owned(),
            since: register::now(),
            pgbackrest: self.spec().backup.as_ref().and_then(|_| image.upstream_of("pgbackrest").ok()),
            update: None,
            collations: if self.desired.runs("patroni") { fits::published(image) } else { None },
        })
    }

    /// This node's part when the whole cluster takes another version.
    fn roll(&self, client: &Arc<Client>) -> Result<Roll> {
        let spec = self.spec();
        Ok(Roll {
            layout: self.host.layout.clone(),
            board: self.host.board.clone(),
            keys: self.keys(),
            client: client.clone(),
            scope: spec.cluster.name.clone(),
            slot: spec.slot.clone(),
            version: self.desired.image.version.clone(),
            boot_id: self.facts.boot_id.clone(),
            tls: pki::client(&self.host.layout.pki(), "agent", Some(spec.cluster.uuid))?,
        })
    }

    fn client(&self) -> Result<Arc<Client>> {
        self.etcd.clone().context("etcd is not connected yet")
    }

    /// What Patroni must be told about a changed specification.
    fn patch(&self) -> Result<Option<serde_json::Value>> {
        match durable::read_json::<NodeSpec>(&self.host.layout.previous_spec())? {
            Some(before) => render::patroni::patch(&before, &self.desired, &self.facts),
            None => Ok(None),
        }
    }
}

/// What a person must act on ends the attempt, everything else may go away by itself: three seeds set up one etcd at
/// the same time, and a quorum comes and goes while nodes start.
fn transient(error: anyhow::Error) -> Failure {
    if error.is::<Problem>() { Failure::GiveUp(error) } else { Failure::Again(error) }
}

impl Cluster for Member {
    async fn join(&mut self) -> Result<()> {
        self.host.board.phase(Phase::Joining);
        let voters = self.spec().seeds.iter().map(|(slot, ip)| (slot.clone(), SocketAddr::new(*ip, PORT))).collect();
        let joined = join::ask(&self.host.layout, self.spec(), &voters, &self.host.board).await?;
        stored::keep(&self.host.layout, &self.desired.accepted, &joined.secrets, &self.facts)
    }

    async fn form(&mut self) -> Result<()> {
        self.host.board.phase(Phase::Waiting);
        let address = SocketAddr::new(self.desired.ip()?, PORT);
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let node = form::Node::new(self.spec())?;
        let (layout, accepted, facts) = (self.host.layout.clone(), self.desired.accepted.clone(), self.facts.clone());
        let keep = move |secrets: &Secrets| stored::keep(&layout, &accepted, secrets, &facts);
        form::wait(&self.host.layout, node, listener, &self.host.board, keep).await
    }

    async fn etcd(&mut self, unit: &str) -> Result<()> {
        // The plan has this step for voters only; founding is worth a second look.
        anyhow::ensure!(self.spec().is_voter(), "`{}` has no vote: it starts no etcd", self.spec().slot);
        self.serve().await?;
        self.host.board.phase(Phase::Joining);
        let client = self.connect()?;
        let mut lock = None;
        match self.agree().await? {
            Agreement::Found(_) => {
                self.write_environment(InitialState::New, &self.spec().seeds)?;
                tokio::time::sleep(self.stagger()).await;
            }
            Agreement::Born => self.write_environment(InitialState::Existing, &self.spec().seeds)?,
            Agreement::Replace(problem) => lock = Some(self.enlist(&client, problem).await?),
        }
        tool::systemctl(&["start", "--no-block", unit]).run().await.context("starting etcd")?;
        self.settle(&client, lock).await?;
        self.open_admissions(&client);
        self.etcd = Some(client);
        Ok(())
    }

    async fn slot(&mut self) -> Result<()> {
        if self.etcd.is_none() {
            // No vote, hence no etcd here.
            self.serve().await?;
            self.etcd = Some(self.connect()?);
        }
        let (client, keys, board) = (self.client()?, self.keys(), self.host.board.clone());
        let slot = self.spec().slot.clone();
        let holder = self.holder();
        let waiting = |error: &anyhow::Error, since: Duration| {
            board.waiting(format!("the lease of slot {slot} for {} s: {error:#}", since.as_secs()));
        };
        let taken = retry(Policy::PROMPT, waiting, async || {
            Slot::take(&client, keys, &slot, holder.clone(), &board).await.map_err(transient)
        })
        .await?;
        board.waited();
        if self.desired.runs("patroni") {
            let known = register::pg_system_id(&client, keys).await?;
            let pgdata = self.host.layout.pgdata(self.desired.image.postgresql_major()?);
            let place = pgdata.display().to_string();
            register::check_system_id(register::system_id(&pgdata), known.as_deref(), &place)?;
            self.put_unborn_aside(&client, &pgdata).await?;
            if fits::catalog(&pgdata).is_none() {
                let (scope, image) = (&self.spec().cluster.name, &self.desired.image);
                register::check_collations(&client, keys, scope, image, known.is_some()).await?;
            }
        }
        client.put(&keys.node(&slot), &serde_json::to_vec(&self.node()?)?, None).await?;
        self.lease.set(taken.lease());
        let lease = self.lease.clone();
        self.keeper = Some(tokio::spawn(async move { taken.keep(&client, keys, &board, &lease).await }));
        Ok(())
    }

    async fn watch(&mut self) -> Result<After> {
        let (client, spec) = (self.client()?, self.spec());
        let tls = pki::client(&self.host.layout.pki(), "agent", None)?;
        let patroni = match self.desired.runs("patroni") {
            true => {
                let password = self.desired.secrets.passwords.get(Password::PatroniRest)?;
                Some(Patroni::new(&spec.slot, self.desired.ip()?, tls, password)?)
            }
            false => None,
        };
        let trouble = Trouble::default();
        let backups = Backups {
            layout: self.host.layout.clone(),
            board: self.host.board.clone(),
            keys: self.keys(),
            client: client.clone(),
            desired: self.desired.clone(),
            patroni: patroni.clone(),
            queue_max_mib: crate::backup::queue_max_mib(&self.facts),
            trouble: trouble.clone(),
        };
        let watch = Watch {
            layout: self.host.layout.clone(),
            image: self.desired.image.clone(),
            board: self.host.board.clone(),
            keys: self.keys(),
            cluster: spec.cluster.name.clone(),
            slot: spec.slot.clone(),
            client: client.clone(),
            patroni,
            says_streaming: !self.desired.runs("patroni") || self.desired.image.patroni_says_streaming()?,
            // A node that stores data alone has nobody to wait for.
            zero_loss: spec.postgres.durability == Durability::ZeroLoss
                && spec.members_that(Role::stores_data).len() > 1,
            voter: spec.is_voter(),
            haproxy: self.desired.runs("haproxy"),
            repository: trouble.clone(),
            services: Services::new(&self.host.layout, &self.desired),
            patch: self.patch()?,
        };
        let alongside = Alongside::new(&self.host.layout, &self.desired, &client, watch.patroni.as_ref())?;
        let roll = self.roll(&client)?;
        let renewal = Renewal::new(&self.host, &self.desired)?;
        let fence = self.fence(&client, watch.patroni.as_ref())?;
        let fence = async {
            match &fence {
                Some(fence) => fence.run().await,
                None => std::future::pending().await,
            }
        };
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let keeper = self.keeper.take().context("the slot is not held")?;
        let ended = tokio::select! {
            _ = stop.recv() => Ok(After::End),
            () = renewal.run() => Ok(After::StartAnew),
            result = watch.run() => result.map(|()| After::End),
            () = backups.run() => Ok(After::End),
            () = roll.run() => Ok(After::End),
            never = alongside.run() => match never {},
            never = fence => match never {},
            result = keeper => result.context("keeping the slot's lease").flatten().map(|()| After::End),
        };
        if ended.is_err() && self.desired.runs("patroni") {
            // Somebody else lives in this slot: two PostgreSQL servers under one name must not run.
            let patroni = self.desired.image.unit("patroni")?;
            tool::systemctl(&["stop", patroni]).run().await.context("stopping Patroni")?;
        }
        // Given back, a restart gets the slot at once.
        let _ = tokio::time::timeout(FAREWELL, client.revoke(self.lease.get())).await;
        ended
    }
}
