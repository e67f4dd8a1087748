//! A PostgreSQL client as an application would configure it: `sslmode=verify-full` against the cluster's root certificate.
//!
//! The host name that is verified is the cluster's; the address that is dialled is a published port on 127.0.0.1, exactly
//! libpq's `host=orders hostaddr=127.0.0.1 port=…`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use firstboot::spec::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::task::JoinHandle;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection may take: a dead node answers nothing at all.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);

/// Whom to log in as, and what to verify.
#[derive(Clone)]
pub struct Login {
    /// Name in the server's certificate: the cluster's.
    pub host: String,
    /// Database.
    pub database: String,
    /// Role.
    pub role: String,
    /// Its password.
    pub password: Secret,
    tls: MakeRustlsConnect,
}

impl Login {
    /// A login that trusts the root certificate in `ca_pem` and nothing else.
    pub fn new(ca_pem: &Path, host: &str, database: &str, role: &str, password: Secret) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let pem = fs_err::read(ca_pem)?;
        roots.add(CertificateDer::from_pem_slice(&pem).context("reading the root certificate")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            host: host.to_owned(),
            database: database.to_owned(),
            role: role.to_owned(),
            password,
            tls: MakeRustlsConnect::new(tls),
        })
    }

    /// Connects to a port on 127.0.0.1.
    pub async fn connect(&self, port: u16) -> anyhow::Result<Session> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&self.host)
            .hostaddr(IpAddr::V4(Ipv4Addr::LOCALHOST))
            .port(port)
            .dbname(&self.database)
            .user(&self.role)
            .password(self.password.expose())
            .application_name("pgkiln demo")
            .ssl_mode(SslMode::Require);
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(self.tls.clone()));
        let (client, connection) = connecting.await.context("connecting took too long")??;
        // The connection ends by itself when the client is gone; its error reaches the waiting query.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, driver })
    }

    /// What a person types to get the same connection; the password is asked for, or taken from `PGPASSWORD`.
    pub fn psql_command(&self, port: u16, ca_pem: &Path) -> String {
        let (host, database, role) = (&self.host, &self.database, &self.role);
        format!(
            "psql \"host={host} hostaddr=127.0.0.1 port={port} dbname={database} user={role} \
             sslmode=verify-full sslrootcert={}\"",
            ca_pem.display()
        )
    }
}

/// An open connection; dropping it closes it.
pub struct Session {
    /// The connection.
    pub client: tokio_postgres::Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Towards a dead node nothing would ever tell the driver to stop.
        self.driver.abort();
    }
}
