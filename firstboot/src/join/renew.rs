//! Certificates of nodes without a vote are signed anew by a voter: `POST /v1/renew`, on both sides. The token is spent by
//! then; what counts is the certificate that the node still has, and that its slot is still bound to that key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::admit::{key, not_now};
use super::{Admission, Refused, Registry, SCHEMA, sha256};
use crate::layout::Layout;
use crate::pki::{self, Signer};
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

/// Certificates end with the voters' intermediate at the latest: the same end again would be asked for every hour.
fn check_gain(dir: &Path, renewed: &Renewed) -> Result<()> {
    let chain = renewed.certificates.get("agent").context("no certificate `agent`")?;
    let new = CertificateDer::from_pem_slice(chain.as_bytes()).context("reading the new certificate")?;
    let gained = pki::ends(&new)?.duration_since(pki::stored_ends(dir, "agent")?).unwrap_or_default();
    ensure!(
        gained >= Duration::from_secs(24 * 3600),
        "the voters' intermediate certificate ends as early as this node's: run `pgkiln cluster renew`, where the \
         cluster was defined"
    );
    Ok(())
}

/// Asks one voter after the other and stores what the first one signs.
pub async fn renew(layout: &Layout, spec: &NodeSpec, voters: &BTreeMap<String, SocketAddr>) -> Result<()> {
    let ip = spec.ip().context("the specification gives this node no address")?;
    let (dir, leaves) = (layout.pki(), pki::leaves(spec, ip));
    let keys = leaves.iter().map(|leaf| Ok((leaf.name.clone(), pki::public_key(&dir, &leaf.name)?)));
    let request = Renewal { schema: SCHEMA, slot: spec.slot.clone(), keys: keys.collect::<Result<_>>()? };
    let http = super::ask::http(pki::client(&dir, "agent", Some(spec.cluster.uuid))?, voters)?;
    let mut reasons = Vec::new();
    for (slot, address) in voters {
        match super::ask::one::<Renewed>(&http, &request, slot, address.port(), RENEW_PATH).await {
            Ok(Ok(renewed)) => {
                check_gain(&dir, &renewed)?;
                for leaf in &leaves {
                    let chain = renewed.certificates.get(&leaf.name);
                    let chain = chain.with_context(|| format!("{slot} signed no certificate `{}`", leaf.name))?;
                    pki::install(&dir, &leaf.name, chain)?;
                }
                return Ok(());
            }
            Ok(Err(problem)) => reasons.push(format!("{slot} refuses: {}; {}", problem.what, problem.remedy)),
            Err(error) => reasons.push(format!("{slot} ({address}): {error:#}")),
        }
    }
    bail!("no voter signs new certificates: {}", reasons.join("; "))
}
