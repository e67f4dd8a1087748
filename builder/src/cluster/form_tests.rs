//! Bringing bundles over real TLS connections on 127.0.0.1: the operator's directory on one side, waiting nodes with disks of
//! their own on the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use firstboot::form::{self, Binding, Bundle, Node};
use firstboot::layout::Layout;
use firstboot::spec::{NodeSpec, Secret, Secrets};
use firstboot::status::Board;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::form_client::{self, Operator};
use super::*;
use crate::progress::Ui;

fn cluster_in(dir: &Path) -> Cluster {
    let options =
        Options { name: "orders".into(), nodes: vec!["10.0.0.11".into()], prefix_len: Some(24), ..Options::default() };
    create(dir, options.definition().unwrap()).unwrap()
}

/// What the seed says that carries no secret.
fn spec_of(cluster: &Cluster) -> NodeSpec {
    let dir = tempfile::tempdir().unwrap();
    cluster.write_seed("pg-1", SeedFormat::Directory, &dir.path().join("seed"), false).unwrap();
    let text = fs_err::read(dir.path().join("seed/user-data")).unwrap();
    firstboot::user_data::read(&text, "user-data").unwrap().spec
}

/// A node that waits; what it keeps.
struct Waiting {
    address: SocketAddr,
    kept: Arc<Mutex<Vec<Secrets>>>,
    board: Board,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn waiting(spec: &NodeSpec, disk: &Path) -> Waiting {
    waiting_at(spec, disk, (Ipv4Addr::LOCALHOST, 0).into()).await
}

async fn waiting_at(spec: &NodeSpec, disk: &Path, address: SocketAddr) -> Waiting {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (kept, board) = (Arc::new(Mutex::new(Vec::new())), Board::new(None));
    let (node, layout) = (Node::new(spec).unwrap(), Layout::new(disk));
    let (keeps, shown) = (kept.clone(), board.clone());
    let task = tokio::spawn(async move {
        let keep = move |secrets: &Secrets| {
            keeps.lock().unwrap().push(secrets.clone());
            Ok(())
        };
        form::wait(&layout, node, listener, &shown, keep).await
    });
    Waiting { address, kept, board, task }
}

async fn bring(cluster: &Cluster, node: &Waiting) -> anyhow::Result<Vec<FormedSlot>> {
    let options = FormOptions { at: [("pg-1".to_owned(), node.address)].into(), patience: Duration::from_millis(300) };
    cluster.form(&options, &Ui::silent("/".into())).await
}

async fn refusal(cluster: &Cluster, node: &Waiting) -> String {
    let refused = bring(cluster, node).await.unwrap_err().to_string();
    assert!(node.kept.lock().unwrap().is_empty(), "{refused}");
    refused
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_voter_is_brought_the_bundle_and_says_until_then_what_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("cluster"));
    block_on(async {
        let node = waiting(&spec_of(&cluster), &dir.path().join("disk")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let said = node.board.get().waiting_for.unwrap();
        assert!(said.contains("`pgkiln cluster form orders`") && said.contains(&node.address.to_string()), "{said}");
        let formed = bring(&cluster, &node).await.unwrap();
        assert_eq!(formed, [FormedSlot { slot: "pg-1".into(), outcome: Outcome::Brought }]);
        tokio::time::timeout(Duration::from_secs(2), node.task).await.unwrap().unwrap().unwrap();
        let expected = Secrets::from(cluster.founding().unwrap());
        assert_eq!(*node.kept.lock().unwrap(), [expected]);
    });
}

#[test]
fn a_token_is_good_for_one_machine_which_may_ask_again() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("cluster"));
    block_on(async {
        // Its power was cut before it had kept anything: the same disk waits again.
        for _ in 0..2 {
            let node = waiting(&spec_of(&cluster), &dir.path().join("disk")).await;
            bring(&cluster, &node).await.unwrap();
        }
        let other = waiting(&spec_of(&cluster), &dir.path().join("other")).await;
        let refused = refusal(&cluster, &other).await;
        assert!(refused.contains("already used by another machine") && refused.contains("cluster token"), "{refused}");

        cluster.issue_token("pg-1").unwrap();
        let refused = refusal(&cluster, &other).await;
        assert!(refused.contains("does not know this slot's token"), "an outdated token: {refused}");
        let other = waiting(&spec_of(&cluster), &dir.path().join("other")).await;
        bring(&cluster, &other).await.unwrap();
    });
}

/// Somebody waits for a voter, a seed turns out to have leaked, and who has it comes first.
#[test]
fn a_token_that_is_issued_anew_while_the_voter_is_waited_for_is_worth_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("cluster"));
    block_on(async {
        let (leaked, place) = (spec_of(&cluster), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let address = place.local_addr().unwrap();
        drop(place);
        let options = FormOptions { at: [("pg-1".to_owned(), address)].into(), patience: Duration::from_secs(30) };
        let ui = Ui::silent("/".into());
        let (forming, late) = tokio::join!(cluster.form(&options, &ui), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            cluster.issue_token("pg-1").unwrap();
            waiting_at(&leaked, &dir.path().join("disk"), address).await
        });
        let refused = forming.unwrap_err().to_string();
        assert!(refused.contains("does not know this slot's token: nothing was sent"), "{refused}");
        assert!(late.kept.lock().unwrap().is_empty());
        late.task.abort();
        // The token is not used up by that: the right machine has it.
        let node = waiting(&spec_of(&cluster), &dir.path().join("another disk")).await;
        assert_eq!(bring(&cluster, &node).await.unwrap()[0].outcome, Outcome::Brought);
    });
}

