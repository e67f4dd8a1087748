//! `pgkiln cluster form`: brings the founding bundle to every voter that waits for it, once each. What is said, and what both
//! sides prove before anything secret crosses, is in [`firstboot::form`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use firstboot::form::{self, Stage, digest};
use firstboot::retry::{Failure, Policy, retry};
use firstboot::spec::{Founding, Secret, Secrets};
use serde::Serialize;

use super::form_client::{self, Operator, Peer, Session};
use super::formed::{Formed, Machine};
use super::{Cluster, SlotToken, Tokens};
use crate::problem::{Problem, Problems};
use crate::progress::Ui;

/// Port of the agents.
const PORT: u16 = 8443;
/// For one voter, from connecting to its answer; it makes the bundle durable meanwhile.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two attempts at a voter that is not there yet.
const PAUSES: Policy = Policy { first: Duration::from_millis(200), cap: Duration::from_secs(2), deadline: None };

/// Where voters are, and how long to wait for them.
#[derive(Debug, Clone)]
pub struct FormOptions {
    /// Addresses that differ from the definition's: a port that is forwarded, for instance.
    pub at: BTreeMap<String, SocketAddr>,
    /// How long voters that do not answer are waited for.
    pub patience: Duration,
}

/// What became of one voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It has the bundle now.
    Brought,
    /// It had this very bundle already.
    Present,
    /// Its cluster is born: nothing was sent.
    Born,
}

/// One voter's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FormedSlot {
    /// The voter.
    pub slot: String,
    /// What became of it.
    pub outcome: Outcome,
}

impl Cluster {
    /// Brings the bundle to every voter; an error names each one that has none, and the others have theirs all the same.
    pub async fn form(&self, options: &FormOptions, ui: &Ui) -> anyhow::Result<Vec<FormedSlot>> {
        let voters: Vec<(String, SocketAddr)> =
            self.definition.voters().map(|node| self.place(node, options)).collect();
        if let Some(unknown) = options.at.keys().find(|slot| !self.definition.is_voter(slot)) {
            let known: Vec<&str> = voters.iter().map(|(slot, _)| slot.as_str()).collect();
            let remedy = crate::strict::suggestion(unknown, &known, "voter");
            return Err(Problem::new(format!("`{unknown}` is no voter of this cluster"), "--at", remedy).into());
        }
        let founding = self.founding()?;
        let bundle = digest(&Secrets::from(founding.clone()))?;
        let operator = self.operator()?;
        let (mut outcomes, mut problems) = (Vec::new(), Vec::new());
        // All at the same time: they found together, and the first may be the last to boot.
        let mut waits = Vec::new();
        for (slot, address) in &voters {
            waits.push(self.voter(slot, *address, options.patience, &operator, &founding, &bundle, ui));
        }
        for ((slot, _), ended) in voters.iter().zip(join_all(waits).await) {
            match ended {
                Ok(outcome) => outcomes.push(FormedSlot { slot: slot.clone(), outcome }),
                Err(error) => problems.push(match error.downcast::<Problem>() {
                    Ok(problem) => problem,
                    Err(error) => Problem::new(format!("{error:#}"), slot, "see the node's console, then form again"),
                }),
            }
        }
        if problems.is_empty() { Ok(outcomes) } else { Err(Problems(problems).into()) }
    }

    fn place(&self, node: &super::Node, options: &FormOptions) -> (String, SocketAddr) {
        let own = || SocketAddr::new(node.address, PORT);
        (node.slot.clone(), options.at.get(&node.slot).copied().unwrap_or_else(own))
    }

    /// What shows that it is the operator who asks: made for this run, worth nothing tomorrow.
    pub(super) fn operator(&self) -> anyhow::Result<Operator> {
        let read = |name: &str| fs_err::read_to_string(self.dir.join("pki").join(name));
        let root = super::pki::Authority { certificate: read("root.pem")?, key: read("root.key")? };
        let name = form::operator(self.definition.uuid);
        Operator::new(&root.certificate, super::pki::operator(&name, &root)?, self.definition.uuid)
    }

