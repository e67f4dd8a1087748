//! The joining node's side: keys first, then one voter after the other until one lets it in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Answer, PATH, Request, SCHEMA, pin};
use crate::durable;
use crate::layout::Layout;
use crate::pki;
use crate::problem::Problem;
use crate::retry::{Failure, Policy, retry};
use crate::spec::{NodeSpec, Secrets, pem_sha256};
use crate::status::Board;

/// For one voter, from connecting to the answer; it writes to etcd meanwhile.
const LIMIT: Duration = Duration::from_secs(10);
/// Between rounds through all voters, at last.
const CAP: Duration = Duration::from_secs(5);

/// What the cluster gave; certificates are in place already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// To be kept.
    pub secrets: Secrets,
}

/// Asks until a voter lets this node in. Ends with an error only if a majority of the voters refuses: one alone may have
/// an older seed. `voters` are the seeds with the port they listen on.
pub async fn ask(
    layout: &Layout,
    spec: &NodeSpec,
    voters: &BTreeMap<String, SocketAddr>,
    board: &Board,
) -> Result<Joined> {
    let request = request(layout, spec)?;
    let http = http(pin::client(&spec.cluster.ca_sha256, spec.cluster.uuid)?, voters)?;
    let waiting = |error: &anyhow::Error, since: Duration| {
        board.waiting(format!("a voter to let this node in, for {} s: {error:#}", since.as_secs()));
    };
    let answer =
        retry(Policy { cap: CAP, ..Policy::PROMPT }, waiting, async || round(&http, &request, voters).await).await?;
    board.waited();
    keep(layout, spec, &answer)?;
    let Answer { ca, passwords, roles, .. } = answer;
    Ok(Joined { secrets: Secrets { schema: 1, ca, passwords, roles, ..Secrets::default() } })
}

/// A client that finds voters by their slots.
pub(super) fn http(tls: rustls::ClientConfig, voters: &BTreeMap<String, SocketAddr>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(LIMIT)
        .http1_only()
        .tls_backend_preconfigured(tls);
    for (slot, address) in voters {
        builder = builder.resolve(slot, *address);
    }
    builder.build().context("preparing TLS")
}

/// Keys are stored before anybody hears of them: asked again after a kill, the voters see the same machine.
fn request(layout: &Layout, spec: &NodeSpec) -> Result<Request> {
    let ip = spec.ip().context("the specification gives this node no address")?;
    let join = spec.join.as_ref().context("the specification has no token")?;
    durable::create_dir(&layout.pki(), 0o700)?;
    let leaves = pki::leaves(spec, ip);
    let keys = leaves.iter().map(|leaf| Ok((leaf.name.clone(), pki::public_key(&layout.pki(), &leaf.name)?)));
    Ok(Request {
        schema: SCHEMA,
        slot: spec.slot.clone(),
        role: spec.role,
        address: ip,
        token: join.token.clone(),
        keys: keys.collect::<Result<_>>()?,
    })
}

async fn round(
    http: &reqwest::Client,
    request: &Request,
    voters: &BTreeMap<String, SocketAddr>,
) -> Result<Answer, Failure> {
    let (mut refusals, mut reasons) = (Vec::new(), Vec::new());
    for (slot, address) in voters {
        match one::<Answer>(http, request, slot, address.port(), PATH).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(problem)) => {
                reasons.push(format!("{slot} refuses: {}", problem.what));
                refusals.push(problem);
            }
            Err(error) => reasons.push(format!("{slot} ({address}): {error:#}")),
        }
    }
    // What most of them say: one alone may have an older seed.
    let alike = |problem: &Problem| refusals.iter().filter(|other| *other == problem).count();
    match refusals.iter().max_by_key(|problem| alike(problem)).filter(|_| refusals.len() > voters.len() / 2) {
        Some(problem) => Err(Failure::GiveUp(problem.clone().into())),
        None => Err(Failure::Again(anyhow::anyhow!("{}", reasons.join("; ")))),
    }
}

/// An answer, a refusal, or why neither came.
pub(super) async fn one<A: DeserializeOwned>(
    http: &reqwest::Client,
    request: &impl Serialize,
    slot: &str,
    port: u16,
    path: &str,
) -> Result<Result<A, Problem>> {
    let sent = http.post(format!("https://{slot}:{port}{path}")).json(request).send().await;
    let response = sent.map_err(|error| anyhow::anyhow!("{}", crate::etcd::plain(&error)))?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| anyhow::anyhow!("{}", crate::etcd::plain(&error)))?;
    if status.is_success() {
        return Ok(Ok(serde_json::from_slice(&body).context("an answer of another version")?));
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => Ok(Err(problem)),
        Err(_) => bail!("{status}: {}", String::from_utf8_lossy(&body).trim()),
    }
}

/// Checks what came and puts certificates beside their keys.
fn keep(layout: &Layout, spec: &NodeSpec, answer: &Answer) -> Result<()> {
    let pki = layout.pki();
    let pinned = pem_sha256(&answer.ca).is_some_and(|hash| hash == spec.cluster.ca_sha256.to_ascii_lowercase());
    ensure!(pinned, "the voter answered with another root CA than `cluster.ca_sha256` names");
    let ip = spec.ip().context("the specification gives this node no address")?;
    for leaf in pki::leaves(spec, ip) {
        let chain = answer.certificates.get(&leaf.name);
        let chain = chain.with_context(|| format!("the voter signed no certificate `{}`", leaf.name))?;
        pki::install(&pki, &leaf.name, chain)?;
    }
    durable::write(&pki.join("ca.pem"), answer.ca.as_bytes(), 0o644)
}
