//! Passwords and tokens of a cluster, as the operator's directory keeps them (`secrets.toml`, `tokens.toml`, 0600).
//!
//! Application roles reach the nodes as SCRAM verifiers only; their passwords stay here. A token proves once that a node
//! is meant to take a slot; what an autoscaled group shares is a key, and each token made from it says when it ends.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;

use anyhow::Context;
use firstboot::spec::{Joiner, Passwords, Secret};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::definition::Definition;

/// Length of a generated password: 32 characters of 62 carry 190 bits.
const PASSWORD_LENGTH: usize = 32;
/// First line of both files.
const NOTE: &str = "# Whoever reads this file can take over the cluster. Keep it out of version control.\n";
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// `secrets.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretsFile {
    /// Passwords of the cluster's own users.
    pub passwords: Passwords,
    /// Application roles.
    #[serde(default)]
    pub roles: BTreeMap<String, RoleSecret>,
}

/// Password of an application role, and what the nodes get of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSecret {
    /// What the application uses.
    #[serde(serialize_with = "Secret::write")]
    pub password: Secret,
    /// What PostgreSQL stores.
    pub verifier: String,
}

impl SecretsFile {
    /// New passwords for everything in `definition` that needs one.
    pub fn generate(definition: &Definition) -> anyhow::Result<Self> {
        let password = || password().map(Secret::new);
        let mut roles = BTreeMap::new();
        for role in definition.login_roles() {
            roles.insert(role.to_owned(), RoleSecret::generate()?);
        }
        Ok(Self {
            passwords: Passwords {
                superuser: password()?,
                replication: password()?,
                rewind: password()?,
                patroni_rest: password()?,
                etcd_root: password()?,
                etcd_agent: password()?,
                etcd_patroni: password()?,
                etcd_proxy: password()?,
                repository: password()?,
            },
            roles,
        })
    }

    /// `secrets.toml`.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(format!("{NOTE}{}", toml::to_string(self)?))
    }
}

impl RoleSecret {
    /// A new password.
    pub fn generate() -> anyhow::Result<Self> {
        let password = password()?;
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        Ok(Self { password: Secret::new(password), verifier })
    }
}

/// `tokens.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Key of group tokens, in hexadecimal.
    #[serde(serialize_with = "Secret::write")]
    pub group_key: Secret,
    /// Slot to its single-use token.
    pub slots: BTreeMap<String, SlotToken>,
    /// How often a slot's token was issued, where it was more than once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub issues: BTreeMap<String, u32>,
}

/// Token of one slot.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotToken(#[serde(serialize_with = "Secret::write")] pub Secret);

impl SlotToken {
    fn generate(slot: &str) -> anyhow::Result<Self> {
        Ok(Self(Secret::new(format!("{slot}.{}", password()?))))
    }
}

impl Tokens {
    /// New tokens for every slot of `definition`, and a new group key.
    pub fn generate(definition: &Definition) -> anyhow::Result<Self> {
        let mut slots = BTreeMap::new();
        for node in &definition.nodes {
            slots.insert(node.slot.clone(), SlotToken::generate(&node.slot)?);
        }
        Ok(Self { group_key: Secret::new(hex(&random::<32>()?)), slots, issues: BTreeMap::new() })
    }

    /// Another token for a slot, in place of the one it has; the first one of a slot that was added later.
    pub fn issue(&mut self, slot: &str) -> anyhow::Result<()> {
        if self.slots.insert(slot.to_owned(), SlotToken::generate(slot)?).is_some() {
            *self.issues.entry(slot.to_owned()).or_insert(1) += 1;
        }
        Ok(())
    }

    /// Number of the token of a slot that counts: how often it was issued.
    pub(super) fn issue_of(&self, slot: &str) -> u32 {
        self.issues.get(slot).copied().unwrap_or(1)
    }

    /// What voters know about a slot's token.
    pub fn joiner(&self, slot: &str) -> Option<Joiner> {
        let SlotToken(token) = self.slots.get(slot)?;
        let token_sha256 = hex(&Sha256::digest(token.expose().as_bytes()));
        Some(Joiner { token_sha256, issue: self.issue_of(slot) })
    }

    /// `tokens.toml`.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(format!("{NOTE}{}", toml::to_string(self)?))
    }

    /// A token for autoscaled replicas of cluster `uuid`, valid until `expires_at` (seconds since 1970):
    /// `group.<expires_at>.<HMAC-SHA-256 over both>`.
    pub fn group_token(&self, uuid: Uuid, expires_at: u64) -> anyhow::Result<Secret> {
        let mac =
            Hmac::<Sha256>::new_from_slice(self.group_key.expose().as_bytes()).context("keying the group token")?;
        let mac = mac.chain_update(format!("pgkiln group token {uuid} {expires_at}")).finalize();
        Ok(Secret::new(format!("group.{expires_at}.{}", hex(&mac.into_bytes()))))
    }
}

/// A password of letters and digits: fits connection strings, shells and YAML without quoting.
fn password() -> anyhow::Result<String> {
    let mut password = String::with_capacity(PASSWORD_LENGTH);
    while password.len() < PASSWORD_LENGTH {
        // Bytes from 248 on would make the first characters likelier than the last ones.
        let bytes = random::<PASSWORD_LENGTH>()?.into_iter().filter(|byte| *byte < 248);
        password.extend(bytes.map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])));
        password.truncate(PASSWORD_LENGTH);
    }
    Ok(password)
}

/// Bytes from the kernel.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    fs_err::File::open("/dev/urandom")?.read_exact(&mut bytes).context("reading random bytes")?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_long_plain_and_different() {
        let (a, b) = (password().unwrap(), password().unwrap());
        assert_eq!(a.len(), 32);
        assert!(a.bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_ne!(a, b);
    }

    #[test]
    fn a_group_token_depends_on_cluster_and_expiry() {
        let tokens =
            Tokens { group_key: Secret::new("00".repeat(32)), slots: BTreeMap::new(), issues: BTreeMap::new() };
        let token = |uuid, at| tokens.group_token(uuid, at).unwrap().expose().clone();
        let one = token(Uuid::nil(), 1_700_000_000);
        assert!(one.starts_with("group.1700000000.") && one.len() == 17 + 64, "{one}");
        assert_eq!(one, token(Uuid::nil(), 1_700_000_000));
        assert_ne!(one[17..], token(Uuid::nil(), 1_700_000_001)[17..]);
        assert_ne!(one, token(Uuid::max(), 1_700_000_000));
    }
}
