//! What a node keeps of the cluster's secrets (`secrets.json`, 0600): a voter the whole founding bundle, any other node
//! the passwords its role needs. Asking for one that is not here is an error with a remedy, never an empty password.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::{Founding, Intermediate, Joiner, Passwords, Role, Secret};
use crate::problem::Problem;

/// Secrets of one node; a node that has not joined yet holds none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Version of the format.
    pub schema: u32,
    /// Root CA certificate, PEM.
    pub ca: String,
    /// Intermediate with its key: voters only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate: Option<Intermediate>,
    /// Passwords.
    pub passwords: Held,
    /// SCRAM verifiers of application roles: nodes that store data.
    #[serde(default)]
    pub roles: BTreeMap<String, String>,
    /// Who may join: voters only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub joiners: BTreeMap<String, Joiner>,
}

impl Secrets {
    /// Whether there is anything to work with: before, the node has to join.
    pub fn are_here(&self) -> bool {
        !self.ca.is_empty()
    }

    /// The intermediate that signs; only voters have it.
    pub fn signer(&self) -> Result<&Intermediate, Problem> {
        let missing = || Problem::new("only voters sign certificates, and this node has no vote", "secrets.json", "");
        self.intermediate.as_ref().ok_or_else(missing)
    }
}

impl From<Founding> for Secrets {
    fn from(founding: Founding) -> Self {
        let Founding { schema, ca, intermediate, passwords, roles, joiners } = founding;
        Self { schema, ca, intermediate: Some(intermediate), passwords: passwords.into(), roles, joiners }
    }
}

/// Name of a password of the cluster's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Password {
    /// PostgreSQL superuser `postgres`.
    Superuser,
    /// PostgreSQL role `replicator`.
    Replication,
    /// PostgreSQL role `rewind`.
    Rewind,
    /// Unsafe methods of Patroni's REST interface.
    PatroniRest,
    /// etcd user `root`.
    EtcdRoot,
    /// etcd user of the voters' agents.
    EtcdAgent,
    /// etcd user of Patroni.
    EtcdPatroni,
    /// etcd user of the proxies (read only).
    EtcdProxy,
    /// Encryption of the backup repository.
    Repository,
    /// etcd user of this one node, which has no vote.
    EtcdNode,
}

impl Password {
    /// What a node without a vote gets when it joins, besides a user of its own in etcd.
    pub fn of_joiners(role: Role) -> &'static [Self] {
        match role {
            Role::Node | Role::Database | Role::Replica | Role::Standby => &[
                Self::Superuser,
                Self::Replication,
                Self::Rewind,
                Self::PatroniRest,
                Self::EtcdPatroni,
                Self::Repository,
            ],
            Role::Backup => &[Self::Repository],
            // Proxies that share a virtual IP know each other by it.
            Role::Proxy => &[Self::EtcdProxy],
            Role::Etcd => &[],
        }
    }
}

/// The passwords a node holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Held(#[serde(serialize_with = "write")] BTreeMap<Password, Secret>);

impl Held {
    /// A password; an error names the one this node does not have.
    pub fn get(&self, name: Password) -> Result<&Secret, Problem> {
        let missing = || {
            let what = format!("missing secret: this node has no password `{name:?}`");
            Problem::new(
                what,
                "secrets.json",
                "its role does not need it, or it joined with an older image: join again",
            )
        };
        self.0.get(&name).ok_or_else(missing)
    }

    /// Whether a password is here.
    pub fn has(&self, name: Password) -> bool {
        self.0.contains_key(&name)
    }

    /// Only these of the passwords.
    #[must_use]
    pub fn only(&self, names: &[Password]) -> Self {
        let kept = self.0.iter().filter(|(name, _)| names.contains(name));
        Self(kept.map(|(name, secret)| (*name, secret.clone())).collect())
    }

    /// With one more.
    #[must_use]
    pub fn with(mut self, name: Password, secret: Secret) -> Self {
        self.0.insert(name, secret);
        self
    }
}

impl From<Passwords> for Held {
    fn from(passwords: Passwords) -> Self {
        let Passwords {
            superuser,
            replication,
            rewind,
            patroni_rest,
            etcd_root,
            etcd_agent,
            etcd_patroni,
            etcd_proxy,
            repository,
        } = passwords;
        Self(BTreeMap::from([
            (Password::Superuser, superuser),
            (Password::Replication, replication),
            (Password::Rewind, rewind),
            (Password::PatroniRest, patroni_rest),
            (Password::EtcdRoot, etcd_root),
            (Password::EtcdAgent, etcd_agent),
            (Password::EtcdPatroni, etcd_patroni),
            (Password::EtcdProxy, etcd_proxy),
            (Password::Repository, repository),
        ]))
    }
}

/// These fields are meant to carry secrets: the file is 0600, the answer goes over TLS to the node it is for.
fn write<S: Serializer>(passwords: &BTreeMap<Password, Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(passwords.iter().map(|(name, secret)| (name, secret.expose())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::NodeSpec;

    #[test]
    fn a_founding_bundle_is_kept_whole_and_a_joiners_share_is_small() {
        let founding = NodeSpec::from_text(crate::fixtures::SPEC, "x").expect("good").founding.expect("founding");
        let kept = Secrets::from(founding.clone());
        // Disks written before nodes could join hold the bundle itself.
        let text = serde_json::to_string(&founding).unwrap();
        assert_eq!(serde_json::from_str::<Secrets>(&text).unwrap(), kept);
        assert_eq!(serde_json::from_str::<Secrets>(&serde_json::to_string(&kept).unwrap()).unwrap(), kept);
        assert_eq!(kept.passwords.get(Password::EtcdRoot).unwrap().expose(), "secret-etcd-root");
        assert!(!format!("{kept:?}").contains("secret-"));

        let share = |role| kept.passwords.only(Password::of_joiners(role));
        assert_eq!(share(Role::Proxy).0.into_keys().collect::<Vec<_>>(), [Password::EtcdProxy]);
        let database = share(Role::Database);
        for name in [Password::EtcdRoot, Password::EtcdAgent] {
            let refused = database.get(name).unwrap_err();
            assert!(refused.what.contains("missing secret"), "{refused}");
        }
        assert!(!Secrets::default().are_here() && Secrets::default().signer().is_err());
    }
}
