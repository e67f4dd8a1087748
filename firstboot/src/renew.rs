//! Certificates renew by themselves while the node runs: a database node may stay up for longer than they live.
//!
//! A voter signs its own, everyone else asks a voter. Then each service reads its new files in its own way, none of them
//! stops, and the agent starts itself anew, for its own are in use by every connection it has.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::pki::Signer;
use crate::plan::Desired;
use crate::step::{self, Host};
use crate::{durable, join, member, pki, postmaster, tool};

/// Between looks; certificates are due thirty days before their end.
const LOOK: Duration = Duration::from_secs(3600);
/// When it is time to renew the intermediate, which takes an operator.
const WARN_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);
const REMEDY: &str = "run `pgkiln cluster renew`, where the cluster was defined";
/// The note about it in the status.
const TOPIC: &str = "certificates";

/// This node's certificates and who reads them.
#[derive(Debug)]
pub struct Renewal {
    host: Host,
    desired: Desired,
    /// PostgreSQL's data directory, if it runs here.
    pgdata: Option<PathBuf>,
}

impl Renewal {
    /// Of a node as `desired`.
    pub fn new(host: &Host, desired: &Desired) -> Result<Self> {
        let pgdata = match desired.runs("patroni") {
            true => Some(host.layout.pgdata(desired.image.postgresql_major()?)),
            false => None,
        };
        Ok(Self { host: host.clone(), desired: desired.clone(), pgdata })
    }

    /// Returns once certificates were renewed and every service but the agent has them.
    pub async fn run(&self) {
        loop {
            match self.look().await {
                Ok(true) => return,
                Ok(false) => self.host.board.note_on(TOPIC, None),
                Err(error) => {
                    let note = format!("certificates cannot be renewed yet, tried again every hour: {error:#}");
                    tracing::warn!("{note}");
                    self.host.board.note_on(TOPIC, Some(note));
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Result<bool> {
        let (layout, spec) = (&self.host.layout, self.desired.spec());
        let due = match spec.is_voter() {
            true => self.is_voter_due()?,
            false => pki::is_due(self.first_end()?),
        };
        // Written before anything else: whoever is killed in between goes on from here.
        let unfinished = layout.run().join("pki/renewing");
        if !due && !unfinished.exists() {
            return Ok(false);
        }
        durable::write_volatile(&unfinished, b"", 0o600, None)?;
        if due && !spec.is_voter() {
            let voters = spec.seeds.iter().map(|(slot, ip)| (slot.clone(), SocketAddr::new(*ip, member::PORT)));
            join::renew(layout, spec, &voters.collect()).await?;
        }
        step::renew_certificates(&self.host, spec, &self.desired.secrets)?;
        // Starting anew for what would be due again at once would never end.
        let still = if spec.is_voter() { self.is_voter_due()? } else { pki::is_due(self.first_end()?) };
        anyhow::ensure!(!still, "the new certificates are due already; is this machine's clock right?");
        tracing::info!("certificates renewed");
        self.tell().await?;
        durable::remove(&unfinished)?;
        Ok(true)
    }

    /// When the first of this node's certificates ends.
    fn first_end(&self) -> Result<SystemTime> {
        join::first_end(&self.host.layout, &pki::leaves(self.desired.spec(), self.desired.ip()?))
    }

    /// A voter issues for itself what its intermediate allows; a new intermediate came with a new seed.
    fn is_voter_due(&self) -> Result<bool> {
        let secrets = &self.desired.secrets;
        let intermediate = secrets.signer()?;
        let signer = Signer::new(&intermediate.cert, intermediate.key.expose())?;
        let leaves = pki::leaves(self.desired.spec(), self.desired.ip()?);
        if leaves.iter().any(|leaf| !pki::is_kept(&self.host.layout.pki(), leaf, &signer)) {
            return Ok(true);
        }
        let warn = signer.ends() < SystemTime::now() + WARN_BEFORE;
        let note = warn.then(|| {
            let days = signer.ends().duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400;
            format!(
                "the cluster's intermediate certificate ends in {days} days, and every certificate with it: {REMEDY}"
            )
        });
        self.host.board.note_on("intermediate certificate", note);
        Ok(false)
    }

    /// etcd reads its files at every handshake; the others must be told.
    async fn tell(&self) -> Result<()> {
        for service in ["patroni", "haproxy", "pgbackrest"] {
            if self.desired.runs(service) {
                let unit = self.desired.image.unit(service)?;
                tool::systemctl(&["reload", unit]).run().await.with_context(|| format!("reloading {unit}"))?;
            }
        }
        // Patroni tells PostgreSQL of changed settings only, and none has changed.
        self.pgdata.as_deref().map_or(Ok(()), postmaster::reload)
    }
}
