//! The operator's end of one connection to a voter.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use firstboot::form::{self, Binding, Bundle, Shown};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use super::pki::Authority;

/// Answers are small.
const ANSWER_BYTES: usize = 16 * 1024;

/// Who asks.
pub(super) struct Operator {
    config: Arc<ClientConfig>,
    roots: Arc<WebPkiServerVerifier>,
    cluster: Uuid,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    /// An agent of the cluster, in the slot that was asked for.
    Agent,
    /// Anybody: what it proves over this session is all there is.
    Unknown {
        /// SHA-256 of its public key.
        key_sha256: String,
    },
}

/// A connection that can be asked something.
pub(super) struct Session {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) binding: Binding,
    pub(super) peer: Peer,
}

impl Operator {
    /// With a certificate that the root has signed for this run.
    pub(super) fn new(root: &str, own: Authority, cluster: Uuid) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).context("reading a certificate");
        let root = certificate(root)?;
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).context("reading the operator's key")?;
        let mut store = RootCertStore::empty();
        store.add(root.clone())?;
        let roots = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone()).build()?;
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody { provider }))
            .with_client_auth_cert(vec![certificate(&own.certificate)?, root], key)?;
        Ok(Self { config: Arc::new(config), roots, cluster })
    }

    /// Whether a chain is that of an agent of the cluster in `slot`.
    fn is_agent(&self, chain: &[CertificateDer<'_>], slot: &ServerName<'_>) -> bool {
        let Some((leaf, others)) = chain.split_first() else { return false };
        let verified = self.roots.verify_server_cert(leaf, others, slot, &[], UnixTime::now());
        verified.is_ok() && firstboot::pki::is_agent(leaf, self.cluster)
    }
}

/// Connects to whoever is there.
pub(super) async fn connect(operator: &Operator, slot: &str, address: SocketAddr) -> anyhow::Result<Session> {
    let name = ServerName::try_from(slot.to_owned()).context("the slot as a name")?;
    let stream = TcpStream::connect(address).await.map_err(|error| anyhow::anyhow!("{}", plain(&error)))?;
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(operator.config.clone()).connect(name.clone(), stream).await;
    let stream = stream.map_err(|error| anyhow::anyhow!("TLS: {}", plain(&error)))?;
    let connection = stream.get_ref().1;
    let chain = connection.peer_certificates().context("a server without certificate")?;
    let peer = match operator.is_agent(chain, &name) {
        true => Peer::Agent,
        false => Peer::Unknown { key_sha256: firstboot::pki::key_sha256(&chain[0])? },
    };
    let binding = Binding::of(connection, operator.cluster, slot)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.context("speaking HTTP")?;
    // Its errors are those of the requests.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Session { sender, binding, peer })
}

fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// What the voter says about itself.
pub(super) async fn ask(sender: &mut SendRequest<Full<Bytes>>) -> anyhow::Result<Shown> {
    let (status, body) = send(sender, Method::GET, Vec::new()).await?;
    anyhow::ensure!(status == StatusCode::OK, "it says {status}: {}", String::from_utf8_lossy(&body).trim());
    serde_json::from_slice(&body).context("an answer of another version")
}

/// Brings the bundle; a refusal is an answer.
pub(super) async fn bring(
    sender: &mut SendRequest<Full<Bytes>>,
    bundle: &Bundle,
) -> anyhow::Result<Result<Shown, firstboot::problem::Problem>> {
    let (status, body) = send(sender, Method::POST, serde_json::to_vec(bundle)?).await?;
    if status == StatusCode::OK {
        return Ok(Ok(serde_json::from_slice(&body).context("an answer of another version")?));
    }
    match serde_json::from_slice(&body) {
        Ok(problem) => Ok(Err(problem)),
        Err(_) => anyhow::bail!("it says {status}: {}", String::from_utf8_lossy(&body).trim()),
    }
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    body: Vec<u8>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let request = Request::builder().method(method).uri(form::PATH).header(header::HOST, "voter");
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await.context("asking")?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
    Ok((status, body.map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?.to_bytes()))
}

/// Believes nobody and refuses nobody: who it is, [`Operator::is_agent`] and the proof say, before anything is sent.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    firstboot::checks_signatures!(provider);
}
