//! The voter's side of joining. What is decided here is decided from this voter's own specification and from etcd;
//! a request only proves who asks and brings public keys.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{Answer, Request, SCHEMA, sha256};
use crate::etcd::{Client, Credentials, Swap, node_user};
use crate::pki::{self, PublicKey, Signer};
use crate::problem::Problem;
use crate::register::{self, Keys};
use crate::spec::{Joiner, Member, NodeSpec, Password, Role, Secret, Secrets};

/// Why a node is not let in.
#[derive(Debug)]
pub enum Refused {
    /// Asking again changes nothing until somebody did what the remedy says.
    No(Problem),
    /// Asking again may help: etcd has no quorum, two requests met.
    NotNow(String),
}

/// `joined/<slot>`: the key a slot is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Version of the format.
    pub schema: u32,
    /// SHA-256 of the public key of the node's agent.
    pub key_sha256: String,
    /// Which issue of the slot's token let it in; a later issue replaces the node.
    pub issue: u32,
    /// When (RFC 3339, UTC).
    pub at: String,
}

/// What joining needs of etcd; a trait so that the rules can be tried without one.
pub trait Registry: Send + Sync {
    /// Binds the slot to a key if nobody has yet: what it is bound to now.
    fn bind(&self, slot: &str, wanted: &Bound) -> impl Future<Output = Result<Bound>> + Send;
    /// What the slot is bound to.
    fn bound(&self, slot: &str) -> impl Future<Output = Result<Option<Bound>>> + Send;
    /// Makes sure of the node's own user.
    fn user(&self, slot: &str, role: Role, password: &Secret) -> impl Future<Output = Result<()>> + Send;
}

/// etcd as a voter's agent sees it.
#[derive(Debug)]
pub struct Voter {
    /// Logged in as `agent`.
    pub client: std::sync::Arc<Client>,
    /// Names of keys.
    pub keys: Keys,
    /// Patroni's tree.
    pub patroni_prefix: String,
}

impl Registry for Voter {
    async fn bind(&self, slot: &str, wanted: &Bound) -> Result<Bound> {
        let (key, value) = (self.keys.joined(slot), serde_json::to_vec(wanted)?);
        let found = match self.client.create(&key, &value, None).await? {
            Swap::Done => return Ok(wanted.clone()),
            Swap::Lost(found) => found.context("the key vanished: try again")?,
        };
        let bound: Bound = found.json().context("reading who joined")?;
        if bound.issue >= wanted.issue {
            return Ok(bound);
        }
        match self.client.replace(&key, &value, None, found.mod_revision).await? {
            Swap::Done => Ok(wanted.clone()),
            Swap::Lost(_) => anyhow::bail!("two nodes ask for one slot at the same time: try again"),
        }
    }

    async fn bound(&self, slot: &str) -> Result<Option<Bound>> {
        let found = self.client.get(&self.keys.joined(slot)).await?;
        found.map(|found| found.json().context("reading who joined")).transpose()
    }

    async fn user(&self, slot: &str, role: Role, password: &Secret) -> Result<()> {
        let login = Credentials::new(&node_user(slot), password);
        if self.client.logs_in(&login).await? {
            return Ok(());
        }
        // Exactly what its agent writes; reading tells it where everything is.
        let mut writes = vec![self.keys.slot(slot), self.keys.node(slot), self.keys.lock("update")];
        if role == Role::Backup {
            writes.extend([self.keys.backup(), self.keys.stanza(), self.keys.lock("backup")]);
        }
        let reads = [self.keys.prefix(), self.patroni_prefix.clone()];
        self.client.ensure_node_user(&login, &reads, &writes).await
    }
}

/// Who lets nodes in, once etcd runs here.
pub type Desk<R = Voter> = OnceLock<Admission<R>>;

/// A voter that lets nodes in.
#[derive(Debug)]
pub struct Admission<R> {
    /// This voter's specification.
    pub spec: NodeSpec,
    /// Its secrets: intermediate, tokens' hashes, passwords.
    pub secrets: Secrets,
    /// etcd.
    pub registry: R,
}