#[test]
fn nothing_is_sent_to_whoever_does_not_know_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("cluster"));
    block_on(async {
        let mut spec = spec_of(&cluster);
        spec.join.as_mut().unwrap().token = Secret::new("pg-1.guessed".into());
        let node = waiting(&spec, &dir.path().join("disk")).await;
        let refused = refusal(&cluster, &node).await;
        assert!(refused.contains("does not know this slot's token: nothing was sent"), "{refused}");
        // Nobody at all.
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let refused = refusal(&cluster, &Waiting { address: nobody, ..node }).await;
        assert!(refused.contains("connection refused") && refused.contains("--at"), "{refused}");
    });
}

#[test]
fn a_node_listens_to_the_operator_of_its_own_cluster_only() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("cluster"));
    let other = cluster_in(&dir.path().join("other"));
    block_on(async {
        let node = waiting(&spec_of(&cluster), &dir.path().join("disk")).await;
        // Another root, even with the right token.
        fs_err::copy(cluster.dir().join("tokens.toml"), other.dir().join("tokens.toml")).unwrap();
        let refused = refusal(&other, &node).await;
        assert!(refused.contains("does not wait for the bundle"), "{refused}");
        // The right root's intermediate, which every voter has.
        let read = |name: &str| fs_err::read_to_string(cluster.dir().join("pki").join(name)).unwrap();
        let intermediate =
            super::pki::Authority { certificate: read("intermediate.pem"), key: read("intermediate.key") };
        let name = form::operator(cluster.definition.uuid);
        for (name, issuer) in [
            (name, intermediate),
            ("agent.x".to_owned(), super::pki::Authority { certificate: read("root.pem"), key: read("root.key") }),
        ] {
            let own = super::pki::operator(&name, &issuer).unwrap();
            let operator = Operator::new(&read("root.pem"), own, cluster.definition.uuid).unwrap();
            let asked = async {
                let mut session = form_client::connect(&operator, "pg-1", node.address).await?;
                form_client::ask(&mut session.sender).await
            };
            assert!(asked.await.is_err(), "{name} of {}", issuer.certificate);
        }
        assert!(node.kept.lock().unwrap().is_empty());
    });
}

#[test]
fn a_proof_is_worth_nothing_in_another_session_and_a_bundle_of_another_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = cluster_in(&dir.path().join("cluster"));
    let other = cluster_in(&dir.path().join("other"));
    block_on(async {
        let node = waiting(&spec_of(&cluster), &dir.path().join("disk")).await;
        let operator = cluster.operator().unwrap();
        let token = spec_of(&cluster).join.unwrap().token;
        let right = cluster.founding().unwrap();
        let digest = |founding: &Founding| form::digest(&Secrets::from(founding.clone())).unwrap();
        let connect = || form_client::connect(&operator, "pg-1", node.address);
        let proof = |binding: &Binding, founding: &Founding| binding.operator(&token, &digest(founding)).unwrap();
        let bundle = |proof: String, founding: &Founding| Bundle { schema: 1, proof, founding: founding.clone() };

        let first = connect().await.unwrap();
        let replayed = bundle(proof(&first.binding, &right), &right);
        let mut second = connect().await.unwrap();
        let problem = form_client::bring(&mut second.sender, &replayed).await.unwrap().unwrap_err();
        assert!(problem.what.contains("does not know the token"), "{problem}");
        assert!(!problem.to_string().contains(token.expose()), "{problem}");

        // The right operator, the right token, the wrong bundle: another root, a strange intermediate.
        let foreign = other.founding().unwrap();
        let mixed = Founding { intermediate: foreign.intermediate.clone(), ..right.clone() };
        for (founding, why) in [(foreign, "names another"), (mixed, "did not sign the intermediate")] {
            let mut session = connect().await.unwrap();
            let bundle = bundle(proof(&session.binding, &founding), &founding);
            let problem = form_client::bring(&mut session.sender, &bundle).await.unwrap().unwrap_err();
            assert!(problem.what.contains(why), "{problem}");
        }
        assert!(node.kept.lock().unwrap().is_empty());

        // Two operators at the same time: one bundle, once.
        let (mut a, mut b, mut c) = (connect().await.unwrap(), connect().await.unwrap(), connect().await.unwrap());
        let same = |binding: &Binding| bundle(proof(binding, &right), &right);
        let mut changed = right.clone();
        changed.passwords.superuser = Secret::new("another".into());
        let different = bundle(proof(&c.binding, &changed), &changed);
        let (bundle_a, bundle_b) = (same(&a.binding), same(&b.binding));
        assert!(form_client::bring(&mut a.sender, &bundle_a).await.unwrap().is_ok());
        for (session, bundle, taken) in [(&mut b, bundle_b, true), (&mut c, different, false)] {
            // It may have ended meanwhile: then nothing was taken either.
            if let Ok(answer) = form_client::bring(&mut session.sender, &bundle).await {
                assert_eq!(answer.is_ok(), taken);
            }
        }
        assert_eq!(node.kept.lock().unwrap().len(), 1);
    });
}
