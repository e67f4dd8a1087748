//! The agent's own port (8443): `GET /v1/intent` while a cluster is founded and after, `GET /v1/status` always, `POST
//! /v1/join` on voters that expect somebody, `POST /v1/renew` for who has joined, `GET /v1/form` for the operator.
//!
//! Mutual TLS: only agents of this cluster get an answer; joining alone is for those without a certificate. Connections
//! are few, short and small; anything else is cut off before it costs something.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use crate::birth::{Desk, Stage};
use crate::form;
use crate::join::{self, Refused, Registry, Voter};
use crate::pki;
use crate::status::Board;

/// Connections at a time; peers keep one each.
const CONNECTIONS: usize = 32;
/// For a handshake and for one request's header.
const LIMIT: Duration = Duration::from_secs(5);
/// A connection is closed after this long; peers connect again.
const LIFETIME: Duration = Duration::from_secs(300);
/// Connections at a time of those without a certificate: they must not keep peers out.
const STRANGERS: usize = 8;
/// One of theirs is closed after this long; a voter that lets somebody in writes to etcd meanwhile.
const STRANGER_LIFETIME: Duration = Duration::from_secs(20);
/// Request line and headers together.
const HEADER_BYTES: usize = 8192;

/// What the endpoints show.
#[derive(Debug)]
pub struct Endpoints<R = Voter> {
    /// The cluster whose agents may ask.
    pub cluster: Uuid,
    /// Which secrets are here ([`crate::form::digest`]).
    pub bundle: String,
    /// Founding.
    pub desk: Arc<Desk>,
    /// Who lets nodes in; empty until etcd runs here.
    pub admissions: Arc<join::Desk<R>>,
    /// Status.
    pub board: Board,
}

impl<R> Clone for Endpoints<R> {
    fn clone(&self) -> Self {
        let Self { cluster, bundle, desk, admissions, board } = self;
        let (desk, admissions, board) = (desk.clone(), admissions.clone(), board.clone());
        Self { cluster: *cluster, bundle: bundle.clone(), desk, admissions, board }
    }
}

/// Serves until dropped. Errors of single connections are logged and never end the server.
pub async fn serve<R: Registry + 'static>(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    endpoints: Endpoints<R>,
) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let (slots, strangers) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(STRANGERS)));
    loop {
        let permit = slots.clone().acquire_owned().await.context("accepting connections")?;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer gave up while queued: neither is a reason to stop serving.
                tracing::warn!("port 8443: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, endpoints, strangers) = (acceptor.clone(), endpoints.clone(), strangers.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let ended = tokio::time::timeout(LIFETIME, connection(stream, acceptor, endpoints, &strangers)).await;
            if let Ok(Err(error)) = ended {
                tracing::debug!(%from, "port 8443: {error:#}");
            }
        });
    }
}

async fn connection<R: Registry + 'static>(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    endpoints: Endpoints<R>,
    strangers: &Semaphore,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(LIMIT, acceptor.accept(stream)).await.context("no handshake")??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let agent = certificate.is_some_and(|certificate| pki::is_agent(certificate, endpoints.cluster));
    let key = certificate.filter(|_| agent).map(pki::key_sha256).transpose()?;
    let operator = certificate.is_some_and(|certificate| form::is_operator(certificate, endpoints.cluster));
    let stranger = match certificate {
        None => Some(strangers.try_acquire().context("too many connections without a certificate")?),
        Some(_) => None,
    };
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (endpoints, key) = (endpoints.clone(), key.clone());
        async move {
            Ok::<_, Infallible>(match (request.method(), request.uri().path(), key) {
                (&Method::POST, join::PATH, _) => {
                    decide(request, &endpoints, async |desk, request: join::Request| desk.admit(&request).await).await
                }
                (&Method::POST, join::RENEW_PATH, Some(key)) => {
                    decide(request, &endpoints, async |desk, request| desk.renew(&request, &key).await).await
                }
                (_, _, Some(_)) => answer(&request, &endpoints),
                (method, form::PATH, None) if operator => formed(method, &endpoints),
                (_, _, None) => text(StatusCode::FORBIDDEN, "agents only\n"),
            })
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIMIT * 6)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match stranger {
        None => served.await.context("serving a connection"),
        Some(_permit) => {
            let served = tokio::time::timeout(STRANGER_LIFETIME, served).await;
            served.context("a connection without a certificate took too long")?.context("serving a connection")
        }
    }
}

/// Answers a node that wants to join or to have its certificates renewed. What it sent is not repeated anywhere.
async fn decide<R: Registry, Q: DeserializeOwned, A: Serialize>(
    request: Request<Incoming>,
    endpoints: &Endpoints<R>,
    by: impl AsyncFnOnce(&join::Admission<R>, Q) -> Result<A, Refused>,
) -> Response<Full<Bytes>> {
    let Some(admission) = endpoints.admissions.get() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "etcd is not ready here yet\n");
    };
    let body = Limited::new(request.into_body(), join::REQUEST_BYTES).collect();
    let body = match tokio::time::timeout(LIMIT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return text(StatusCode::PAYLOAD_TOO_LARGE, "the request is too large or broke off\n"),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the request took too long\n"),
    };
    let Ok(request) = serde_json::from_slice(&body) else {
        return text(StatusCode::BAD_REQUEST, "not a request that this version reads\n");
    };
    match by(admission, request).await {
        Ok(answer) => json(&answer),
        Err(Refused::No(problem)) => {
            tracing::warn!("not let in: {}", problem.what);
            let body = serde_json::to_vec(&problem).unwrap_or_default();
            respond(StatusCode::FORBIDDEN, "application/json", body)
        }
        Err(Refused::NotNow(why)) => {
            tracing::warn!("not let in yet: {why}");
            text(StatusCode::SERVICE_UNAVAILABLE, &why)
        }
    }
}

/// What the operator hears from a node that has its bundle: whether it is the same, and never any of it.
fn formed<R>(method: &Method, endpoints: &Endpoints<R>) -> Response<Full<Bytes>> {
    let stage = match endpoints.desk.shown().map(|record| record.stage) {
        // The disk was not looked at yet.
        None => return text(StatusCode::SERVICE_UNAVAILABLE, "no intent stored yet\n"),
        Some(Stage::Born) => form::Stage::Born,
        Some(Stage::Intent | Stage::Accepted | Stage::Committed) => form::Stage::Formed,
    };
    match *method {
        Method::GET => {
            let bundle_sha256 = Some(endpoints.bundle.clone());
            json(&form::Shown { schema: form::SCHEMA, stage, proof: None, bundle_sha256 })
        }
        _ => text(StatusCode::CONFLICT, "this node has its founding bundle; it takes no other\n"),
    }
}

fn answer<R>(request: &Request<Incoming>, endpoints: &Endpoints<R>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/v1/intent" => {
            if let Some((slot, stage)) = asker(request.uri().query().unwrap_or_default()) {
                endpoints.desk.heard(slot, stage);
            }
            match endpoints.desk.shown() {
                Some(record) => json(&record),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "no intent stored yet\n"),
            }
        }
        "/v1/status" => json(&endpoints.board.get()),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// `slot=…&stage=…` of an asking peer.
fn asker(query: &str) -> Option<(&str, Stage)> {
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    let stage = serde_json::from_value(value("stage")?.into()).ok()?;
    Some((value("slot")?, stage))
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => respond(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain", body.as_bytes().to_vec())
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
