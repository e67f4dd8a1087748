//! NoCloud over HTTP: the documents of a seed from a server that whoever started this machine has named.
//!
//! Nothing proves who answers, so nothing secret is believed that comes this way (`stored::read_seed`), and what the node
//! does with it is bound by the root CA's hash and by tokens that are good for one machine. No redirects, no proxies; sizes and
//! times have limits. A name is looked up anew by every attempt: DHCP may only just have said who knows names.

use std::time::Duration;

use anyhow::Context;
use reqwest::StatusCode;

use super::asked::Asked;
use super::nocloud::{Documents, assemble};
use super::{Seed, dhcp};
use crate::etcd::plain;
use crate::layout::Layout;
use crate::names::Resolved;
use crate::problem::Problem;
use crate::retry::{Failure, Policy, retry};
use crate::status::Board;
use crate::{facts, user_data};

/// For a connection on one network.
const CONNECT: Duration = Duration::from_secs(2);
/// For one document, and for finding the server by its name: systemd-resolved asks the next one after five silent seconds.
const LIMIT: Duration = Duration::from_secs(10);
/// Between attempts: quick at first, and a rack that boots together does not stay in step (`retry` adds jitter).
const PAUSES: Policy = Policy { first: Duration::from_millis(100), cap: Duration::from_secs(5), deadline: None };

/// The seed, as soon as the server has it; with a `limit`, *broken* after that.
pub(super) async fn read(
    layout: &Layout,
    asked: &Asked,
    board: &Board,
    limit: Option<Duration>,
) -> Result<Seed, Problem> {
    let policy = Policy { deadline: limit, ..PAUSES };
    let name = asked.name();
    let waiting = |error: &anyhow::Error, since: Duration| {
        let network = match layout.is_live() && !facts::is_on_a_network() {
            true => " (no address yet: DHCP is asked on every wired interface)",
            false => "",
        };
        board.waiting(format!("metadata from {name} for {} s: {error:#}{network}", since.as_secs()));
    };
    let found = retry(policy, waiting, async || {
        dhcp::ask(layout).await?;
        let documents = documents(asked, limit.map_or(LIMIT, |limit| limit.min(LIMIT))).await?;
        let seed = assemble(name, documents, &asked.given).map_err(|problem| Failure::GiveUp(problem.into()))?;
        Ok(Seed { network: true, ..seed })
    })
    .await;
    board.waited();
    found.map_err(|error| match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => Problem::new(
            format!("no metadata: {error:#}"),
            name,
            "start the server that was named for this machine (`pgkiln netboot`), and see that it can be reached",
        ),
    })
}

async fn documents(asked: &Asked, limit: Duration) -> anyhow::Result<Documents> {
    // The client counts looking up as connecting.
    let connect = if asked.by_name() { limit } else { CONNECT };
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let client = client.connect_timeout(connect).timeout(limit).tls_backend_preconfigured(crate::update::public_tls()?);
    let client = client.dns_resolver(Resolved::default()).build().context("preparing HTTP")?;
    let get = async |name: &str| document(&client, &asked.document(name), name).await;
    let meta_data = get("meta-data").await?.context("the server has no `meta-data` for this machine (404)")?;
    let user_data = get("user-data").await?.context("the server has no `user-data` for this machine (404)")?;
    let network_config = get("network-config").await?;
    if get("vendor-data").await?.is_some_and(|text| !text.trim_ascii().is_empty()) {
        tracing::warn!("vendor-data is ignored: a node is what its user-data says");
    }
    Ok(Documents { user_data, meta_data, network_config })
}

/// `None`: the server says that there is none.
async fn document(client: &reqwest::Client, url: &str, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let failed = |error: &reqwest::Error| anyhow::anyhow!("`{name}`: {}", plain(error));
    let mut answer = client.get(url).send().await.map_err(|error| failed(&error))?;
    match answer.status() {
        StatusCode::NOT_FOUND | StatusCode::NO_CONTENT => return Ok(None),
        status => anyhow::ensure!(status == StatusCode::OK, "`{name}`: the server says {status}"),
    }
    let (length, mut bytes) = (answer.content_length(), Vec::new());
    while let Some(chunk) = answer.chunk().await.map_err(|error| failed(&error))? {
        bytes.extend_from_slice(&chunk);
        anyhow::ensure!(bytes.len() <= user_data::LIMIT, "`{name}` is larger than 1 MiB");
    }
    anyhow::ensure!(length.is_none_or(|length| length == bytes.len() as u64), "`{name}` ended early");
    Ok(Some(bytes))
}
