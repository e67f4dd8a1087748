//! The HTTP server: tables made at start, one lookup per request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

use super::machines::{Machines, mac};
use super::range::{self, Part};
use super::reply::{Reply, Source};
use super::script;
use super::set::{Content, Set};

/// Connections at a time: some racks.
const CONNECTIONS: usize = 512;
/// For a request's header; iPXE keeps no connection open.
const HEADER: Duration = Duration::from_secs(30);
/// For one connection: 300 MB at 1 Mbit/s.
const LIFETIME: Duration = Duration::from_secs(3600);

/// Everything that is served.
#[derive(Debug)]
pub struct Site {
    set: Set,
    files: BTreeMap<String, Content>,
    machines: Machines,
    more: String,
}

/// One request, when its answer is gone.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Always `request`.
    pub event: &'static str,
    /// Who asked.
    pub client: SocketAddr,
    /// Slot of the machine that the path names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Method.
    pub method: String,
    /// Path as it came.
    pub path: String,
    /// Status.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// Whether all of them were.
    pub complete: bool,
    /// From the request to the last byte.
    pub seconds: f64,
}

impl Site {
    /// `set` is booted; the files of `others` are served as well, to machines in the middle of it. `more`: further words for
    /// every kernel.
    pub fn new(set: Set, others: &[Set], machines: Machines, more: String) -> Self {
        let mut files = BTreeMap::new();
        for set in others.iter().chain([&set]) {
            files.extend(set.files.iter().map(|file| (format!("/i/{}/{}", set.id, file.name), file.clone())));
        }
        Self { set, files, machines, more }
    }

    /// What a path stands for: exactly the tables' paths do.
    fn find(&self, path: &str, server: SocketAddr) -> (Option<String>, Option<Found<'_>>) {
        if let Some(file) = self.files.get(path) {
            return (None, Some(Found::File(file)));
        }
        let text = |text: String| Some(Found::Text(text.into()));
        if path == "/boot.ipxe" {
            return (None, text(script::boot()));
        }
        let mut parts = path.split('/').skip(1);
        let (kind, address, document) = (parts.next(), parts.next().and_then(mac), parts.next());
        let (Some(address), None) = (address, parts.next()) else { return (None, None) };
        let machine = self.machines.0.get(&address);
        let slot = machine.map(|machine| machine.slot.clone());
        let found = match (kind, machine, document) {
            (Some("ipxe"), Some(machine), None) => {
                text(script::machine(&address, machine, &self.set, &self.more, server))
            }
            (Some("ipxe"), None, None) => text(script::unknown(&address)),
            (Some("seed"), Some(machine), Some(name)) => {
                machine.documents.get(name).map(|bytes| Found::Text(bytes.clone().into()))
            }
            _ => None,
        };
        (slot, found)
    }
}

enum Found<'a> {
    Text(Bytes),
    File(&'a Content),
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, site: Arc<Site>, events: UnboundedSender<Event>) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = slots.clone().acquire_owned().await.context("accepting connections")?;
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the client gave up while queued: neither is a reason to stop serving.
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (site, events) = (site.clone(), events.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match tokio::time::timeout(LIFETIME, connection(stream, client, site, events)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%client, "{error:#}"),
                Err(_) => tracing::warn!(%client, "the connection took too long"),
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    site: Arc<Site>,
    events: UnboundedSender<Event>,
) -> anyhow::Result<()> {
    let server = stream.local_addr()?;
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        std::future::ready(Ok::<_, Infallible>(answer(&request, &site, client, server, &events)))
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    let served =
        http.timer(TokioTimer::new()).header_read_timeout(HEADER).serve_connection(TokioIo::new(stream), service);
    served.await.context("serving a connection")
}

fn answer(
    request: &Request<Incoming>,
    site: &Site,
    client: SocketAddr,
    server: SocketAddr,
    events: &UnboundedSender<Event>,
) -> Response<Reply> {
    let started = Instant::now();
    let path = request.uri().path();
    let (slot, found) = site.find(path, server);
    let asked = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let head = request.method() == Method::HEAD;
    let mut headers = Vec::new();
    let (status, length, source) = match (request.method(), found) {
        (&Method::GET | &Method::HEAD, Some(Found::Text(text))) => {
            (StatusCode::OK, text.len() as u64, Source::Text(text))
        }
        (&Method::GET | &Method::HEAD, Some(Found::File(file))) => {
            let tag = format!("\"{}\"", file.sha256);
            // Of another version the rest would not fit.
            let same = asked(header::IF_RANGE).is_none_or(|known| known == tag);
            let part = range::parse(asked(header::RANGE).filter(|_| same), file.bytes);
            headers.push((header::ETAG, tag));
            headers.push((header::ACCEPT_RANGES, "bytes".to_owned()));
            match part {
                Part::Whole => (StatusCode::OK, file.bytes, Source::File(file.file.clone(), 0..file.bytes)),
                Part::Some(part) => {
                    let text = format!("bytes {}-{}/{}", part.start, part.end - 1, file.bytes);
                    headers.push((header::CONTENT_RANGE, text));
                    (StatusCode::PARTIAL_CONTENT, part.end - part.start, Source::File(file.file.clone(), part))
                }
                Part::Beyond => {
                    headers.push((header::CONTENT_RANGE, format!("bytes */{}", file.bytes)));
                    (StatusCode::RANGE_NOT_SATISFIABLE, 0, Source::Text(Bytes::new()))
                }
            }
        }
        (_, Some(_)) => (StatusCode::METHOD_NOT_ALLOWED, 0, Source::Text(Bytes::new())),
        (_, None) => (StatusCode::NOT_FOUND, 0, Source::Text(Bytes::new())),
    };
    headers.push((header::CONTENT_LENGTH, length.to_string()));
    let event = Event {
        event: "request",
        client,
        slot,
        method: request.method().to_string(),
        path: path.to_owned(),
        status: status.as_u16(),
        bytes: 0,
        complete: false,
        seconds: 0.0,
    };
    let source = if head { Source::Text(Bytes::new()) } else { source };
    let mut response = Response::new(Reply::new(source, event, started, events.clone()));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
