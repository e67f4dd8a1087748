//! Users, roles and the switch that turns authentication on.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;

use super::client::{Client, Credentials, Error, refusal};
use super::wire::{self, Done, encode};
use crate::spec::Secret;

/// What a role may do under one prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
}

/// The users a cluster is born with. `root` may do anything; so may `agent`, which changes the membership and runs on
/// voters only; `patroni` writes its own scope; `proxy` reads both trees.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// Password of `root`.
    pub root: Secret,
    /// Password of `agent`.
    pub agent: Secret,
    /// Password of `patroni`.
    pub patroni: Secret,
    /// Password of `proxy`.
    pub proxy: Secret,
    /// Patroni's tree, with a slash at the end.
    pub patroni_prefix: String,
    /// The agents' tree, with a slash at the end.
    pub agent_prefix: String,
}

/// Name of the user of a node without a vote; no slot has a dot.
pub fn node_user(slot: &str) -> String {
    format!("node.{slot}")
}

/// How long a seed leaves the work to the one that leads etcd.
const PATIENCE: Duration = Duration::from_secs(2);

impl Client {
    /// Whether authentication is on: logging in is refused in a way of its own while it is off.
    pub async fn auth_is_on(&self, credentials: &Credentials) -> Result<bool, Error> {
        let body = json!({"name": credentials.user, "password": credentials.password.expose()});
        match self.with_credentials(None).call::<Done>("auth/authenticate", &body).await {
            Ok(_) => Ok(true),
            Err(error) if error.refused(refusal::AUTH_OFF) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a user with this password exists.
    pub async fn logs_in(&self, credentials: &Credentials) -> Result<bool, Error> {
        match self.auth_is_on(credentials).await {
            Err(error) if error.refused(refusal::WRONG_PASSWORD) => Ok(false),
            answer => answer,
        }
    }

    /// The user of one node without a vote: `reads` are prefixes, `writes` single keys. Any number of voters may do
    /// this at the same time and be killed anywhere.
    pub async fn ensure_node_user(
        &self,
        login: &Credentials,
        reads: &[String],
        writes: &[String],
    ) -> anyhow::Result<()> {
        let name = login.user.as_str();
        let done = async {
            self.add_role(name).await?;
            for prefix in reads {
                self.grant_prefix(name, prefix, Permission::Read).await?;
            }
            for key in writes {
                self.grant_key(name, key).await?;
            }
            self.add_user(name, &login.password).await?;
            self.grant_role(name, name).await?;
            // An earlier machine in this slot had another one.
            let body = json!({"name": name, "password": login.password.expose()});
            self.call::<Done>("auth/user/changepw", &body).await.map(drop)
        };
        done.await.with_context(|| format!("making etcd's user `{name}`"))
    }

    async fn grant_key(&self, role: &str, key: &str) -> Result<(), Error> {
        let perm = json!({"permType": "READWRITE", "key": encode(key)});
        self.call::<Done>("auth/role/grant", &json!({"name": role, "perm": perm})).await.map(drop)
    }

    async fn add_user(&self, name: &str, password: &Secret) -> Result<(), Error> {
        let body = json!({"name": name, "password": password.expose()});
        exists(self.call::<Done>("auth/user/add", &body).await, refusal::USER_EXISTS)
    }

    async fn add_role(&self, name: &str) -> Result<(), Error> {
        exists(self.call::<Done>("auth/role/add", &json!({"name": name})).await, refusal::ROLE_EXISTS)
    }

    async fn grant_role(&self, user: &str, role: &str) -> Result<(), Error> {
        self.call::<Done>("auth/user/grant", &json!({"user": user, "role": role})).await.map(drop)
    }

    async fn grant_prefix(&self, role: &str, prefix: &str, permission: Permission) -> Result<(), Error> {
        let permission = match permission {
            Permission::Read => "READ",
            Permission::ReadWrite => "READWRITE",
        };
        let range = json!({
            "permType": permission, "key": encode(prefix), "range_end": encode(wire::prefix_end(prefix)),
        });
        self.call::<Done>("auth/role/grant", &json!({"name": role, "perm": range})).await.map(drop)
    }

    /// Users, roles and authentication as a cluster must have them. Any number of seeds may do this at the same time
    /// and be killed anywhere: every part is idempotent, and authentication comes last.
    ///
    /// The seed that leads etcd goes first, the others only watch for a while: three at once would invalidate each
    /// other's tokens over and over.
    pub async fn ensure_accounts(&self, slot: &str, accounts: &Accounts) -> anyhow::Result<()> {
        let root = Credentials::new("root", &accounts.root);
        let start = Instant::now();
        loop {
            match self.auth_is_on(&root).await {
                Ok(true) => return self.check_accounts(accounts).await,
                Ok(false) => {}
                Err(error) => return Err(error).context("asking whether etcd's authentication is on"),
            }
            let leads = self.status(slot).await.is_ok_and(|s| s.is_leader());
            if leads || start.elapsed() > PATIENCE {
                match self.create_accounts(accounts).await {
                    Ok(()) => return Ok(()),
                    // Another seed finished first.
                    Err(error) if error.refused(refusal::NO_USER) => {}
                    Err(error) => return Err(error).context("creating etcd's users"),
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn create_accounts(&self, accounts: &Accounts) -> Result<(), Error> {
        let open = self.with_credentials(None);
        open.add_role("root").await?;
        for (user, password) in [("root", &accounts.root), ("agent", &accounts.agent)] {
            open.add_user(user, password).await?;
            open.grant_role(user, "root").await?;
        }
        open.add_role("patroni").await?;
        open.grant_prefix("patroni", &accounts.patroni_prefix, Permission::ReadWrite).await?;
        open.add_user("patroni", &accounts.patroni).await?;
        open.grant_role("patroni", "patroni").await?;
        open.add_role("proxy").await?;
        for prefix in [&accounts.patroni_prefix, &accounts.agent_prefix] {
            open.grant_prefix("proxy", prefix, Permission::Read).await?;
        }
        open.add_user("proxy", &accounts.proxy).await?;
        open.grant_role("proxy", "proxy").await?;
        open.call::<Done>("auth/enable", &json!({})).await.map(drop)
    }

    /// Authentication is on only after every account exists; what can still be wrong is the password in our hands.
    async fn check_accounts(&self, accounts: &Accounts) -> anyhow::Result<()> {
        for (user, password) in [("agent", &accounts.agent), ("patroni", &accounts.patroni)] {
            match self.auth_is_on(&Credentials::new(user, password)).await {
                Err(error) if error.refused(refusal::WRONG_PASSWORD) => anyhow::bail!(crate::problem::Problem::new(
                    format!("etcd does not accept this node's password of user `{user}`"),
                    "secrets.json",
                    "the node's secrets are not those of the running cluster: seed it with the cluster's own bundle",
                )),
                Err(error) => return Err(error).context("logging in to etcd"),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

fn exists(result: Result<Done, Error>, refusal: &str) -> Result<(), Error> {
    match result {
        Err(error) if error.refused(refusal) => Ok(()),
        done => done.map(drop),
    }
}
