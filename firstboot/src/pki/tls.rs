//! rustls configurations for mutual TLS under the cluster's root CA, and the question "is this peer an agent?".

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use uuid::Uuid;

use super::names;

/// Client side: presents `<dir>/<name>.{pem,key}`, trusts `<dir>/ca.pem` only, and checks the name it connects to
/// (a slot). With `agents_of`, the server must in addition be an agent of that cluster.
pub fn client(dir: &Path, name: &str, agents_of: Option<Uuid>) -> Result<ClientConfig> {
    let provider = provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(dir)?), provider.clone())
        .build()
        .context("preparing certificate checks")?;
    let (chain, key) = identity(dir, name)?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match agents_of {
        None => builder.with_webpki_verifier(verifier),
        Some(cluster) => {
            let agent = ServerName::try_from(names::agent(cluster))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AgentVerifier { inner: verifier, agent }))
        }
    };
    builder.with_client_auth_cert(chain, key).with_context(|| format!("using certificate `{name}`"))
}

/// Whom a server lets finish the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Only those with a certificate of this cluster.
    Known,
    /// Also those without any; what they may ask is the server's business. The chain ends with the root then: they
    /// know its hash only.
    Joining,
}

/// Server side: presents `<dir>/<name>.{pem,key}`; a client's certificate must be one under `<dir>/ca.pem`.
pub fn server(dir: &Path, name: &str, clients: Clients) -> Result<ServerConfig> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(dir)?), provider.clone());
    let (mut chain, key) = identity(dir, name)?;
    let verifier = match clients {
        Clients::Known => verifier,
        Clients::Joining => {
            let root = CertificateDer::from_pem_slice(&fs_err::read(dir.join("ca.pem"))?);
            chain.push(root.context("reading ca.pem")?);
            verifier.allow_unauthenticated()
        }
    };
    let verifier = verifier.build().context("preparing certificate checks")?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .with_context(|| format!("using certificate `{name}`"))
}

/// Whether a certificate (already verified against the root) names an agent of `cluster`.
pub fn is_agent(cert: &CertificateDer<'_>, cluster: Uuid) -> bool {
    let Ok(agent) = ServerName::try_from(names::agent(cluster)) else { return false };
    ParsedCertificate::try_from(cert).is_ok_and(|cert| verify_server_name(&cert, &agent).is_ok())
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(dir: &Path) -> Result<RootCertStore> {
    let path = dir.join("ca.pem");
    let pem = fs_err::read(&path)?;
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        let cert = cert.with_context(|| format!("reading {}", path.display()))?;
        store.add(cert).with_context(|| format!("using {}", path.display()))?;
    }
    anyhow::ensure!(!store.is_empty(), "{} contains no certificate", path.display());
    Ok(store)
}

fn identity(dir: &Path, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let (cert_path, key_path) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    let chain = CertificateDer::pem_slice_iter(&fs_err::read(&cert_path)?)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("reading {}", cert_path.display()))?;
    let key = PrivateKeyDer::from_pem_slice(&fs_err::read(&key_path)?)
        .with_context(|| format!("reading {}", key_path.display()))?;
    Ok((chain, key))
}

/// The usual checks, then: the certificate must also carry the agents' name.
#[derive(Debug)]
struct AgentVerifier {
    inner: Arc<WebPkiServerVerifier>,
    agent: ServerName<'static>,
}

impl ServerCertVerifier for AgentVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.agent)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Leaf, TestCa, ensure};

    #[test]
    fn only_agents_of_this_cluster_are_agents() {
        let (ca, dir, uuid) = (TestCa::new(), tempfile::tempdir().unwrap(), Uuid::new_v4());
        let ip = "10.0.0.11".parse().unwrap();
        fs_err::write(dir.path().join("ca.pem"), &ca.root).unwrap();
        for leaf in [Leaf::agent("pg-1", ip, uuid), Leaf::etcd("pg-1", ip, uuid)] {
            ensure(dir.path(), &leaf, &ca.signer()).unwrap();
        }
        let leaf_of = |name| identity(dir.path(), name).unwrap().0.remove(0);
        assert!(is_agent(&leaf_of("agent"), uuid));
        assert!(!is_agent(&leaf_of("agent"), Uuid::new_v4()));
        assert!(!is_agent(&leaf_of("etcd"), uuid));
        client(dir.path(), "agent", Some(uuid)).unwrap();
        server(dir.path(), "agent", Clients::Known).unwrap();
    }
}
