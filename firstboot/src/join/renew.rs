//! Certificates of nodes without a vote are signed anew by a voter: `POST /v1/renew`, on both sides. The token is spent by
//! then; what counts is the certificate that the node still has, and that its slot is still bound to that key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::admit::{key, not_now};
use super::{Admission, Refused, Registry, SCHEMA, sha256};
use crate::layout::Layout;
use crate::pki::{self, Leaf, Signer};
use crate::problem::Problem;
use crate::spec::NodeSpec;

/// Where voters are asked.
pub const RENEW_PATH: &str = "/v1/renew";

/// What the node says; who it is its certificate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// Version of the format.
    pub schema: u32,
    /// Its place.
    pub slot: String,
    /// Public keys (SubjectPublicKeyInfo, PEM) by name of the certificate.
    pub keys: BTreeMap<String, String>,
}

/// What the voter gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewed {
    /// Version of the format.
    pub schema: u32,
    /// Certificates (leaf and intermediate, PEM) by name.
    pub certificates: BTreeMap<String, String>,
}

impl<R: Registry> Admission<R> {
    /// Signs the certificates of a node again; `asking` is the SHA-256 of the key it proved to hold.
    pub async fn renew(&self, request: &Renewal, asking: &str) -> Result<Renewed, Refused> {
        let slot = &request.slot;
        let no = |what: String, remedy: &str| Refused::No(Problem::new(what, RENEW_PATH, remedy));
        if request.schema != SCHEMA {
            let what = format!("the node speaks version {} of joining, this voter {SCHEMA}", request.schema);
            return Err(no(what, "use images that fit each other"));
        }
        let member = self.spec.members.get(slot).filter(|_| !self.spec.seeds.contains_key(slot));
        let Some(member) = member else {
            let what = format!("slot `{}` is not a node without a vote in the voters' seeds", slot.escape_debug());
            return Err(no(what, "write the voters' seeds again from the present cluster.toml"));
        };
        let bound = self.registry.bound(slot).await.map_err(not_now)?;
        if bound.is_none_or(|bound| bound.key_sha256 != asking) {
            let what = format!("slot `{slot}` is bound to another machine than the one that asks");
            return Err(no(what, "this machine was replaced: switch it off, or give it a slot of its own"));
        }
        let leaves = pki::leaves_of(&self.spec, slot, member.role, member.address);
        let keys = leaves.iter().map(|leaf| key(&request.keys, &leaf.name));
        let keys = keys.collect::<Result<Vec<_>, _>>().map_err(Refused::No)?;
        if keys.first().is_none_or(|key| sha256(key.bytes()) != asking) {
            let what = format!("the agent of slot `{slot}` asks with another key than it wants certified");
            return Err(no(what, "report this: an agent keeps its key"));
        }
        let intermediate = self.secrets.signer().map_err(Refused::No)?;
        let signer = Signer::new(&intermediate.cert, intermediate.key.expose()).map_err(not_now)?;
        let signed = leaves.iter().zip(&keys).map(|(leaf, key)| Ok((leaf.name.clone(), signer.sign(leaf, key)?)));
        let certificates = signed.collect::<Result<_>>().map_err(not_now)?;
        tracing::info!("certificates of {slot} signed anew");
        Ok(Renewed { schema: SCHEMA, certificates })
    }
}

/// When the first of these certificates ends. A kill may have left some of them renewed.
pub fn first_end(layout: &Layout, leaves: &[Leaf]) -> Result<SystemTime> {
    let ends = leaves.iter().map(|leaf| pki::stored_ends(&layout.pki(), &leaf.name)).collect::<Result<Vec<_>>>()?;
    ends.into_iter().min().context("this node has no certificates")
}

/// Stores what a voter signed. Certificates end with its intermediate at the latest: one that ends when the present one does
/// would be asked for every hour.
fn keep(layout: &Layout, leaves: &[Leaf], renewed: &Renewed) -> Result<()> {
    let present = first_end(layout, leaves)?;
    let chains = leaves.iter().map(|leaf| {
        let chain = renewed.certificates.get(&leaf.name);
        let chain = chain.with_context(|| format!("it signed no certificate `{}`", leaf.name))?;
        let gained = pki::ends_pem(chain)?.duration_since(present).unwrap_or_default();
        ensure!(
            gained >= Duration::from_secs(24 * 3600),
            "its intermediate certificate ends as early as this node's: run `pgkiln cluster renew`, where the cluster was \
             defined"
        );
        Ok((&leaf.name, chain))
    });
    // All or none: what is wrong with one is wrong with the answer.
    let chains = chains.collect::<Result<Vec<_>>>()?;
    chains.into_iter().try_for_each(|(name, chain)| pki::install(&layout.pki(), name, chain))
}

/// Asks one voter after the other until one signs certificates that last longer, and stores them.
pub async fn renew(layout: &Layout, spec: &NodeSpec, voters: &BTreeMap<String, SocketAddr>) -> Result<()> {
    let ip = spec.ip().context("the specification gives this node no address")?;
    let (dir, leaves) = (layout.pki(), pki::leaves(spec, ip));
    let keys = leaves.iter().map(|leaf| Ok((leaf.name.clone(), pki::public_key(&dir, &leaf.name)?)));
    let request = Renewal { schema: SCHEMA, slot: spec.slot.clone(), keys: keys.collect::<Result<_>>()? };
    let http = super::ask::http(pki::client(&dir, "agent", Some(spec.cluster.uuid))?, voters)?;
    let mut reasons = Vec::new();
    for (slot, address) in voters {
        match super::ask::one::<Renewed>(&http, &request, slot, address.port(), RENEW_PATH).await {
            Ok(Ok(renewed)) => match keep(layout, &leaves, &renewed) {
                Ok(()) => return Ok(()),
                Err(error) => reasons.push(format!("{slot}: {error:#}")),
            },
            Ok(Err(problem)) => reasons.push(format!("{slot} refuses: {}; {}", problem.what, problem.remedy)),
            Err(error) => reasons.push(format!("{slot} ({address}): {error:#}")),
        }
    }
    bail!("no voter signs new certificates: {}", reasons.join("; "))
}