    #[expect(clippy::too_many_arguments, reason = "one voter of many, and everything they share")]
    async fn voter(
        &self,
        slot: &str,
        address: SocketAddr,
        patience: Duration,
        operator: &Operator,
        founding: &Founding,
        bundle: &str,
        ui: &Ui,
    ) -> anyhow::Result<Outcome> {
        let tokens: Tokens = self.read_toml("tokens.toml")?;
        let token = tokens.slots.get(slot).map(|SlotToken(token)| token.clone());
        let token = token.with_context(|| format!("slot `{slot}` has no token: pgkiln cluster token"))?;
        let place = format!("{slot} ({address})");
        let mut said = String::new();
        let waiting = |error: &anyhow::Error, since: Duration| {
            let why = format!("{error:#}");
            if why != said {
                ui.note(format!("{place}: waiting, {} s: {why}", since.as_secs()));
                said = why;
            }
        };
        let ended = retry(PAUSES.within(patience), waiting, async || {
            let once = self.once(slot, &place, address, operator, &token, founding, bundle);
            let ended = tokio::time::timeout(LIMIT, once).await.context("no answer in time")?;
            ended.map_err(|error| if error.is::<Problem>() { Failure::GiveUp(error) } else { Failure::Again(error) })
        })
        .await;
        let outcome = ended.map_err(|error| match error.is::<Problem>() {
            true => error,
            false => {
                let remedy = "boot it with its seed (`pgkiln cluster seed`), see that port 8443 can be reached from here \
                              (or say where it can be: --at SLOT=ADDRESS:PORT), and form again: voters that have their \
                              bundle keep it";
                Problem::new(format!("the voter does not wait for the bundle: {error:#}"), &place, remedy).into()
            }
        })?;
        ui.note(match outcome {
            Outcome::Brought => format!("{place}: has the founding bundle"),
            Outcome::Present => format!("{place}: had this founding bundle already"),
            Outcome::Born => format!("{place}: its cluster is born, nothing was sent"),
        });
        Ok(outcome)
    }

    #[expect(clippy::too_many_arguments, reason = "one attempt at one voter, and everything they share")]
    async fn once(
        &self,
        slot: &str,
        place: &str,
        address: SocketAddr,
        operator: &Operator,
        token: &Secret,
        founding: &Founding,
        bundle: &str,
    ) -> anyhow::Result<Outcome> {
        let Session { mut sender, binding, peer } = form_client::connect(operator, slot, address).await?;
        let shown = form_client::ask(&mut sender).await?;
        let refused = |what: String, remedy: &str| anyhow::Error::from(Problem::new(what, place, remedy));
        anyhow::ensure!(shown.schema == form::SCHEMA, "it speaks version {} of forming", shown.schema);
        match (shown.stage, &peer) {
            (Stage::Waiting, Peer::Unknown { key_sha256 }) => {
                let proof = shown.proof.unwrap_or_default();
                if !binding.is_node(token, &proof)? {
                    let what = "whoever waits there does not know this slot's token: nothing was sent".to_owned();
                    let remedy = "it was booted with another cluster's or an older seed, or it is not the node: write the \
                                  seed again (`pgkiln cluster seed --slot SLOT`) and boot it anew";
                    return Err(refused(what, remedy));
                }
                self.bind(slot, place, key_sha256)?;
                let proof = binding.operator(token, bundle)?;
                let bundle = form::Bundle { schema: form::SCHEMA, proof, founding: founding.clone() };
                match form_client::bring(&mut sender, &bundle).await? {
                    Ok(_) => Ok(Outcome::Brought),
                    Err(problem) => Err(refused(format!("it refuses the bundle: {}", problem.what), &problem.remedy)),
                }
            }
            (Stage::Formed, Peer::Agent) if shown.bundle_sha256.as_deref() == Some(bundle) => Ok(Outcome::Present),
            (Stage::Formed, Peer::Agent) => Err(refused(
                "it has another founding bundle than this directory makes now, and keeps it".to_owned(),
                "let all voters have the same: either undo what was changed in the cluster's directory since, or start \
                 over with empty disks and `pgkiln cluster new` (new UUID)",
            )),
            (Stage::Born, Peer::Agent) => Ok(Outcome::Born),
            _ => Err(refused(
                "whoever answers there is no agent of this cluster: nothing was sent".to_owned(),
                "check the address",
            )),
        }
    }

    /// A token is good for one machine: its key is recorded before anything is sent to it.
    fn bind(&self, slot: &str, place: &str, key_sha256: &str) -> anyhow::Result<()> {
        let tokens: Tokens = self.read_toml("tokens.toml")?;
        let issue = tokens.issues.get(slot).copied().unwrap_or(1);
        let mut formed = Formed::load(&self.dir)?;
        match formed.slots.get(slot) {
            Some(machine) if machine.issue == issue && machine.key_sha256 == key_sha256 => return Ok(()),
            Some(machine) if machine.issue == issue => {
                let what = format!("the token of slot `{slot}` was already used by another machine, at {}", machine.at);
                let remedy = format!(
                    "nothing was sent. If this machine is to take the slot (the other's disk is lost), issue a new token: \
                     `pgkiln cluster token {} {slot}`, write its seed again and boot it anew; if not, find out who it is",
                    self.dir.display()
                );
                return Err(Problem::new(what, place, remedy).into());
            }
            _ => {}
        }
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        formed.slots.insert(slot.to_owned(), Machine { issue, key_sha256: key_sha256.to_owned(), at });
        formed.store(&self.dir)
    }
}

/// All of them to their ends, in their order; on one thread.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |context| {
        for (future, ended) in futures.iter_mut().filter(|(_, ended)| ended.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(context) {
                *ended = Some(value);
            }
        }
        match futures.iter().all(|(_, ended)| ended.is_some()) {
            true => std::task::Poll::Ready(futures.iter_mut().filter_map(|(_, ended)| ended.take()).collect()),
            false => std::task::Poll::Pending,
        }
    })
    .await
}
