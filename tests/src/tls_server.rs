//! An https server on loopback with a certificate of its own, for what must not come over plain http.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the server says to a path.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This.
    Content(Vec<u8>),
    /// Look there.
    Redirect(String),
}

/// A running server; it ends when dropped.
#[derive(Debug)]
pub struct TlsServer {
    address: SocketAddr,
    certificate: tempfile::NamedTempFile,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TlsServer {
    /// Answers requests for these paths (with their leading slash); 404 to all others.
    pub fn start(answers: HashMap<String, Answer>) -> anyhow::Result<Self> {
        // Fails only if a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let certificate = tempfile::NamedTempFile::new()?;
        fs_err::write(certificate.path(), made.cert.pem())?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .context("setting up TLS")?;
        let (config, answers) = (Arc::new(config), Arc::new(answers));
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A client that does not like our certificate goes away: that is what some tests are about.
                drop(answer(connection, config.clone(), &answers));
            }
        });
        Ok(Self { address, certificate, stop, thread: Some(thread) })
    }

    /// Base URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate, for whoever should trust it.
    pub fn certificate(&self) -> PathBuf {
        Path::to_owned(self.certificate.path())
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>, answers: &HashMap<String, Answer>) -> anyhow::Result<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    let mut lines = BufReader::new(&mut stream).lines();
    let first = lines.next().context("no request")??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = first.split(' ').nth(1).unwrap_or("/");
    let (status, more, body) = match answers.get(path) {
        Some(Answer::Content(content)) => ("200 OK", String::new(), &content[..]),
        Some(Answer::Redirect(to)) => ("302 Found", format!("Location: {to}\r\n"), &[][..]),
        None => ("404 Not Found", String::new(), &[][..]),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n", body.len())?;
    stream.write_all(body)?;
    stream.conn.send_close_notify();
    Ok(stream.flush()?)
}
