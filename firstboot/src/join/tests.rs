//! Joining over real TLS connections on 127.0.0.1; only etcd is stood in for, by a map with the same promise.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::net::TcpListener;

use super::*;
use crate::fixtures::{SPEC, section_of};
use crate::layout::Layout;
use crate::pki::{self, Clients, Leaf, TestCa};
use crate::problem::Problem;
use crate::server::{self, Endpoints};
use crate::spec::{Intermediate, Join, Joiner, NodeSpec, Password, Secrets, pem_sha256};
use crate::status::Board;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What all voters see.
#[derive(Debug, Clone, Default)]
struct Shared {
    bound: Arc<Mutex<BTreeMap<String, Bound>>>,
    users: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Registry for Shared {
    async fn bind(&self, slot: &str, wanted: &Bound) -> Result<Bound> {
        let mut bound = self.bound.lock().unwrap();
        let now = bound.entry(slot.to_owned()).or_insert_with(|| wanted.clone());
        if now.issue < wanted.issue {
            *now = wanted.clone();
        }
        Ok(now.clone())
    }

    async fn bound(&self, slot: &str) -> Result<Option<Bound>> {
        Ok(self.bound.lock().unwrap().get(slot).cloned())
    }

    async fn user(&self, slot: &str, _: Role, password: &Secret) -> Result<()> {
        self.users.lock().unwrap().insert(slot.to_owned(), password.expose().clone());
        Ok(())
    }
}

struct Cluster {
    ca: TestCa,
    shared: Shared,
    voters: BTreeMap<String, SocketAddr>,
    dirs: Vec<tempfile::TempDir>,
}

fn token(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

impl Cluster {
    fn new() -> Self {
        Self { ca: TestCa::new(), shared: Shared::default(), voters: BTreeMap::new(), dirs: Vec::new() }
    }

    fn spec(&self, slot: &str) -> NodeSpec {
        let mut spec = NodeSpec::from_text(&section_of(slot), "user-data").unwrap();
        spec.cluster.ca_sha256 = pem_sha256(&self.ca.root).unwrap();
        spec.founding = None;
        spec
    }

    fn secrets(&self, joiner: Joiner) -> Secrets {
        let founding = NodeSpec::from_text(SPEC, "x").unwrap().founding.unwrap();
        let intermediate = Intermediate { cert: self.ca.intermediate.clone(), key: token(&self.ca.key) };
        let joiners = BTreeMap::from([("px-1".to_owned(), joiner.clone()), ("bkp-1".to_owned(), joiner)]);
        Secrets { ca: self.ca.root.clone(), intermediate: Some(intermediate), joiners, ..Secrets::from(founding) }
    }

    /// A voter that serves; `None`: its etcd is not ready.
    async fn voter(&mut self, slot: &str, issued: Option<(&str, u32)>) {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("ca.pem"), &self.ca.root).unwrap();
        let spec = self.spec(slot);
        pki::ensure(dir.path(), &Leaf::agent(slot, LOCAL, spec.cluster.uuid), &self.ca.signer()).unwrap();
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        self.voters.insert(slot.to_owned(), listener.local_addr().unwrap());
        let admissions: Arc<Desk<Shared>> = Arc::default();
        if let Some((token, issue)) = issued {
            let secrets = self.secrets(Joiner { token_sha256: sha256(token.as_bytes()), issue });
            let admission = Admission { spec: spec.clone(), secrets, registry: self.shared.clone() };
            assert!(admissions.set(admission).is_ok());
        }
        let tls = pki::server(dir.path(), "agent", Clients::Joining).unwrap();
        let endpoints = Endpoints {
            cluster: spec.cluster.uuid,
            bundle: String::new(),
            desk: Arc::default(),
            admissions,
            board: Board::new(None),
        };
        tokio::spawn(server::serve(listener, tls, endpoints));
        self.dirs.push(dir);
    }

    /// Three voters that expect `px-1` with `secret-token`.
    async fn three() -> Self {
        let mut cluster = Self::new();
        for slot in ["pg-1", "pg-2", "pg-3"] {
            cluster.voter(slot, Some(("px-1.secret-token", 1))).await;
        }
        cluster
    }

    async fn ask(&self, disk: &Path, spec: &NodeSpec) -> Result<Joined> {
        ask(&Layout::new(disk), spec, &self.voters, &Board::new(None)).await
    }

    async fn joiner(&self, disk: &Path, token_text: &str) -> Result<Joined> {
        let spec = NodeSpec { join: Some(Join { token: token(token_text) }), ..self.spec("px-1") };
        self.ask(disk, &spec).await
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn refusal(result: Result<Joined>) -> Problem {
    result.unwrap_err().downcast::<Problem>().unwrap()
}

#[test]
fn a_machine_is_let_in_again_and_another_one_is_not() {
    block_on(async {
        let cluster = Cluster::three().await;
        let (disk, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = cluster.joiner(disk.path(), "px-1.secret-token").await.unwrap();
        let kept = Layout::new(disk.path());
        let uuid = cluster.spec("px-1").cluster.uuid;
        pki::client(&kept.pki(), "agent", Some(uuid)).unwrap();
        assert!(kept.pki().join("haproxy.pem").exists() && !kept.pki().join("intermediate.key").exists());
        let own = first.secrets.passwords.get(Password::EtcdNode).unwrap();
        assert_eq!(cluster.shared.users.lock().unwrap()["px-1"], *own.expose());
        assert!(first.secrets.passwords.get(Password::Superuser).is_err() && first.secrets.roles.is_empty());
        assert!(first.secrets.intermediate.is_none() && first.secrets.joiners.is_empty());
        // Killed before the answer was stored: the same keys ask again.
        fs_err::remove_file(kept.pki().join("agent.pem")).unwrap();
        assert_eq!(cluster.joiner(disk.path(), "px-1.secret-token").await.unwrap(), first);

        let problem = refusal(cluster.joiner(other.path(), "px-1.secret-token").await);
        assert!(problem.what.contains("already used by another machine"), "{problem}");
        assert!(problem.remedy.contains("pgkiln cluster token px-1"), "{problem}");
        assert!(!Layout::new(other.path()).pki().join("agent.pem").exists());
    });
}

#[test]
fn wrong_tokens_places_and_roles_are_refused_without_a_trace() {
    block_on(async {
        let cluster = Cluster::three().await;
        let disk = tempfile::tempdir().unwrap();
        for wrong in ["px-1.wrong", "px-1.", "", "bkp-1.secret-token"] {
            let problem = refusal(cluster.joiner(disk.path(), wrong).await);
            assert!(problem.what.contains("the token is not the one of slot `px-1`"), "{problem}");
            assert!(!problem.to_string().contains("secret-token"), "{problem}");
        }
        let right = NodeSpec { join: Some(Join { token: token("px-1.secret-token") }), ..cluster.spec("px-1") };
        // Slots that do not exist and voters look like any wrong token.
        for slot in ["px-2", "pg-1"] {
            let spec = NodeSpec { slot: slot.to_owned(), ..right.clone() };
            let problem = refusal(cluster.ask(disk.path(), &spec).await);
            assert!(problem.what.contains("the token is not the one of"), "{problem}");
        }
        let moved = NodeSpec { address: Some("10.0.0.99/24".parse().unwrap()), ..right.clone() };
        let problem = refusal(cluster.ask(disk.path(), &moved).await);
        assert!(problem.what.contains("at 10.0.0.21 for the voters, the joining node says"), "{problem}");
        let database = NodeSpec { role: Role::Database, ..right };
        let problem = refusal(cluster.ask(disk.path(), &database).await);
        assert!(problem.what.contains("role `proxy`"), "{problem}");
        assert!(cluster.shared.bound.lock().unwrap().is_empty() && cluster.shared.users.lock().unwrap().is_empty());
    });
}

#[test]
fn a_token_issued_anew_replaces_the_machine_and_outdates_the_old_one() {
    block_on(async {
        let cluster = Cluster::three().await;
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        cluster.joiner(old.path(), "px-1.secret-token").await.unwrap();
        // Re-seeded voters know the second token; one of three has not been yet.
        let mut reseeded = Cluster { ca: cluster.ca, shared: cluster.shared, ..Cluster::new() };
        reseeded.voter("pg-1", Some(("px-1.secret-token", 1))).await;
        reseeded.voter("pg-2", Some(("px-1.again", 2))).await;
        reseeded.voter("pg-3", Some(("px-1.again", 2))).await;
        reseeded.joiner(new.path(), "px-1.again").await.unwrap();
        let problem = refusal(reseeded.joiner(old.path(), "px-1.secret-token").await);
        assert!(problem.what.contains("outdated") || problem.what.contains("is not the one"), "{problem}");
        let disk = tempfile::tempdir().unwrap();
        let problem = refusal(reseeded.joiner(disk.path(), "px-1.again").await);
        assert!(problem.what.contains("already used"), "{problem}");
    });
}

#[test]
fn certificates_are_renewed_for_the_machine_that_joined_and_for_nobody_else() {
    block_on(async {
        let cluster = Cluster::three().await;
        let (disk, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (spec, uuid) = (cluster.spec("px-1"), cluster.spec("px-1").cluster.uuid);
        cluster.joiner(disk.path(), "px-1.secret-token").await.unwrap();
        let layout = Layout::new(disk.path());
        let read = |name: &str| fs_err::read_to_string(layout.pki().join(name)).unwrap();
        let early = renew(&layout, &spec, &cluster.voters).await.unwrap_err().to_string();
        assert!(early.contains("pgkiln cluster renew"), "nothing to be won: {early}");
        let in_eighty_days = std::time::SystemTime::now() + std::time::Duration::from_hours(80 * 24);
        let ten_days = cluster.ca.signer().with_lifetime(std::time::Duration::from_hours(240));
        for leaf in pki::leaves_of(&spec, "px-1", Role::Proxy, spec.ip().unwrap()) {
            fs_err::remove_file(layout.pki().join(format!("{}.pem", leaf.name))).unwrap();
            pki::ensure(&layout.pki(), &leaf, &ten_days).unwrap();
        }
        let before = (read("agent.pem"), read("haproxy.pem"), read("agent.key"), read("haproxy.key"));
        renew(&layout, &spec, &cluster.voters).await.unwrap();
        let after = (read("agent.pem"), read("haproxy.pem"), read("agent.key"), read("haproxy.key"));
        assert!(before.0 != after.0 && before.1 != after.1, "new certificates");
        assert!(before.2 == after.2 && before.3 == after.3, "the same keys");
        pki::client(&layout.pki(), "agent", Some(uuid)).unwrap();

        // Killed when only some of them were stored.
        fs_err::write(layout.pki().join("haproxy.pem"), &before.1).unwrap();
        renew(&layout, &spec, &cluster.voters).await.unwrap();
        assert!(first_end(&layout, &pki::leaves(&spec, spec.ip().unwrap())).unwrap() > in_eighty_days);

        // Another agent of the cluster, whose certificate is as good as any.
        let stranger = Layout::new(other.path());
        fs_err::create_dir_all(stranger.pki()).unwrap();
        fs_err::write(stranger.pki().join("ca.pem"), &cluster.ca.root).unwrap();
        for leaf in pki::leaves_of(&spec, "px-1", Role::Proxy, LOCAL) {
            pki::ensure(&stranger.pki(), &leaf, &cluster.ca.signer()).unwrap();
        }
        let refused = renew(&stranger, &spec, &cluster.voters).await.unwrap_err().to_string();
        assert!(refused.contains("bound to another machine"), "{refused}");
        // One that holds the right certificate asks for others' names, or with a key that it does not prove to hold.
        for slot in ["bkp-1", "pg-1", "px-9"] {
            let spec = NodeSpec { slot: slot.to_owned(), ..spec.clone() };
            let refused = renew(&layout, &spec, &cluster.voters).await.unwrap_err().to_string();
            assert!(refused.contains("bound to another machine") || refused.contains("without a vote"), "{refused}");
        }
        let desk = Admission {
            spec: cluster.spec("pg-1"),
            secrets: cluster.secrets(Joiner { token_sha256: String::new(), issue: 1 }),
            registry: cluster.shared.clone(),
        };
        let keys = |layout: &Layout| {
            let key = |name: &str| (name.to_owned(), pki::public_key(&layout.pki(), name).unwrap());
            ["agent", "haproxy"].map(key).into()
        };
        let proven = cluster.shared.bound.lock().unwrap()["px-1"].key_sha256.clone();
        let request = Renewal { schema: 1, slot: "px-1".to_owned(), keys: keys(&layout) };
        assert!(desk.renew(&request, &proven).await.is_ok());
        let swapped = Renewal { keys: keys(&stranger), ..request.clone() };
        assert!(matches!(desk.renew(&swapped, &proven).await, Err(Refused::No(_))), "another key than it holds");
        assert!(matches!(desk.renew(&Renewal { schema: 2, ..request }, &proven).await, Err(Refused::No(_))));
    });
}

#[test]
fn only_the_pinned_cluster_is_asked() {
    block_on(async {
        let mut cluster = Cluster::three().await;
        let disk = tempfile::tempdir().unwrap();
        let waits = async |cluster: &Cluster| {
            let limit = std::time::Duration::from_millis(700);
            let board = Board::new(None);
            let spec = NodeSpec { join: Some(Join { token: token("px-1.secret-token") }), ..cluster.spec("px-1") };
            let layout = Layout::new(disk.path());
            let asked = tokio::time::timeout(limit, ask(&layout, &spec, &cluster.voters, &board)).await;
            assert!(asked.is_err(), "{asked:?}");
            board.get().waiting_for.unwrap()
        };
        // Other roots, then other names, then nobody.
        let stranger = Cluster { ca: TestCa::new(), voters: cluster.voters.clone(), ..Cluster::new() };
        assert!(waits(&stranger).await.contains("do not lead to the root ca"), "{}", waits(&stranger).await);
        let swapped = [("pg-1", "pg-2"), ("pg-2", "pg-3"), ("pg-3", "pg-1")];
        let voters = swapped.map(|(name, real)| (name.to_owned(), cluster.voters[real])).into();
        let right = std::mem::replace(&mut cluster.voters, voters);
        assert!(waits(&cluster).await.contains("pg-1"), "{}", waits(&cluster).await);
        let nobody = SocketAddr::new(LOCAL, 1);
        cluster.voters = right.keys().map(|slot| (slot.clone(), nobody)).collect();
        assert!(waits(&cluster).await.contains("connection refused"), "{}", waits(&cluster).await);
        assert!(cluster.shared.bound.lock().unwrap().is_empty());
    });
}

#[test]
fn voters_without_quorum_are_waited_for_and_one_alone_cannot_refuse() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.voter("pg-1", Some(("px-1.other", 1))).await;
        cluster.voter("pg-2", None).await;
        let late = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap();
        cluster.voters.insert("pg-3".to_owned(), late);
        let disk = tempfile::tempdir().unwrap();
        let board = Board::new(None);
        let spec = NodeSpec { join: Some(Join { token: token("px-1.secret-token") }), ..cluster.spec("px-1") };
        let layout = Layout::new(disk.path());
        let limit = std::time::Duration::from_millis(700);
        let asked = tokio::time::timeout(limit, ask(&layout, &spec, &cluster.voters, &board)).await;
        assert!(asked.is_err(), "{asked:?}");
        let why = board.get().waiting_for.unwrap();
        for part in ["pg-1 refuses: the token is not", "pg-2", "etcd is not ready", "pg-3", "connection refused"] {
            assert!(why.contains(part), "{part}: {why}");
        }
    });
}

#[test]
fn whoever_has_no_certificate_may_join_and_nothing_else() {
    block_on(async {
        let cluster = Cluster::three().await;
        let spec = cluster.spec("px-1");
        let (slot, address) = cluster.voters.first_key_value().unwrap();
        let http = || {
            let tls = pin::client(&spec.cluster.ca_sha256, spec.cluster.uuid).unwrap();
            let builder = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls);
            builder.resolve(slot, *address).build().unwrap()
        };
        let url = |path: &str| format!("https://{slot}:{}{path}", address.port());
        for path in ["/v1/intent", "/v1/status", PATH, RENEW_PATH, "/"] {
            assert_eq!(http().get(url(path)).send().await.unwrap().status(), 403, "{path}");
        }
        let request = Renewal { schema: 1, slot: "px-1".to_owned(), keys: BTreeMap::new() };
        assert_eq!(http().post(url(RENEW_PATH)).json(&request).send().await.unwrap().status(), 403);
        let post = async |body: Vec<u8>| http().post(url(PATH)).body(body).send().await.map(|r| r.status().as_u16());
        assert_eq!(post(b"{}".to_vec()).await.unwrap(), 400);
        assert_eq!(post(b"\xff\x00".to_vec()).await.unwrap(), 400);
        // The connection may be gone before the answer is read.
        let large = post(vec![b' '; 4 << 20]).await;
        assert!(large.as_ref().map_or(true, |status| *status == 413), "{large:?}");
        // Many of them at once do not keep agents out.
        let mut idle = Vec::new();
        for _ in 0..20 {
            let client = http();
            let _ = client.get(url("/")).send().await;
            idle.push(client);
        }
        let dir = cluster.dirs[1].path();
        let tls = pki::client(dir, "agent", Some(spec.cluster.uuid)).unwrap();
        let agent = reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).resolve(slot, *address);
        let status = agent.build().unwrap().get(url("/v1/status")).send().await.unwrap().status();
        assert_eq!(status, 200);
    });
}
