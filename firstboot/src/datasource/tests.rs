//! A metadata server on 127.0.0.1, and what may be wrong with it.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use fs_err as fs;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;

type Answer = (StatusCode, Vec<u8>);

/// Answers by path, and what was asked.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Mutex<std::collections::BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn with(self, name: &str, status: u16, body: impl Into<Vec<u8>>) -> Self {
        let answer = (StatusCode::from_u16(status).unwrap(), body.into());
        self.answers.lock().unwrap().insert(format!("/seed/{name}"), answer);
        self
    }

    fn whole() -> Self {
        let user_data = crate::fixtures::SPEC.split("founding:").next().unwrap_or_default();
        let indented: String = user_data.lines().map(|line| format!("  {line}\n")).collect();
        let meta = "instance-id: i-1\nlocal-hostname: pg-1\n";
        Self::default().with("meta-data", 200, meta).with(
            "user-data",
            200,
            format!("#cloud-config\npgkiln:\n{indented}"),
        )
    }

    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let path = request.uri().path().to_owned();
                    let found = server.answers.lock().unwrap().get(&path).cloned();
                    server.asked.lock().unwrap().push(path);
                    let (status, body) = found.unwrap_or((StatusCode::NOT_FOUND, Vec::new()));
                    let mut response = Response::new(Full::new(Bytes::from(body)));
                    *response.status_mut() = status;
                    let elsewhere = hyper::header::HeaderValue::from_static("/seed/elsewhere");
                    response.headers_mut().insert(hyper::header::LOCATION, elsewhere);
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        address
    }
}

/// A machine that was told to ask at `address`.
fn told(address: SocketAddr) -> (tempfile::TempDir, Layout) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("proc")).unwrap();
    fs::write(root.path().join("proc/cmdline"), format!("ro ds=nocloud;s=http://{address}/seed\n")).unwrap();
    let layout = Layout::new(root.path());
    (root, layout)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn once(server: &Server) -> Result<Option<Seed>, Problem> {
    let (_root, layout) = told(server.start().await);
    search(&layout, &Board::new(None), Some(Duration::from_millis(300))).await
}

#[test]
fn a_seed_is_found_and_what_is_optional_may_be_missing() {
    block_on(async {
        let server = Server::whole();
        let seed = once(&server).await.unwrap().unwrap();
        assert_eq!((seed.instance_id.as_str(), seed.hostname.as_deref()), ("i-1", Some("pg-1")));
        assert!(seed.network && seed.network_config.is_none() && seed.wipeable.is_none());
        assert!(seed.source.starts_with("NoCloud, http://127.0.0.1:") && seed.place.ends_with("/seed/user-data"));
        assert_eq!(server.asked.lock().unwrap().len(), 4, "a 404 is an answer: {:?}", server.asked);
        let server =
            Server::whole().with("network-config", 200, "version: 2\n").with("vendor-data", 200, "#!/bin/sh\n");
        assert_eq!(once(&server).await.unwrap().unwrap().network_config.as_deref(), Some("version: 2\n"));
    });
}

#[test]
fn a_named_server_that_has_no_seed_is_broken_and_nothing_else_is_looked_at() {
    block_on(async {
        let large = vec![b' '; user_data_limit() + 1];
        for (server, why) in [
            (Server::default(), "no `meta-data` for this machine (404)"),
            (Server::whole().with("user-data", 404, ""), "no `user-data` for this machine (404)"),
            (Server::whole().with("user-data", 503, ""), "503"),
            (Server::whole().with("network-config", 500, ""), "500"),
            (Server::whole().with("user-data", 302, ""), "302"),
            (Server::whole().with("user-data", 200, large), "larger than 1 MiB"),
            (Server::whole().with("meta-data", 200, "instance-id: [\n"), ""),
            (Server::whole().with("meta-data", 200, "hostname: x\n"), "`instance-id` is missing"),
            (Server::whole().with("meta-data", 200, b"\xff".as_slice()), "not UTF-8"),
        ] {
            let (root, layout) = told(server.start().await);
            // A volume that says something else does not count.
            let volume = root.path().join("dev/disk/by-label/cidata");
            fs::create_dir_all(&volume).unwrap();
            fs::write(volume.join("user-data"), "#cloud-config\n").unwrap();
            fs::write(volume.join("meta-data"), "instance-id: other\n").unwrap();
            let problem = search(&layout, &Board::new(None), Some(Duration::from_millis(200))).await.unwrap_err();
            assert!(problem.what.contains(why), "{problem} instead of {why}");
            assert!(!server.asked.lock().unwrap().iter().any(|path| path.ends_with("elsewhere")), "a redirect");
        }
    });
}

fn user_data_limit() -> usize {
    crate::user_data::LIMIT
}

#[test]
fn a_server_that_comes_later_is_waited_for_visibly() {
    block_on(async {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let (_root, layout) = told(nobody);
        let board = Board::new(None);
        let waits = tokio::time::timeout(Duration::from_millis(400), search(&layout, &board, None)).await;
        assert!(waits.is_err(), "a first boot has nothing else to do");
        let said = board.get().waiting_for.unwrap();
        assert!(said.contains(&nobody.to_string()) && said.contains("connection refused"), "{said}");

        let server = Server::default();
        let (_root, layout) = told(server.start().await);
        let seed = tokio::join!(search(&layout, &board, None), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let whole = Server::whole().answers.lock().unwrap().clone();
            server.answers.lock().unwrap().extend(whole);
        })
        .0;
        assert_eq!(seed.unwrap().unwrap().instance_id, "i-1");
        assert_eq!(board.get().waiting_for, None);
    });
}

#[test]
fn whoever_looks_once_may_be_inside_a_runtime() {
    let server = Server::whole();
    // The server needs a thread that is not blocked by the question.
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        block_on(async {
            send.send(server.start().await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let (root, layout) = told(receive.recv().unwrap());
    block_on(async { assert_eq!(find(&layout).unwrap().unwrap().instance_id, "i-1") });
    fs::write(root.path().join("proc/cmdline"), "ds=nocloud;s=http://127.0.0.1:1/ ds=nocloud;s=http://127.0.0.1:2/")
        .unwrap();
    assert!(find(&layout).is_err());
    fs::create_dir_all(root.path().join("dev/disk/by-partlabel/pgkiln-state")).unwrap();
    fs::write(root.path().join("proc/cmdline"), "ds=nocloud;s=ftp://127.0.0.1/").unwrap();
    assert!(find(&layout).is_err(), "what can never be asked is said, with a disk or without");
}
