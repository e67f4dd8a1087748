//! Server, driver and certificates together: founding over real TLS connections on 127.0.0.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::birth::{Agreement, Record, Voters, agree};
use crate::layout::Layout;
use crate::pki::{Leaf, TestCa, ensure};

struct Seed {
    dir: tempfile::TempDir,
    slot: String,
    listener: Option<TcpListener>,
    address: SocketAddr,
}

impl Seed {
    async fn new(ca: &TestCa, slot: &str, cluster: Uuid) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        fs_err::write(dir.path().join("ca.pem"), &ca.root).unwrap();
        for leaf in [Leaf::agent(slot, ip, cluster), Leaf::patroni(slot, ip)] {
            ensure(dir.path(), &leaf, &ca.signer()).unwrap();
        }
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { dir, slot: slot.to_owned(), listener: Some(listener), address }
    }

    fn serve(&mut self, cluster: Uuid, desk: &Arc<Desk>, board: &Board) -> tokio::task::JoinHandle<Result<()>> {
        let tls = pki::server(self.dir.path(), "agent", pki::Clients::Known).unwrap();
        let (desk, board, admissions) = (desk.clone(), board.clone(), Arc::default());
        let endpoints = Endpoints::<Voter> { cluster, bundle: String::new(), desk, admissions, board };
        tokio::spawn(serve(self.listener.take().unwrap(), tls, endpoints))
    }
}

async fn found(mut seed: Seed, cluster: Uuid, peers: BTreeMap<String, SocketAddr>) -> Agreement {
    let (desk, board) = (Arc::new(Desk::default()), Board::new(None));
    let _server = seed.serve(cluster, &desk, &board);
    let layout = Layout::new(seed.dir.path());
    let seeds = ["pg-1", "pg-2", "pg-3"].map(|s| (s.to_owned(), IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let record = Record::new(&seed.slot, Voters { cluster, seeds: seeds.into() });
    let tls = pki::client(seed.dir.path(), "agent", Some(cluster)).unwrap();
    let agreement = agree(&layout, record, false, tls, peers, &desk, &board).await.unwrap();
    // Peers still have to see this stage; the real agent serves for ever.
    tokio::time::sleep(Duration::from_secs(1)).await;
    agreement
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn three_seeds_agree_on_the_same_disks() {
    block_on(async {
        let (ca, cluster) = (TestCa::new(), Uuid::new_v4());
        let mut seeds = Vec::new();
        for slot in ["pg-1", "pg-2", "pg-3"] {
            seeds.push(Seed::new(&ca, slot, cluster).await);
        }
        let all: BTreeMap<_, _> = seeds.iter().map(|s| (s.slot.clone(), s.address)).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (seed, delay) in seeds.into_iter().zip([0, 50, 300]) {
            let mut peers = all.clone();
            peers.remove(&seed.slot);
            tasks.spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                found(seed, cluster, peers).await
            });
        }
        let agreements = tasks.join_all().await;
        let Agreement::Found(disks) = &agreements[0] else { panic!("not founded") };
        assert_eq!(disks.len(), 3);
        assert!(agreements.iter().all(|a| *a == agreements[0]));
    });
}

#[test]
fn strangers_and_garbage_get_nothing() {
    block_on(async {
        let (ca, cluster) = (TestCa::new(), Uuid::new_v4());
        let mut seed = Seed::new(&ca, "pg-1", cluster).await;
        let (desk, board) = (Arc::new(Desk::default()), Board::new(None));
        let _server = seed.serve(cluster, &desk, &board);
        let get = async |dir: &std::path::Path, name, path: &str| {
            let http = reqwest::Client::builder()
                .no_proxy()
                .tls_backend_preconfigured(pki::client(dir, name, Some(cluster)).unwrap())
                .resolve("pg-1", seed.address)
                .build()
                .unwrap();
            let url = format!("https://pg-1:{}{path}", seed.address.port());
            http.get(url).send().await.map(|r| r.status().as_u16())
        };
        let own = seed.dir.path();
        assert_eq!(get(own, "agent", "/v1/intent").await.unwrap(), 503);
        assert_eq!(get(own, "agent", "/v1/status").await.unwrap(), 200);
        assert_eq!(get(own, "agent", "/v1/intent?slot=%00&stage=x&&=").await.unwrap(), 503);
        assert_eq!(get(own, "agent", "/etc/passwd").await.unwrap(), 404);
        assert_eq!(get(own, "patroni", "/v1/status").await.unwrap(), 403, "a service's certificate");
        let other = Seed::new(&TestCa::new(), "pg-2", cluster).await;
        fs_err::copy(own.join("ca.pem"), other.dir.path().join("ca.pem")).unwrap();
        assert!(get(other.dir.path(), "agent", "/v1/status").await.is_err(), "another root");

        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 0, 0, 0], &[0; 4096]] {
            let mut stream = tokio::net::TcpStream::connect(seed.address).await.unwrap();
            let _ = stream.write_all(garbage).await;
            let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0; 64])).await;
        }
        assert_eq!(get(own, "agent", "/v1/status").await.unwrap(), 200, "still serving");
    });
}
