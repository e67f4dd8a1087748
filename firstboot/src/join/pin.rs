//! Trust on the strength of a hash: the server's chain must lead to a certificate with the pinned SHA-256, and its leaf
//! must name the slot asked for and an agent of this cluster.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, RootCertStore};
use uuid::Uuid;

use super::sha256;
use crate::pki::names;

/// A client that has no certificate yet and trusts nothing but the root with this hash.
pub(super) fn client(ca_sha256: &str, cluster: Uuid) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let agent = ServerName::try_from(names::agent(cluster))?;
    let verifier = Pinned { sha256: ca_sha256.to_ascii_lowercase(), agent, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.context("preparing TLS")?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

#[derive(Debug)]
struct Pinned {
    sha256: String,
    agent: ServerName<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = intermediates.iter().find(|certificate| sha256(certificate) == self.sha256);
        let root = root.ok_or_else(|| {
            rustls::Error::General(
                "its certificates do not lead to the root CA named by `cluster.ca_sha256`".to_owned(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, &self.agent)?;
        Ok(verified)
    }

    crate::checks_signatures!(provider);
}
