//! The waiting node: a server of its own on 8443, with a certificate nobody has signed, until the bundle is kept.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::{Binding, Bundle, ClientVerifier, PATH, REQUEST_BYTES, SCHEMA, Shown, Stage, digest};
use crate::layout::Layout;
use crate::pki::{self, Signer};
use crate::problem::Problem;
use crate::spec::{self, Founding, NodeSpec, Secret, Secrets};
use crate::status::Board;

/// Connections at a time: there is one operator.
const CONNECTIONS: usize = 4;
/// For a handshake, and for what a connection wants after it.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the console hears what is waited for.
const REMIND: Duration = Duration::from_secs(30);
/// Name of the key of the certificate shown meanwhile.
const KEY: &str = "form";

/// The node that waits.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    token: Secret,
    /// Whoever has sent the bundle that is kept.
    kept: Mutex<Option<String>>,
    done: Notify,
}

impl Node {
    /// A founding voter with its token.
    pub fn new(spec: &NodeSpec) -> Result<Self> {
        let token = spec.join.as_ref().context("the specification has no token")?.token.clone();
        Ok(Self { spec: spec.clone(), token, kept: Mutex::default(), done: Notify::new() })
    }

    /// Everything that can be wrong with a bundle, before anything of it is kept.
    fn check(&self, binding: &Binding, bundle: &Bundle) -> Result<(Secrets, String), Problem> {
        let wrong = |what: String, remedy: &str| Problem::new(what, format!("POST {PATH}"), remedy);
        if bundle.schema != SCHEMA {
            let what = format!("the bundle is of version {}, this node reads {SCHEMA}", bundle.schema);
            return Err(wrong(what, "use the `pgkiln` that baked this node's image"));
        }
        let ours = |error: anyhow::Error| wrong(format!("{error:#}"), "write the cluster's seeds again");
        let secrets = Secrets::from(bundle.founding.clone());
        let sha256 = digest(&secrets).map_err(ours)?;
        if !binding.is_operator(&self.token, &sha256, &bundle.proof).map_err(ours)? {
            let what = format!("whoever brings the bundle does not know the token of slot `{}`", self.spec.slot);
            return Err(wrong(
                what,
                "write this node's seed again (`pgkiln cluster seed --slot SLOT`) and boot it anew",
            ));
        }
        spec::founding_fits(&self.spec, &bundle.founding)?;
        let Founding { ca, intermediate, .. } = &bundle.founding;
        let issued = Signer::new(&intermediate.cert, intermediate.key.expose())
            .and_then(|_| pki::is_issued_by(&intermediate.cert, ca))
            .map_err(|error| {
                wrong(format!("{error:#}"), "sign a new one with `pgkiln cluster renew`, and form again")
            })?;
        if !issued {
            let what = "the cluster's root did not sign the intermediate of the bundle".to_owned();
            return Err(wrong(what, "restore the cluster's directory from a copy"));
        }
        Ok((secrets, sha256))
    }
}

/// Waits until the founding bundle was brought and kept by `keep`, which must be durable when it returns.
pub async fn wait(
    layout: &Layout,
    node: Node,
    listener: TcpListener,
    board: &Board,
    keep: impl Fn(&Secrets) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(layout, &node.spec)?));
    let address = listener.local_addr().context("listening")?;
    let (node, keep, slots) = (Arc::new(node), Arc::new(keep), Arc::new(Semaphore::new(CONNECTIONS)));
    let (name, slot) = (node.spec.cluster.name.clone(), node.spec.slot.clone());
    let started = Instant::now();
    let mut remind = tokio::time::interval(REMIND);
    loop {
        tokio::select! {
            () = node.done.notified() => break,
            _ = remind.tick() => board.waiting(format!(
                "`pgkiln cluster form {name}`, which brings {slot} its secrets at {address}, for {} s: run it where the \
                 cluster's directory is",
                started.elapsed().as_secs()
            )),
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let Ok(permit) = slots.clone().try_acquire_owned() else { continue };
                let (acceptor, node, keep) = (acceptor.clone(), node.clone(), keep.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let served = tokio::time::timeout(3 * LIMIT, connection(stream, acceptor, &node, keep)).await;
                    match served {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::warn!("not the operator: {error:#}"),
                        Err(_) => tracing::warn!("somebody connected and wanted nothing"),
                    }
                    // After the answer is out.
                    if node.kept.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                        node.done.notify_one();
                    }
                });
            }
        }
    }
    board.waited();
    tracing::info!("the founding bundle is here");
    Ok(())
}

