//! The operator's certificate: signed by the root itself, so that a stolen intermediate, which every voter holds, is not
//! enough to bring a bundle.

use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DistinguishedName, RootCertStore};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The name that makes a certificate the operator's.
pub fn operator(cluster: Uuid) -> String {
    format!("form.{cluster}")
}

/// Whether a certificate (already verified against the root) is the operator's.
pub fn is_operator(cert: &CertificateDer<'_>, cluster: Uuid) -> bool {
    let Ok(name) = ServerName::try_from(operator(cluster)) else { return false };
    ParsedCertificate::try_from(cert).is_ok_and(|cert| verify_server_name(&cert, &name).is_ok())
}

/// Lets nobody finish the handshake but the operator of the cluster whose root has a hash.
#[derive(Debug)]
pub struct ClientVerifier {
    sha256: String,
    cluster: Uuid,
    provider: Arc<CryptoProvider>,
}

impl ClientVerifier {
    /// For the root with this hash.
    pub fn new(ca_sha256: &str, cluster: Uuid, provider: Arc<CryptoProvider>) -> Self {
        Self { sha256: ca_sha256.to_ascii_lowercase(), cluster, provider }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let refused = |why: &str| rustls::Error::General(why.to_owned());
        let pinned = |cert: &&CertificateDer<'_>| super::hex(&Sha256::digest(cert)) == self.sha256;
        let root = intermediates.iter().find(pinned).ok_or_else(|| refused("not of this node's cluster"))?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| refused(&error.to_string()))?;
        // Without intermediates: what one of them signed is not the operator's.
        let verified = verifier.verify_client_cert(end_entity, &[], now)?;
        match is_operator(end_entity, self.cluster) {
            true => Ok(verified),
            false => Err(refused("not the operator's certificate")),
        }
    }

    crate::checks_signatures!(provider);
}
