//! Against a real etcd with TLS on 127.0.0.1. Needs `etcd` in `$PATH` (or its path in `PGKILN_TEST_ETCD`): the
//! end-to-end suite runs them with the image's own binary; elsewhere they are ignored by name, not passed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Stdio};
use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::pki::{self, Leaf, TestCa};
use crate::spec::Secret;

/// One etcd of one member, with everything around it.
pub(crate) struct Server {
    process: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "a server for the time of one test, not a tool run to its end")]
    pub(crate) fn start() -> Self {
        let (ca, dir, uuid) = (TestCa::new(), tempfile::tempdir().unwrap(), Uuid::new_v4());
        fs_err::write(dir.path().join("ca.pem"), &ca.root).unwrap();
        for leaf in [Leaf::etcd("pg-1", LOCALHOST.into(), uuid), Leaf::agent("pg-1", LOCALHOST.into(), uuid)] {
            pki::ensure(dir.path(), &leaf, &ca.signer()).unwrap();
        }
        let port = || TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let (address, peer) = (port(), port());
        let path = |name: &str| dir.path().join(name);
        let program = std::env::var_os("PGKILN_TEST_ETCD").unwrap_or_else(|| "etcd".into());
        let process = std::process::Command::new(program)
            .args(["--name", "pg-1", "--bcrypt-cost", "4", "--client-cert-auth", "--log-level", "error"])
            .args(["--listen-client-urls", &format!("https://{address}")])
            .args(["--advertise-client-urls", &format!("https://{address}")])
            .args(["--listen-peer-urls", &format!("https://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("https://{peer}")])
            .args(["--initial-cluster", &format!("pg-1=https://{peer}")])
            .args(["--peer-client-cert-auth".as_ref(), "--data-dir".as_ref(), path("data").as_os_str()])
            .args(["--trusted-ca-file".as_ref(), path("ca.pem").as_os_str()])
            .args(["--cert-file".as_ref(), path("etcd.pem").as_os_str()])
            .args(["--key-file".as_ref(), path("etcd.key").as_os_str()])
            .args(["--peer-trusted-ca-file".as_ref(), path("ca.pem").as_os_str()])
            .args(["--peer-cert-file".as_ref(), path("etcd.pem").as_os_str()])
            .args(["--peer-key-file".as_ref(), path("etcd.key").as_os_str()])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("etcd in $PATH or in $PGKILN_TEST_ETCD");
        Self { process, dir, address }
    }

    pub(crate) fn client(&self, credentials: Option<Credentials>) -> Client {
        // A dead endpoint first: every test also passes through failover.
        let dead = Endpoint { slot: "pg-0".to_owned(), address: (LOCALHOST, 1).into() };
        let live = Endpoint { slot: "pg-1".to_owned(), address: self.address };
        let tls = pki::client(self.dir.path(), "agent", None).unwrap();
        Client::new(vec![dead, live], tls, credentials).unwrap()
    }
}

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) async fn until_up(client: &Client) {
    for _ in 0..100 {
        if client.get("up").await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.get("up").await.expect("etcd did not come up");
}

pub(crate) fn accounts() -> Accounts {
    Accounts {
        root: Secret::new("r00t".to_owned()),
        agent: Secret::new("ag3nt".to_owned()),
        patroni: Secret::new("p4troni".to_owned()),
        proxy: Secret::new("pr0xy".to_owned()),
        patroni_prefix: "/service/orders/".to_owned(),
        agent_prefix: "/pgkiln/x/".to_owned(),
    }
}

#[test]
#[ignore = "needs an etcd binary: PGKILN_TEST_ETCD=… cargo test -- --ignored"]
fn keys_leases_watches_and_members() {
    let server = Server::start();
    block_on(async {
        let client = server.client(None);
        until_up(&client).await;
        assert_eq!(client.create("/a/1", b"one", None).await.unwrap(), Swap::Done);
        let Swap::Lost(Some(found)) = client.create("/a/1", b"two", None).await.unwrap() else {
            panic!("created twice")
        };
        assert_eq!(found.value, b"one");
        assert_eq!(client.replace("/a/1", b"two", None, found.mod_revision).await.unwrap(), Swap::Done);
        assert!(matches!(client.replace("/a/1", b"three", None, found.mod_revision).await.unwrap(), Swap::Lost(_)));

        let mut watcher = client.watch("/a/").await.unwrap();
        let lease = client.grant(15).await.unwrap();
        client.put("/a/2", b"leased", Some(lease)).await.unwrap();
        assert!(client.keep_alive(lease).await.unwrap());
        assert!(client.time_to_live(lease).await.unwrap().unwrap() >= 13);
        assert_eq!(client.list("/a/").await.unwrap().len(), 2);
        client.revoke(lease).await.unwrap();
        client.revoke(lease).await.unwrap();
        assert!(!client.keep_alive(lease).await.unwrap());
        assert_eq!(client.time_to_live(lease).await.unwrap(), None);
        assert_eq!(client.get("/a/2").await.unwrap(), None);
        let put = watcher.next().await.unwrap();
        assert!(!put[0].is_delete() && put[0].kv.lease == lease);
        let gone = watcher.next().await.unwrap();
        assert!(gone[0].is_delete() && gone[0].kv.key == b"/a/2");

        let members = client.members().await.unwrap();
        assert!(members.len() == 1 && members[0].has_started());
        let status = client.status("pg-1").await.unwrap();
        assert!(status.is_leader() && status.member_id() == members[0].id && status.raft_index > 0);
        let learner = client.add_learner_at("pg-1", "https://127.0.0.1:9").await.unwrap();
        assert!(learner.learner && !learner.has_started());
        assert!(matches!(client.promote_at("pg-1", learner.id).await, Err(Error::Refused { .. })));
        client.remove(learner.id).await.unwrap();
        assert!(client.status("pg-0").await.unwrap_err().is_transient());
    });
}

#[test]
#[ignore = "needs an etcd binary: PGKILN_TEST_ETCD=… cargo test -- --ignored"]
fn authentication_from_two_seeds_at_once() {
    let server = Server::start();
    block_on(async {
        let (one, two) = (server.client(None), server.client(None));
        until_up(&one).await;
        let accounts = accounts();
        let (a, b) = tokio::join!(one.ensure_accounts("pg-1", &accounts), two.ensure_accounts("pg-1", &accounts));
        a.unwrap();
        b.unwrap();
        one.ensure_accounts("pg-1", &accounts).await.unwrap();
        assert!(one.get("/pgkiln/x/cluster").await.is_err(), "reading without login");

        let as_user = |user, password| server.client(Some(Credentials::new(user, password)));
        let patroni = as_user("patroni", &accounts.patroni);
        patroni.put("/service/orders/leader", b"pg-1", None).await.unwrap();
        assert!(patroni.put("/pgkiln/x/cluster", b"{}", None).await.is_err());
        let proxy = as_user("proxy", &accounts.proxy);
        assert!(proxy.get("/service/orders/leader").await.unwrap().is_some());
        assert!(proxy.put("/service/orders/leader", b"pg-2", None).await.is_err());
        let agent = as_user("agent", &accounts.agent);
        agent.put("/pgkiln/x/cluster", b"{}", None).await.unwrap();
        let learner = agent.add_learner_at("pg-1", "https://127.0.0.1:9").await.unwrap();
        agent.remove(learner.id).await.unwrap();
        assert!(patroni.add_learner_at("pg-1", "https://127.0.0.1:9").await.is_err());

        // A token etcd does not know any more (restart, expiry) is replaced unseen.
        agent.set_token("forgotten.1");
        agent.get("/pgkiln/x/cluster").await.unwrap();

        let stranger = Accounts { agent: Secret::new("other".to_owned()), ..accounts.clone() };
        let error = one.ensure_accounts("pg-1", &stranger).await.unwrap_err();
        assert!(error.to_string().contains("password of user `agent`"), "{error:#}");
    });
}

impl Client {
    fn set_token(&self, token: &str) {
        self.forget_token();
        *self.token.lock().unwrap() = Some(token.to_owned());
    }
}
