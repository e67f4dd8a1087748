//! Against a real HAProxy on loopback addresses, with a Patroni that is only its TLS listener. Needs the image's HAProxy
//! in `PGKILN_TEST_HAPROXY`; elsewhere these are ignored by name, not passed.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::servers::{BACKENDS, Command, Registry, Server, desired, diff};
use super::*;
use crate::etcd::tests::block_on;
use crate::fixtures;
use crate::pki::{self, Leaf, TestCa};

/// A HAProxy with everything around it.
struct Haproxy {
    process: Option<Child>,
    dir: tempfile::TempDir,
    socket: Socket,
    ca: TestCa,
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Haproxy {
    fn new() -> Self {
        let (ca, dir) = (TestCa::new(), tempfile::tempdir().unwrap());
        fs_err::write(dir.path().join("ca.pem"), &ca.root).unwrap();
        let preset = preset::of(crate::spec::Rto::Norm);
        let socket = Socket::new(dir.path().join("admin.sock"), preset, &dir.path().join("ca.pem"));
        Self { process: None, dir, socket, ca }
    }

    /// The node's own configuration, with the paths of this test and ports of its own.
    fn configure(&self, servers: &Servers) {
        let here = |name: &str| self.dir.path().join(name).display().to_string();
        let spec = fixtures::desired().accepted.spec;
        let text = haproxy::config(&spec, servers);
        let text = text.replace("/run/pgkiln/pki/haproxy/ca.pem", &here("ca.pem"));
        let text =
            text.replace(haproxy::STATE_FILE, &here("states")).replace("/run/haproxy/admin.sock", &here("admin.sock"));
        let text = text.replace("user haproxy group haproxy mode", "mode").replace("    user haproxy\n", "");
        let text = text.replace("    group haproxy\n", "").replace(":::5000 v4v6", "127.71.0.1:5000");
        let text = text.replace(":::5001 v4v6", "127.71.0.1:5001").replace("127.0.0.1:7000", "127.71.0.1:7000");
        fs_err::write(self.dir.path().join("haproxy.cfg"), text).unwrap();
    }

    /// The image's program runs with the image's libraries, whatever this host has. Started again it takes over from the
    /// one that runs, as a reload's new worker does.
    #[expect(clippy::disallowed_methods, reason = "a server for the time of one test, not a tool run to its end")]
    fn start(&mut self) {
        let program = std::env::var_os("PGKILN_TEST_HAPROXY").map_or_else(|| "haproxy".into(), PathBuf::from);
        let root = program.ancestors().nth(3).unwrap_or(std::path::Path::new("/"));
        let loader = root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
        let mut command = if loader.exists() && root != std::path::Path::new("/") {
            let mut command = std::process::Command::new(&loader);
            command.arg("--library-path").arg(loader.parent().unwrap()).arg(&program);
            command
        } else {
            std::process::Command::new(&program)
        };
        let log = fs_err::File::create(self.dir.path().join("log")).unwrap();
        command.arg("-db").arg("-f").arg(self.dir.path().join("haproxy.cfg")).stdout(Stdio::null());
        let old = self.process.take();
        if let Some(old) = &old {
            command.arg("-x").arg(self.dir.path().join("admin.sock")).arg("-sf").arg(old.id().to_string());
        }
        self.process = Some(command.stderr(log.into_file()).spawn().expect("haproxy in $PGKILN_TEST_HAPROXY"));
        if let Some(mut old) = old {
            let _ = old.wait();
        }
    }

    async fn until(&self, what: &str, condition: impl Fn(&[Running]) -> bool) -> Vec<Running> {
        let start = Instant::now();
        loop {
            let running = self.socket.running().await;
            if let Ok(running) = &running
                && condition(running)
            {
                return running.clone();
            }
            let log = || fs_err::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < Duration::from_secs(15), "{what}: {running:#?}\n{}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A Patroni of `slot` at `ip` that answers 200 while `leads`.
    async fn patroni(&self, slot: &str, ip: Ipv4Addr, leads: Arc<AtomicBool>) {
        let kept = self.dir.path().join(slot);
        fs_err::create_dir_all(&kept).unwrap();
        pki::ensure(&kept, &Leaf::patroni(slot, ip.into()), &self.ca.signer()).unwrap();
        let chain = CertificateDer::pem_slice_iter(&fs_err::read(kept.join("patroni.pem")).unwrap())
            .collect::<Result<Vec<_>, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(&fs_err::read(kept.join("patroni.key")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind((ip, 8008)).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, leads) = (acceptor.clone(), leads.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let _ = stream.read(&mut [0; 4096]).await;
                    let status = if leads.load(Ordering::Relaxed) { "200 OK" } else { "503 No" };
                    let answer = format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
    }
}

use super::state::Running;

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 71, 0, 10 + n)
}

fn two() -> Servers {
    (1..=2).map(|n| (format!("pg-{n}"), Server { address: address(n).into(), registered: true })).collect()
}

fn up(running: &[Running], backend: &str, slot: &str) -> bool {
    running.iter().any(|server| server.backend == backend && server.name == slot && server.up)
}

#[test]
#[ignore = "needs the image's HAProxy: PGKILN_TEST_HAPROXY=… cargo test -- --ignored"]
fn servers_come_and_go_and_a_reload_keeps_what_is_known() {
    let mut haproxy = Haproxy::new();
    let (mut servers, registry) = (two(), Registry::default());
    haproxy.configure(&servers);
    fs_err::write(haproxy.dir.path().join("states"), haproxy::states(&servers)).unwrap();
    block_on(async {
        let leads = Arc::new(AtomicBool::new(true));
        haproxy.patroni("pg-1", address(1), leads.clone()).await;
        // Somebody else's certificate at the address of pg-2.
        haproxy.patroni("pg-9", address(2), leads.clone()).await;
        haproxy.start();
        // From the first moment that can be seen: nothing is up before a check says so.
        let first = haproxy.until("started", |_| true).await;
        assert!(first.iter().all(|server| !server.up && !server.maintenance), "{first:?}");
        haproxy.until("pg-1 up", |running| up(running, "rw", "pg-1") && up(running, "ro", "pg-1")).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let running = haproxy.socket.running().await.unwrap();
        assert!(!up(&running, "rw", "pg-2"), "a certificate of another slot was accepted");

        for round in 0..20 {
            let third = Server { address: address(3).into(), registered: true };
            servers.insert("pg-3".to_owned(), third);
            for command in diff(&haproxy.socket.running().await.unwrap(), &servers, &registry) {
                haproxy.socket.apply(&command).await.unwrap();
            }
            let running = haproxy.socket.running().await.unwrap();
            assert_eq!(running.len(), 6, "round {round}");
            assert!(!up(&running, "rw", "pg-3"), "a new server is down until it is checked");
            servers.remove("pg-3");
            for command in diff(&running, &servers, &registry) {
                haproxy.socket.apply(&command).await.unwrap();
            }
            assert_eq!(haproxy.socket.running().await.unwrap().len(), 4, "round {round}");
        }

        // A server added at run time serves like the others, and a reload keeps it as it is.
        haproxy.patroni("pg-4", address(4), leads.clone()).await;
        servers.insert("pg-4".to_owned(), Server { address: address(4).into(), registered: true });
        for command in diff(&haproxy.socket.running().await.unwrap(), &servers, &registry) {
            haproxy.socket.apply(&command).await.unwrap();
        }
        haproxy.until("pg-4 up", |running| up(running, "rw", "pg-4")).await;
        haproxy.socket.apply(&Command::Drain("pg-4".to_owned())).await.unwrap();
        haproxy.configure(&servers);
        let states = socket::ask(&haproxy.dir.path().join("admin.sock"), "show servers state").await.unwrap();
        fs_err::write(haproxy.dir.path().join("states"), states + "\n").unwrap();
        haproxy.start();
        let after = haproxy.socket.running().await.unwrap();
        assert!(up(&after, "rw", "pg-1") && up(&after, "rw", "pg-4") && !up(&after, "rw", "pg-2"), "{after:#?}");
        assert!(after.iter().any(|server| server.name == "pg-4" && server.backend == "ro" && server.drained));

        // Its node has stopped and left; one that still serves stays.
        leads.store(false, Ordering::Relaxed);
        haproxy.until("all down", |running| running.iter().all(|server| !server.up)).await;
        let left = Registry { nodes: fixture_nodes(&["pg-1"]), ..Registry::default() };
        let running = haproxy.socket.running().await.unwrap();
        let wanted = desired(&servers, &running, &left);
        assert_eq!(wanted.len(), 1);
        for command in diff(&running, &wanted, &left) {
            haproxy.socket.apply(&command).await.unwrap();
        }
        assert_eq!(haproxy.socket.running().await.unwrap().len(), BACKENDS.len());
    });
}

fn fixture_nodes(slots: &[&str]) -> std::collections::BTreeMap<String, crate::register::Node> {
    let node = |n: u8| crate::register::Node {
        role: "node".to_owned(),
        address: address(n).to_string(),
        image: crate::register::Image { name: "debian-13".into(), version: "1".into(), root_hash: None },
        pgbackrest: None,
        update: None,
        collations: None,
        state: "running".to_owned(),
        since: crate::register::now(),
    };
    slots.iter().map(|slot| ((*slot).to_owned(), node(slot[3..].parse().unwrap()))).collect()
}

#[test]
#[ignore = "needs the image's HAProxy: PGKILN_TEST_HAPROXY=… cargo test -- --ignored"]
fn a_pushed_role_is_there_at_once_and_ends_sessions_to_the_old_primary() {
    let mut haproxy = Haproxy::new();
    let servers: Servers =
        (5..=6).map(|n| (format!("pg-{n}"), Server { address: address(n).into(), registered: true })).collect();
    haproxy.configure(&servers);
    fs_err::write(haproxy.dir.path().join("states"), haproxy::states(&servers)).unwrap();
    block_on(async {
        let (old, new) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        haproxy.patroni("pg-5", address(5), old.clone()).await;
        haproxy.patroni("pg-6", address(6), new.clone()).await;
        // PostgreSQL, as far as a proxy sees it: says who it is and keeps the connection.
        for n in 5..=6 {
            let listener = tokio::net::TcpListener::bind((address(n), 5432)).await.unwrap();
            tokio::spawn(async move {
                let mut open = Vec::new();
                while let Ok((mut stream, _)) = listener.accept().await {
                    let _ = stream.write_all(&[n]).await;
                    open.push(stream);
                }
            });
        }
        haproxy.start();
        // Which of them is down is known a check later.
        haproxy.until("pg-5 alone", |running| up(running, "rw", "pg-5") && !up(running, "rw", "pg-6")).await;
        let connect = async || tokio::net::TcpStream::connect("127.71.0.1:5000").await.unwrap();
        let mut session = connect().await;
        assert_eq!(session.read_u8().await.unwrap(), 5);
        old.store(false, Ordering::Relaxed);
        new.store(true, Ordering::Relaxed);
        let changed = haproxy.socket.lead("pg-6").await.unwrap();
        assert_eq!(changed, ["pg-5 down", "pg-6 up"]);
        let ended = tokio::time::timeout(Duration::from_millis(500), session.read_u8()).await.expect("it goes on");
        assert!(ended.is_err(), "the session to the old primary goes on");
        assert_eq!(connect().await.read_u8().await.unwrap(), 6);
        assert!(haproxy.socket.lead("pg-6").await.unwrap().is_empty());
        // The checks have the last word.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let running = haproxy.socket.running().await.unwrap();
        assert!(up(&running, "rw", "pg-6") && !up(&running, "rw", "pg-5"), "{running:?}");
    });
}
