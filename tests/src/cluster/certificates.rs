//! The nodes' certificates from outside: which one a port serves, and ones that are near their end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use firstboot::pki::{self, Signer};
use rustls::ClientConnection;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::TestCluster;

/// Where nodes keep them.
const KEPT: &str = "/var/lib/pgkiln/pki";
/// `SSLRequest` (PostgreSQL documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// For one handshake.
const LIMIT: Duration = Duration::from_secs(5);

impl TestCluster {
    /// Signs the certificates of a node again so that they end in `lifetime`, and puts them where its agent keeps them.
    pub fn age_certificates(&self, slot: &str, lifetime: Duration) -> anyhow::Result<()> {
        let pki_dir = self.cluster.dir().join("pki");
        let read = |name: &str| fs_err::read_to_string(pki_dir.join(name));
        let signer = Signer::new(&read("intermediate.pem")?, &read("intermediate.key")?)?.with_lifetime(lifetime);
        let node = self.cluster.definition.node(slot).context("no such slot")?;
        let spec = self.cluster.definition.node_spec(node, "");
        for leaf in pki::leaves(&spec, node.address) {
            let key = self.output(slot, &["cat", &format!("{KEPT}/{}.key", leaf.name)])?;
            let chain = signer.sign(&leaf, &rcgen::KeyPair::from_pem(&key)?)?;
            let write = format!("cat >{KEPT}/{}.pem", leaf.name);
            let done = self.lab.exec_with_input(slot, ["sh", "-c", &write], chain)?;
            ensure!(done.status.success(), "{slot}: writing {} failed", leaf.name);
        }
        Ok(())
    }

    /// The certificate that a node keeps under `name`.
    pub fn kept_certificate(&self, slot: &str, name: &str) -> anyhow::Result<CertificateDer<'static>> {
        let pem = self.output(slot, &["cat", &format!("{KEPT}/{name}.pem")])?;
        CertificateDer::from_pem_slice(pem.as_bytes()).context("reading a kept certificate")
    }

    /// TLS as a client without a certificate speaks it, which trusts the cluster's root and expects `slot`.
    pub fn tls(&self, slot: &str) -> anyhow::Result<ClientConnection> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.cluster.ca_pem_path())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(ClientConnection::new(Arc::new(config), ServerName::try_from(slot.to_owned())?)?)
    }

    /// The certificate that `port` of a node serves; it must be one of the cluster's and name the slot.
    pub fn served_certificate(&self, slot: &str, port: u16) -> anyhow::Result<CertificateDer<'static>> {
        let mut connection = self.tls(slot)?;
        let mut socket = TcpStream::connect(("127.0.0.1", self.port(slot, port)?))?;
        socket.set_read_timeout(Some(LIMIT))?;
        if port == 5432 {
            socket.write_all(&SSL_REQUEST)?;
            let mut answer = [0];
            socket.read_exact(&mut answer)?;
            ensure!(answer == *b"S", "{slot}: PostgreSQL speaks no TLS");
        }
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).with_context(|| format!("{slot}:{port}"))?;
        }
        let chain = connection.peer_certificates().context("no certificate")?;
        Ok(chain.first().context("an empty chain")?.clone().into_owned())
    }

    /// When a certificate that a node keeps ends.
    pub fn days_left(&self, slot: &str, name: &str) -> anyhow::Result<u64> {
        let ends = pki::ends(&self.kept_certificate(slot, name)?)?;
        Ok(ends.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400)
    }
}
