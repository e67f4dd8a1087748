//! How a founding voter whose metadata holds no secret gets the founding bundle: it waits on port 8443 until `pgkiln
//! cluster form` brings it, once.
//!
//! Nothing secret crosses before both sides hold. The operator's side has a certificate that the cluster's root itself
//! signed ([`operator`]; the node knows the root's hash, and no node has the root's key). The node has nothing yet but the
//! single-use token of its seed: over the TLS session it shows that it knows it, bound to that session ([`Binding`]), so
//! that nobody in between can pass it on. Only then the bundle is sent, with the same kind of proof from the other side.
//!
//! ```text
//! GET  /v1/form    waiting: {stage, proof}; later: {stage: formed|born, bundle_sha256} from the agent's own server
//! POST /v1/form    {proof, founding}, kept durably before it is answered; once
//! ```
//!
//! A token is good for one machine: its key is made before anybody hears of it and kept, and the operator's side records
//! which key it was before it sends anything.

mod operator;
mod wait;

use anyhow::{Context, Result};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use operator::{ClientVerifier, is_operator, operator};
pub use wait::{Node, wait};

use crate::spec::{Founding, Secret, Secrets};

/// Where.
pub const PATH: &str = "/v1/form";
/// Version of question and answer.
pub const SCHEMA: u32 = 1;
/// Largest bundle: verifiers of thousands of roles, and room.
pub const REQUEST_BYTES: usize = 1 << 20;

/// How far a voter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It has no bundle yet.
    Waiting,
    /// It has one, and founds with the others.
    Formed,
    /// The cluster is born: nothing is taken any more.
    Born,
}

/// What a voter says about itself to the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// Version of the format.
    pub schema: u32,
    /// How far it is.
    pub stage: Stage,
    /// Of one that waits: that it knows its token, in this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// Of one that has a bundle: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_sha256: Option<String>,
}

/// What is brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Version of the format.
    pub schema: u32,
    /// That the sender knows the token, in this session and for this bundle.
    pub proof: String,
    /// The founding bundle.
    pub founding: Founding,
}

/// Identifies a bundle without saying what is in it.
pub fn digest(secrets: &Secrets) -> Result<String> {
    Ok(hex(&Sha256::digest(serde_json::to_vec(secrets).context("digesting the founding bundle")?)))
}

/// What a proof is bound to: this TLS session, this cluster, this slot. A proof is worth nothing anywhere else.
#[derive(Debug, Clone)]
pub struct Binding {
    session: [u8; 32],
    cluster: Uuid,
    slot: String,
}

impl Binding {
    /// Of a finished handshake, from either side (exported keying material, RFC 8446 section 7.5).
    pub fn of<Data>(connection: &rustls::ConnectionCommon<Data>, cluster: Uuid, slot: &str) -> Result<Self> {
        let label = b"EXPORTER-pgkiln-form";
        let session = connection.export_keying_material([0; 32], label, None).context("binding to the session")?;
        Ok(Self { session, cluster, slot: slot.to_owned() })
    }

    /// The node's proof.
    pub fn node(&self, token: &Secret) -> Result<String> {
        Ok(hex(&self.mac(token, "node", "")?.finalize().into_bytes()))
    }

    /// Whether it is the node's proof; takes the same time whatever differs.
    pub fn is_node(&self, token: &Secret, proof: &str) -> Result<bool> {
        Ok(self.mac(token, "node", "")?.verify_slice(&bytes(proof)).is_ok())
    }

    /// The operator's proof for a bundle.
    pub fn operator(&self, token: &Secret, bundle_sha256: &str) -> Result<String> {
        Ok(hex(&self.mac(token, "operator", bundle_sha256)?.finalize().into_bytes()))
    }

    /// Whether it is the operator's proof; takes the same time whatever differs.
    pub fn is_operator(&self, token: &Secret, bundle_sha256: &str, proof: &str) -> Result<bool> {
        Ok(self.mac(token, "operator", bundle_sha256)?.verify_slice(&bytes(proof)).is_ok())
    }

    fn mac(&self, token: &Secret, side: &str, what: &str) -> Result<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(token.expose().as_bytes()).context("keying a proof")?;
        let text = format!("pgkiln form {side} {} {} {what} ", self.cluster, self.slot);
        Ok(mac.chain_update(text).chain_update(self.session))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs =
        (0..hex.len() / 2).map(|n| hex.get(2 * n..2 * n + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()));
    pairs.collect::<Option<_>>().unwrap_or_default()
}
