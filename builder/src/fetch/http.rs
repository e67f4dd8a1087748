//! The HTTP side: one client per worker, time limits, and failures sorted by what to do about them.

use std::time::Duration;

use anyhow::Context;
use reqwest::StatusCode;
use reqwest::redirect::Policy;

use crate::problem::Problem;

/// To connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// More than any address needs.
const MAX_REDIRECTS: usize = 5;
/// Without a single byte arriving.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a transfer failed: what branches on it are retries and `--relock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The mirror has no such file (any more).
    Gone,
    /// No answer, a broken connection, a server's trouble: trying again may help.
    Unreachable,
    /// Not what the lock or the signed index says.
    Altered,
}

/// A failed transfer.
#[derive(Debug, thiserror::Error)]
#[error("downloading")]
pub struct Failure {
    /// What sort of failure.
    pub kind: FailureKind,
    /// For the reader.
    #[source]
    pub problem: Problem,
}

impl Failure {
    pub(super) fn gone(what: &str, url: &str) -> Self {
        let what = format!("the mirror no longer has {what}");
        let remedy = "resolve anew with `pgkiln lock --update IMAGE` (or --relock, which leaves the tree alone), \
                      or give the archive a `snapshot` in image.toml";
        Self { kind: FailureKind::Gone, problem: Problem::new(what, url, remedy) }
    }

    pub(super) fn unreachable(reason: &str, url: &str) -> Self {
        let what = format!("the mirror cannot be reached: {reason}");
        let remedy = "check the network and this host's apt sources; what was downloaded is kept and resumed";
        Self { kind: FailureKind::Unreachable, problem: Problem::new(what, url, remedy) }
    }

    pub(super) fn altered(what: &str, url: &str) -> Self {
        let remedy = "the file was not used; try again later or use another mirror";
        Self { kind: FailureKind::Altered, problem: Problem::new(what, url, remedy) }
    }
}

/// A client and the runtime it lives in.
pub(super) struct Connection {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) client: reqwest::Client,
}

impl Connection {
    pub(super) fn new() -> anyhow::Result<Self> {
        Self::with(|client| client)
    }

    fn with(more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> anyhow::Result<Self> {
        // Fails only if a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
        let client = reqwest::Client::builder()
            .user_agent(concat!("pgkiln/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL_TIMEOUT);
        let client = more(client).build().context("setting up the HTTP client")?;
        Ok(Self { runtime, client })
    }
}

/// The innermost cause: the outer ones repeat the URL.
pub(super) fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        let what = if error.is_connect() { "no connection" } else { "no data" };
        return format!("{what} for {} s", if error.is_connect() { CONNECT_TIMEOUT } else { STALL_TIMEOUT }.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Sorts a response by its status; `Ok` only for success.
pub(super) fn check_status(status: StatusCode, what: &str, url: &str) -> Result<(), Failure> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(Failure::gone(what, url)),
        status => Err(Failure::unreachable(&format!("it answers {status}"), url)),
    }
}

/// An address led away from https.
#[derive(Debug, thiserror::Error)]
#[error("it is redirected to the unprotected address {0}")]
struct Unprotected(String);

/// A key: nothing signs it, so every step of the way must be https; whoever asks compares fingerprints as well.
pub fn get_key(url: &str, what: &str, limit: u64) -> anyhow::Result<Vec<u8>> {
    let policy = Policy::custom(|attempt| match attempt.url().scheme() {
        "https" if attempt.previous().len() > MAX_REDIRECTS => attempt.error("it is redirected without end"),
        "https" => attempt.follow(),
        _ => {
            let to = attempt.url().to_string();
            attempt.error(Unprotected(to))
        }
    });
    let connection = Connection::with(|client| client.redirect(policy).https_only(true))?;
    let got = connection.runtime.block_on(get_once(&connection.client, url, what, limit));
    got.map_err(|Failure { problem, .. }| {
        let remedy = "a key must come over https all the way; correct `key` in image.toml, or give a file there";
        Problem::new(format!("{what} was not taken: {}", problem.what), url, remedy).into()
    })
}

/// A small file whose digest nobody knows in advance (`InRelease`), from the first base URL that has it.
pub fn get(bases: &[String], path: &str, what: &str, limit: u64) -> anyhow::Result<(Vec<u8>, String)> {
    let connection = Connection::new()?;
    let mut last = None;
    for base in bases {
        for attempt in 0..super::transfer::ATTEMPTS {
            super::transfer::pause_before(attempt);
            let url = format!("{base}/{path}");
            match connection.runtime.block_on(get_once(&connection.client, &url, what, limit)) {
                Ok(bytes) => return Ok((bytes, base.clone())),
                Err(failure) => {
                    let again = failure.kind == FailureKind::Unreachable;
                    last = Some(failure);
                    if !again {
                        break;
                    }
                }
            }
        }
    }
    Err(last.context("there is no address to fetch from")?.into())
}

async fn get_once(client: &reqwest::Client, url: &str, what: &str, limit: u64) -> Result<Vec<u8>, Failure> {
    let unreachable = |error: reqwest::Error| Failure::unreachable(&reason(&error), url);
    let mut response = client.get(url).send().await.map_err(unreachable)?;
    check_status(response.status(), what, url)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            return Err(Failure::altered(&format!("{what} is larger than {limit} bytes"), url));
        }
    }
    Ok(bytes)
}