fn tls(layout: &Layout, spec: &NodeSpec) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = ClientVerifier::new(&spec.cluster.ca_sha256, spec.cluster.uuid, provider.clone());
    let (certificate, key) = pki::self_signed(&layout.pki(), KEY, &spec.slot)?;
    let builder =
        rustls::ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
    let config = builder.with_client_cert_verifier(Arc::new(verifier)).with_single_cert(vec![certificate], key);
    config.context("preparing TLS")
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    node: &Arc<Node>,
    keep: Arc<impl Fn(&Secrets) -> Result<()> + Send + Sync + 'static>,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(LIMIT, acceptor.accept(stream)).await.context("no handshake")??;
    let binding = Binding::of(stream.get_ref().1, node.spec.cluster.uuid, &node.spec.slot)?;
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let (node, binding, keep) = (node.clone(), binding.clone(), keep.clone());
        async move { Ok::<_, Infallible>(answer(request, &node, &binding, &*keep).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(LIMIT);
    server.serve_connection(TokioIo::new(stream), service).await.context("serving the operator")
}

async fn answer(
    request: Request<Incoming>,
    node: &Node,
    binding: &Binding,
    keep: &impl Fn(&Secrets) -> Result<()>,
) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, PATH) => match binding.node(&node.token) {
            Ok(proof) => json(
                StatusCode::OK,
                &Shown { schema: SCHEMA, stage: Stage::Waiting, proof: Some(proof), bundle_sha256: None },
            ),
            Err(error) => json(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
        },
        (&Method::POST, PATH) => {
            let body = tokio::time::timeout(LIMIT, Limited::new(request.into_body(), REQUEST_BYTES).collect()).await;
            let Ok(Ok(body)) = body else { return json(StatusCode::BAD_REQUEST, &"the bundle broke off") };
            let Ok(bundle) = serde_json::from_slice(&body.to_bytes()) else {
                return json(StatusCode::BAD_REQUEST, &"not a bundle that this version reads");
            };
            last(match take(node, binding, &bundle, keep) {
                Ok(sha256) => {
                    let shown =
                        Shown { schema: SCHEMA, stage: Stage::Formed, proof: None, bundle_sha256: Some(sha256) };
                    json(StatusCode::OK, &shown)
                }
                Err(problem) => {
                    tracing::error!("a founding bundle is refused: {problem}");
                    json(StatusCode::FORBIDDEN, &problem)
                }
            })
        }
        _ => last(json(StatusCode::NOT_FOUND, &"not found")),
    }
}

/// Keeps a bundle: once, and nothing of one that is not right.
fn take(
    node: &Node,
    binding: &Binding,
    bundle: &Bundle,
    keep: &impl Fn(&Secrets) -> Result<()>,
) -> Result<String, Problem> {
    let (secrets, sha256) = node.check(binding, bundle)?;
    let mut kept = node.kept.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        Some(before) if *before == sha256 => return Ok(sha256),
        Some(_) => {
            let remedy = "form one cluster from one directory; this node keeps the bundle it has";
            return Err(Problem::new("this node has another founding bundle already", format!("POST {PATH}"), remedy));
        }
        None => {}
    }
    keep(&secrets).map_err(|error| {
        Problem::new(format!("the bundle cannot be kept: {error:#}"), "/var/lib/pgkiln", "make room or check the disk")
    })?;
    *kept = Some(sha256.clone());
    Ok(sha256)
}

fn json(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(serde_json::to_vec(value).unwrap_or_default())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The last answer of a connection.
fn last(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
