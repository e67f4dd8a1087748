//! How a node without a vote becomes part of the cluster: `POST /v1/join` on the voters' port 8443.
//!
//! The node knows the SHA-256 of the root CA and has a token; it makes its keys, checks that it really talks to a voter
//! of its cluster ([`pin`]), and asks ([`ask`]). The voter checks token, slot, role and address, binds the slot to the
//! node's key in etcd, and signs certificates whose names it takes from its own specification ([`admit`]). A token is
//! good for one key: the same machine may ask again, killed anywhere, and gets the same answer; no other one does.
//!
//! Later the node asks again, with its certificate instead of a token, to have its certificates signed anew ([`renew`]).
//!
//! Founding is no concern of such a node: it never starts etcd.

mod admit;
mod ask;
mod pin;
mod renew;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use admit::{Admission, Bound, Desk, Refused, Registry, Voter};
pub use ask::{Joined, ask};
pub use renew::{RENEW_PATH, Renewal, Renewed, first_end, renew};

use crate::spec::{Held, Role, Secret};

/// Where voters are asked.
pub const PATH: &str = "/v1/join";
/// Version of request and answer.
const SCHEMA: u32 = 1;
/// Largest request: five keys of 200 bytes, and room.
pub const REQUEST_BYTES: usize = 16 * 1024;

/// What the joining node says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Version of the format.
    pub schema: u32,
    /// Its place.
    pub slot: String,
    /// What it is told to do.
    pub role: Role,
    /// Its address.
    pub address: IpAddr,
    /// The token of its seed.
    #[serde(serialize_with = "Secret::write")]
    pub token: Secret,
    /// Public keys (SubjectPublicKeyInfo, PEM) by name of the certificate.
    pub keys: BTreeMap<String, String>,
}

/// What the voter gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Version of the format.
    pub schema: u32,
    /// Root CA certificate, PEM.
    pub ca: String,
    /// Certificates (leaf and intermediate, PEM) by name.
    pub certificates: BTreeMap<String, String>,
    /// The passwords of the role.
    pub passwords: Held,
    /// SCRAM verifiers of application roles, for nodes that store data.
    #[serde(default)]
    pub roles: BTreeMap<String, String>,
}

/// SHA-256 in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
