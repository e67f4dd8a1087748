//! The agent's own port (8443): `GET /v1/intent` while a cluster is founded and after, `GET /v1/status` always.
//!
//! Mutual TLS: only agents of this cluster get an answer. Connections are few, short and small; anything else is cut
//! off before it costs something.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use crate::birth::{Desk, Stage};
use crate::pki;
use crate::status::Board;

/// Connections at a time; peers keep one each.
const CONNECTIONS: usize = 32;
/// For a handshake and for one request's header.
const LIMIT: Duration = Duration::from_secs(5);
/// A connection is closed after this long; peers connect again.
const LIFETIME: Duration = Duration::from_secs(300);
/// Request line and headers together.
const HEADER_BYTES: usize = 8192;

/// What the endpoints show.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// The cluster whose agents may ask.
    pub cluster: Uuid,
    /// Founding.
    pub desk: Arc<Desk>,
    /// Status.
    pub board: Board,
}

/// Serves until dropped. Errors of single connections are logged and never end the server.
pub async fn serve(listener: TcpListener, tls: rustls::ServerConfig, endpoints: Endpoints) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
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
        let (acceptor, endpoints) = (acceptor.clone(), endpoints.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let ended = tokio::time::timeout(LIFETIME, connection(stream, acceptor, endpoints)).await;
            if let Ok(Err(error)) = ended {
                tracing::debug!(%from, "port 8443: {error:#}");
            }
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, endpoints: Endpoints) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(LIMIT, acceptor.accept(stream)).await.context("no handshake")??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let agent = certificate.is_some_and(|certificate| pki::is_agent(certificate, endpoints.cluster));
    let service = hyper::service::service_fn(move |request| {
        let response = if agent { answer(&request, &endpoints) } else { text(StatusCode::FORBIDDEN, "agents only\n") };
        async move { Ok::<_, Infallible>(response) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIMIT * 6)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .context("serving a connection")
}

fn answer(request: &Request<Incoming>, endpoints: &Endpoints) -> Response<Full<Bytes>> {
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