impl<R: Registry> Admission<R> {
    /// Lets a node in, or says why not.
    pub async fn admit(&self, request: &Request) -> Result<Answer, Refused> {
        let (member, joiner) = self.check(request).map_err(Refused::No)?;
        let leaves = pki::leaves_of(&self.spec, &request.slot, member.role, member.address);
        let keys = leaves.iter().map(|leaf| key(&request.keys, &leaf.name));
        let keys = keys.collect::<Result<Vec<_>, _>>().map_err(Refused::No)?;
        let key_sha256 = keys.first().map(|key| sha256(key.bytes())).unwrap_or_default();
        let wanted = Bound { schema: 1, key_sha256, issue: joiner.issue, at: register::now() };
        let bound = self.registry.bind(&request.slot, &wanted).await.map_err(not_now)?;
        refuse_others(&request.slot, &wanted, &bound).map_err(Refused::No)?;

        let own = self.password(&request.slot, &wanted.key_sha256).map_err(not_now)?;
        self.registry.user(&request.slot, member.role, &own).await.map_err(not_now)?;
        let passwords = self.secrets.passwords.only(Password::of_joiners(member.role));
        let intermediate = self.secrets.signer().map_err(Refused::No)?;
        let signer = Signer::new(&intermediate.cert, intermediate.key.expose()).map_err(not_now)?;
        let signed = leaves.iter().zip(&keys).map(|(leaf, key)| Ok((leaf.name.clone(), signer.sign(leaf, key)?)));
        let certificates = signed.collect::<Result<BTreeMap<_, _>>>().map_err(not_now)?;
        tracing::info!(
            "{} ({}, {}) joins with key {}",
            request.slot,
            member.role.name(),
            member.address,
            wanted.key_sha256.get(..16).unwrap_or_default()
        );
        let roles = if member.role.stores_data() { self.secrets.roles.clone() } else { BTreeMap::new() };
        let ca = self.secrets.ca.clone();
        Ok(Answer { schema: SCHEMA, ca, certificates, passwords: passwords.with(Password::EtcdNode, own), roles })
    }

    /// Token first: who has none learns nothing about the cluster, not even which slots there are.
    fn check(&self, request: &Request) -> Result<(&Member, &Joiner), Problem> {
        if request.schema != SCHEMA {
            let what = format!("the joining node speaks version {} of joining, this voter {SCHEMA}", request.schema);
            return Err(Problem::new(what, PLACE, "use images that fit each other"));
        }
        let known = self.secrets.joiners.get(&request.slot);
        let given = sha256(request.token.expose().as_bytes());
        let expected = known.map(|joiner| joiner.token_sha256.to_ascii_lowercase()).unwrap_or_default();
        let joiner = known.filter(|_| equal(given.as_bytes(), expected.as_bytes())).ok_or_else(|| {
            let what = format!("the token is not the one of slot `{}`", request.slot.escape_debug());
            let remedy = "write the node's seed again (`pgkiln cluster seed --slot SLOT`); if its token was issued anew \
                          (`pgkiln cluster token`), the voters need their seeds written again, too, and a restart of \
                          firstboot.service";
            Problem::new(what, PLACE, remedy)
        })?;
        let member = self.spec.members.get(&request.slot).filter(|_| !self.spec.seeds.contains_key(&request.slot));
        let member = member.ok_or_else(|| {
            let what = format!("slot `{}` is not a node without a vote in the voters' seeds", request.slot);
            Problem::new(what, PLACE, "write the voters' seeds again from the present cluster.toml")
        })?;
        if (member.role, member.address) != (request.role, request.address) {
            let what = format!(
                "slot `{}` is role `{}` at {} for the voters, the joining node says role `{}` at {}",
                request.slot,
                member.role.name(),
                member.address,
                request.role.name(),
                request.address
            );
            return Err(Problem::new(what, PLACE, "write all seeds again from one cluster.toml"));
        }
        Ok((member, joiner))
    }

    /// The same for the same machine whenever and wherever it asks, and unknown to everyone without etcd's root.
    fn password(&self, slot: &str, key_sha256: &str) -> Result<Secret> {
        let root = self.secrets.passwords.get(Password::EtcdRoot)?;
        let mac = Hmac::<Sha256>::new_from_slice(root.expose().as_bytes()).context("deriving a password")?;
        let mac = mac.chain_update(format!("pgkiln node {} {slot} {key_sha256}", self.spec.cluster.uuid)).finalize();
        Ok(Secret::new(mac.into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

const PLACE: &str = "POST /v1/join";

/// The key that was sent for the certificate `name`.
pub(super) fn key(keys: &BTreeMap<String, String>, name: &str) -> Result<PublicKey, Problem> {
    let wrong = |what: String| Problem::new(what, PLACE, "use images that fit each other");
    let pem = keys.get(name);
    let pem = pem.ok_or_else(|| wrong(format!("the joining node sent no key for certificate `{name}`")))?;
    PublicKey::from_pem(pem).map_err(|error| wrong(format!("key for certificate `{name}`: {error:#}")))
}

fn refuse_others(slot: &str, wanted: &Bound, bound: &Bound) -> Result<(), Problem> {
    let remedy = format!(
        "a token lets in one machine. If this one is to take the slot instead (the other's disk is lost), issue a new \
         token: `pgkiln cluster token {slot}`, then write the seeds of this node and of the voters again; if not, two \
         machines have the same seed: give this one its own slot"
    );
    if bound.issue > wanted.issue {
        let what = format!("the token of slot `{slot}` is outdated: a later one was used at {}", bound.at);
        return Err(Problem::new(what, PLACE, remedy));
    }
    if bound.key_sha256 != wanted.key_sha256 {
        let what = format!("the token of slot `{slot}` was already used by another machine at {}", bound.at);
        return Err(Problem::new(what, PLACE, remedy));
    }
    Ok(())
}

pub(super) fn not_now(error: anyhow::Error) -> Refused {
    Refused::NotNow(format!("{error:#}"))
}

/// In the same time whatever differs.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
