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
use super::{Cluster, Node};
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
        let voters: Vec<&Node> = self.definition.voters().collect();
        if let Some(unknown) = options.at.keys().find(|slot| !self.definition.is_voter(slot)) {
            let known: Vec<&str> = voters.iter().map(|node| node.slot.as_str()).collect();
            let remedy = crate::strict::suggestion(unknown, &known, "voter");
            return Err(Problem::new(format!("`{unknown}` is no voter of this cluster"), "--at", remedy).into());
        }
        let (founding, operator) = (self.founding()?, self.operator()?);
        let sha256 = digest(&Secrets::from(founding.clone()))?;
        let errands = voters.iter().map(|node| {
            let address = options.at.get(&node.slot).copied().unwrap_or_else(|| SocketAddr::new(node.address, PORT));
            self.token(&node.slot)?;
            Ok(Errand {
                cluster: self,
                slot: &node.slot,
                address,
                place: format!("{} ({address})", node.slot),
                operator: &operator,
                founding: &founding,
                sha256: &sha256,
            })
        });
        let errands = errands.collect::<anyhow::Result<Vec<_>>>()?;
        // All at the same time: they found together, and the first may be the last to boot.
        let ended = join_all(errands.iter().map(|errand| errand.run(options.patience, ui)).collect()).await;
        let (mut outcomes, mut problems) = (Vec::new(), Vec::new());
        for (errand, ended) in errands.iter().zip(ended) {
            match ended {
                Ok(outcome) => outcomes.push(FormedSlot { slot: errand.slot.to_owned(), outcome }),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(outcomes) } else { Err(Problems(problems).into()) }
    }

    /// What shows that it is the operator who asks: made for this run, worth nothing tomorrow.
    pub(super) fn operator(&self) -> anyhow::Result<Operator> {
        let read = |name: &str| fs_err::read_to_string(self.dir.join("pki").join(name));
        let root = super::pki::Authority { certificate: read("root.pem")?, key: read("root.key")? };
        let name = form::operator(self.definition.uuid);
        Operator::new(&root.certificate, super::pki::operator(&name, &root)?, self.definition.uuid)
    }
}

/// One voter, and what it is to be brought.
struct Errand<'a> {
    cluster: &'a Cluster,
    slot: &'a str,
    address: SocketAddr,
    /// For people.
    place: String,
    operator: &'a Operator,
    founding: &'a Founding,
    sha256: &'a str,
}

impl Errand<'_> {
    fn problem(&self, what: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
        Problem::new(what, &self.place, remedy).into()
    }

    /// Until the voter has it, or will not have it, or does not come.
    async fn run(&self, patience: Duration, ui: &Ui) -> Result<Outcome, Problem> {
        let place = &self.place;
        let mut said = String::new();
        let waiting = |error: &anyhow::Error, since: Duration| {
            let why = format!("{error:#}");
            if why != said {
                ui.note(format!("{place}: waiting, {} s: {why}", since.as_secs()));
                said = why;
            }
        };
        let ended = retry(PAUSES.within(patience), waiting, async || {
            let ended = tokio::time::timeout(LIMIT, self.once()).await.context("no answer in time")?;
            ended.map_err(|error| if error.is::<Problem>() { Failure::GiveUp(error) } else { Failure::Again(error) })
        })
        .await;
        let outcome = ended.map_err(|error| match error.downcast::<Problem>() {
            Ok(problem) => problem,
            Err(error) => {
                let remedy = "boot it with its seed (`pgkiln cluster seed`), see that port 8443 can be reached from here \
                              (or say where it can be: --at SLOT=ADDRESS:PORT), and form again: voters that have their \
                              bundle keep it";
                Problem::new(format!("the voter does not wait for the bundle: {error:#}"), place, remedy)
            }
        })?;
        ui.note(match outcome {
            Outcome::Brought => format!("{place}: has the founding bundle"),
            Outcome::Present => format!("{place}: had this founding bundle already"),
            Outcome::Born => format!("{place}: its cluster is born, nothing was sent"),
        });
        Ok(outcome)
    }

    /// One attempt: a [`Problem`] is final, any other error may go away.
    async fn once(&self) -> anyhow::Result<Outcome> {
        let mut session = form_client::connect(self.operator, self.slot, self.address).await?;
        let shown = form_client::ask(&mut session.sender).await?;
        anyhow::ensure!(shown.schema == form::SCHEMA, "it speaks version {} of forming", shown.schema);
        match (shown.stage, &session.peer) {
            (Stage::Waiting, Peer::Unknown { key_sha256 }) => {
                let proof = shown.proof.unwrap_or_default();
                // Read again each time: what was issued anew while we wait counts no more.
                let (token, issue) = self.cluster.issued(self.slot)?;
                if !session.binding.is_node(&token, &proof)? {
                    let remedy = "it was booted with another cluster's or an older seed, or it is not the node: write the \
                                  seed again (`pgkiln cluster seed --slot SLOT`) and boot it anew";
                    let what = "whoever waits there does not know this slot's token: nothing was sent";
                    return Err(self.problem(what, remedy));
                }
                self.bind(key_sha256, issue)?;
                self.bring(session, &token).await
            }
            (Stage::Formed, Peer::Agent) if shown.bundle_sha256.as_deref() == Some(self.sha256) => Ok(Outcome::Present),
            (Stage::Formed, Peer::Agent) => Err(self.problem(
                "it has another founding bundle than this directory makes now, and keeps it",
                "let all voters have the same: either undo what was changed in the cluster's directory since, or start \
                 over with empty disks and `pgkiln cluster new` (new UUID)",
            )),
            (Stage::Born, Peer::Agent) => Ok(Outcome::Born),
            _ => Err(self.problem(
                "whoever answers there is no agent of this cluster: nothing was sent",
                "see which machine has that address",
            )),
        }
    }

    async fn bring(&self, mut session: Session, token: &Secret) -> anyhow::Result<Outcome> {
        let proof = session.binding.operator(token, self.sha256)?;
        let bundle = form::Bundle { schema: form::SCHEMA, proof, founding: self.founding.clone() };
        match form_client::bring(&mut session.sender, &bundle).await? {
            Ok(_) => Ok(Outcome::Brought),
            Err(problem) => Err(self.problem(format!("it refuses the bundle: {}", problem.what), problem.remedy)),
        }
    }

    /// A token is good for one machine: its key is recorded before anything is sent to it.
    fn bind(&self, key_sha256: &str, issue: u32) -> anyhow::Result<()> {
        let (slot, dir) = (self.slot, &self.cluster.dir);
        let _alone = Formed::lock(dir)?;
        let mut formed = Formed::load(dir)?;
        match formed.slots.get(slot) {
            Some(machine) if machine.issue == issue && machine.key_sha256 == key_sha256 => return Ok(()),
            Some(machine) if machine.issue == issue => {
                let what = format!("the token of slot `{slot}` was already used by another machine, at {}", machine.at);
                let remedy = format!(
                    "nothing was sent. If this machine is to take the slot (the other's disk is lost), issue a new token: \
                     `pgkiln cluster token {} {slot}`, write its seed again and boot it anew; if not, find out who it is",
                    dir.display()
                );
                return Err(self.problem(what, remedy));
            }
            Some(machine) if machine.issue > issue => anyhow::bail!("its token was issued anew meanwhile"),
            _ => {}
        }
        let at = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        formed.slots.insert(slot.to_owned(), Machine { issue, key_sha256: key_sha256.to_owned(), at });
        formed.store(dir)
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
