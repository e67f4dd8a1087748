//! What `cluster new` and `cluster seed` write, read back by the agent's own parser.

use std::os::unix::fs::PermissionsExt;

use firstboot::spec::{self, NodeSpec, tree};

use super::*;

fn options() -> Options {
    Options {
        name: "orders".into(),
        nodes: ["10.0.0.11", "10.0.0.12", "10.0.0.13"].map(String::from).to_vec(),
        database: Some("orders".into()),
        client_networks: vec!["10.0.0.0/16".parse().unwrap()],
        ..Options::default()
    }
}

fn new_cluster(dir: &Path) -> Cluster {
    create(&dir.join("orders"), options().definition().unwrap()).unwrap()
}

fn agent_reads(dir: &Path) -> Result<NodeSpec, Vec<firstboot::problem::Problem>> {
    let text = fs_err::read_to_string(dir.join("user-data")).unwrap();
    assert!(text.starts_with("#cloud-config\n"), "{text}");
    let node = tree::parse(&text, "user-data").map_err(|problem| vec![problem])?;
    spec::read(node.get("pgkiln").unwrap(), "user-data")
}

#[test]
fn a_definition_survives_its_file() {
    let mut definition = options().definition().unwrap();
    definition.gateway = Some("10.0.0.1".parse().unwrap());
    definition.nodes[1].mac = Some("52:54:00:12:34:56".into());
    definition.vip = Some(spec::Vip { address: "10.0.0.10/24".parse().unwrap(), mode: spec::VipMode::Lan });
    definition.postgres.parameters.insert("work_mem".into(), "32MB".into());
    definition.postgres.extensions.push("pg_stat_statements".into());
    let text = definition.to_toml().unwrap();
    assert_eq!(parse(&text, "cluster.toml").unwrap(), definition, "{text}");
}

#[test]
fn a_virtual_ip_gets_the_subnets_prefix_and_must_be_of_use() {
    let with = |vip: &str, nodes: &[&str]| Options {
        vip: Some(vip.parse().unwrap()),
        nodes: nodes.iter().map(ToString::to_string).collect(),
        ..options()
    };
    let three = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];
    let vip = with("10.0.0.10", &three).definition().unwrap().vip.unwrap();
    assert_eq!((vip.address.to_string().as_str(), vip.mode), ("10.0.0.10/24", spec::VipMode::Lan));
    let dir = tempfile::tempdir().unwrap();
    let refused =
        |options: Options| create(&dir.path().join("x"), options.definition().unwrap()).unwrap_err().to_string();
    assert!(refused(with("10.0.1.10", &three)).contains("10.0.1.10 is outside the subnet 10.0.0.0/24"));
    assert!(refused(with("10.0.0.12", &three)).contains("10.0.0.12 is the address of slot `pg-2`"));
    assert!(refused(with("10.0.0.10", &three[..1])).contains("has nowhere to move to: 1 node(s) run HAProxy"));
    assert!(with("fd00::10", &three).definition().is_ok_and(|d| create(&dir.path().join("y"), d).is_err()));
}

#[test]
fn every_file_is_private_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = new_cluster(dir.path());
    for entry in walkdir::WalkDir::new(cluster.dir()) {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        let private = if entry.file_type().is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, private, "{}", entry.path().display());
    }
    let before = fs_err::read_to_string(cluster.dir().join("secrets.toml")).unwrap();
    let again = create(cluster.dir(), options().definition().unwrap()).unwrap_err();
    assert!(again.to_string().contains("already exists; it is never overwritten"), "{again}");
    assert_eq!(fs_err::read_to_string(cluster.dir().join("secrets.toml")).unwrap(), before);
    let left: Vec<_> = fs_err::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["orders"], "no staging directory is left");
}

#[test]
fn the_agent_accepts_every_seed() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = new_cluster(dir.path());
    for node in &cluster.definition.nodes {
        let seed = dir.path().join(&node.slot);
        cluster.write_seed(&node.slot, SeedFormat::Directory, &seed, true).unwrap();
        let spec = agent_reads(&seed).unwrap();
        assert_eq!((spec.slot.as_str(), spec.ip()), (node.slot.as_str(), Some(node.address)));
        assert_eq!(spec.seeds.len(), 3);
        let founding = spec.founding.unwrap();
        assert_eq!(founding.ca, fs_err::read_to_string(cluster.ca_pem_path()).unwrap());
        assert!(founding.roles["orders_app"].starts_with("SCRAM-SHA-256$4096:"));
        let plain = cluster.secret("orders_app").unwrap();
        let text = fs_err::read_to_string(seed.join("user-data")).unwrap();
        assert!(!text.contains(plain.expose()), "an application's password must not leave the operator's directory");
    }
}

/// Three databases, three proxies, a repository host.
fn layout() -> Definition {
    let options = Options {
        role: Some(spec::Role::Database),
        proxies: ["10.0.0.21", "10.0.0.22", "10.0.0.23"].map(String::from).to_vec(),
        backup: vec!["10.0.0.31".into()],
        ..options()
    };
    options.definition().unwrap()
}

#[test]
fn a_new_intermediate_is_of_the_same_root_and_reaches_the_seeds() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = new_cluster(dir.path());
    let seed = |name: &str| {
        let seed = dir.path().join(name);
        cluster.write_seed("pg-1", SeedFormat::Directory, &seed, true).unwrap();
        agent_reads(&seed).unwrap()
    };
    let before = seed("before").founding.unwrap();
    cluster.renew_intermediate().unwrap();
    let after = seed("after").founding.unwrap();
    assert_eq!(before.ca, after.ca);
    assert_ne!(before.intermediate.cert, after.intermediate.cert);
    assert!(firstboot::pki::is_issued_by(&after.intermediate.cert, &after.ca).unwrap());
    firstboot::pki::Signer::new(&after.intermediate.cert, after.intermediate.key.expose()).unwrap();
    fs_err::remove_file(cluster.dir().join("pki/root.key")).unwrap();
    assert!(cluster.renew_intermediate().is_err(), "without the root's key");
}

#[test]
fn nodes_without_a_vote_get_a_token_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let definition = layout();
    let slots: Vec<_> = definition.nodes.iter().map(|node| node.slot.clone()).collect();
    assert_eq!(slots, ["pg-1", "pg-2", "pg-3", "px-1", "px-2", "px-3", "bkp-1"]);
    assert_eq!(parse(&definition.to_toml().unwrap(), "cluster.toml").unwrap(), definition);
    let cluster = create(&dir.path().join("orders"), definition).unwrap();
    let secrets = fs_err::read_to_string(cluster.dir().join("secrets.toml")).unwrap();
    let key = fs_err::read_to_string(cluster.dir().join("pki/intermediate.key")).unwrap();
    for node in &cluster.definition.nodes {
        let seed = dir.path().join(&node.slot);
        let voter = cluster.definition.is_voter(&node.slot);
        cluster.write_seed(&node.slot, SeedFormat::Directory, &seed, voter).unwrap();
        let spec = agent_reads(&seed).unwrap();
        assert_eq!((spec.seeds.len(), spec.members.len()), (3, 7));
        assert_eq!((spec.is_voter(), spec.role), (voter, cluster.definition.role_of(node)));
        assert_eq!((spec.founding.is_some(), spec.join.is_some()), (voter, !voter));
        if !voter {
            let text = fs_err::read_to_string(seed.join("user-data")).unwrap();
            let of_others = slots.iter().filter(|slot| **slot != node.slot);
            let lines = secrets.lines().filter_map(|line| line.split('"').nth(1)).chain(key.lines().skip(1));
            let tokens = fs_err::read_to_string(cluster.dir().join("tokens.toml")).unwrap();
            let tokens = tokens.lines().filter(|line| of_others.clone().any(|slot| line.starts_with(slot.as_str())));
            let all: Vec<_> = lines.chain(tokens.filter_map(|line| line.split('"').nth(1))).collect();
            assert!(all.len() > 10);
            assert!(all.iter().all(|secret| secret.len() < 16 || !text.contains(secret)), "{text}");
        }
    }
}

#[test]
fn backups_follow_from_a_repository_host() {
    let mut definition = layout();
    let backup = |definition: &Definition| definition.node_spec(&definition.nodes[0], "00").backup;
    let (usual, without) = (backup(&definition).unwrap(), backup(&options().definition().unwrap()));
    assert_eq!(
        (usual.repository.host.as_deref(), usual.full(), usual.retention_full()),
        (Some("bkp-1"), "Sun 02:00", 2)
    );
    assert_eq!(without, None);

    let full = Some("Sat 23:30".to_owned());
    definition.backup = Some(Backup { host: Some("bkp-1".to_owned()), full: full.clone(), retention_full: Some(4) });
    let text = definition.to_toml().unwrap();
    assert_eq!(parse(&text, "cluster.toml").unwrap(), definition, "{text}");
    let given = backup(&definition).unwrap();
    assert_eq!((given.full, given.retention_full), (full, Some(4)));

    for (from, to, expected) in [
        ("host = \"bkp-1\"", "host = \"bkp-2\"", "did you mean `bkp-1`?"),
        ("host = \"bkp-1\"", "host = \"pg-1\"", "`pg-1` is no node of role `backup`"),
        ("Sat 23:30", "Saturday at noon", "is no time for backups"),
        ("retention_full = 4", "retention_full = 0", "keep at least 1"),
        ("role = \"backup\"", "role = \"proxy\"", "backups without a node of role `backup`"),
    ] {
        assert!(text.contains(from), "{from}: {text}");
        let problems = parse(&text.replacen(from, to, 1), "cluster.toml").unwrap_err().to_string();
        assert!(problems.contains(expected), "{expected}: {problems}");
    }
}

#[test]
fn who_votes() {
    let voters = |change: fn(&mut Definition)| {
        let mut definition = layout();
        change(&mut definition);
        let voters: Vec<_> = definition.voters().map(|node| node.slot.clone()).collect();
        (voters.join(" "), check::arguments(&definition, "").map_err(|problems| problems.to_string()))
    };
    assert_eq!(voters(|_| {}), ("pg-1 pg-2 pg-3".into(), Ok(())));
    let etcd = |definition: &mut Definition| {
        definition.nodes.remove(2);
        for n in 1..=3 {
            let node = Node::new(format!("etcd-{n}"), format!("10.0.0.4{n}").parse().unwrap());
            definition.nodes.push(node.with_role(spec::Role::Etcd));
        }
    };
    assert_eq!(voters(etcd), ("etcd-1 etcd-2 etcd-3".into(), Ok(())));
    let (_, refused) = voters(|definition| drop(definition.nodes.remove(0)));
    assert!(refused.unwrap_err().contains("two nodes with a vote: the voters must be 1, 3 or 5"));
    let (_, refused) = voters(|definition| definition.role = spec::Role::Etcd);
    assert!(refused.unwrap_err().contains("no node stores data"));
    let (_, refused) = voters(|definition| definition.nodes[3].role = Some(spec::Role::Standby));
    assert!(refused.unwrap_err().contains("role `standby` is not for nodes with a slot"));
}

#[test]
fn a_founding_seed_embeds_secrets_only_with_permission() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = new_cluster(dir.path());
    let seed = dir.path().join("seed");
    cluster.write_seed("pg-1", SeedFormat::Directory, &seed, false).unwrap();
    let text = fs_err::read_to_string(seed.join("user-data")).unwrap();
    let spec = firstboot::user_data::read(text.as_bytes(), "user-data").unwrap().spec;
    assert!(spec.founding.is_none() && spec.join.unwrap().token.expose().starts_with("pg-1."));
    assert!(!text.contains("PRIVATE KEY") && !text.contains("superuser"), "{text}");
    let seed = dir.path().join("another");
    let error = cluster.write_seed("pg-4", SeedFormat::Directory, &seed, true).unwrap_err();
    assert!(error.to_string().contains("has no slot `pg-4`\n  hint: did you mean `pg-1`?"), "{error}");
}

#[test]
fn a_role_added_later_needs_a_password_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = new_cluster(dir.path());
    cluster.definition.postgres.roles.push(spec::PgRole { name: "reporting".into(), login: true });
    let seed = dir.path().join("seed");
    let error = cluster.write_seed("pg-1", SeedFormat::Directory, &seed, true).unwrap_err();
    assert!(error.to_string().contains("missing secret: role `reporting` has no password"), "{error}");
    cluster.generate_secret("reporting").unwrap();
    assert_eq!(cluster.secret("reporting").unwrap().expose().len(), 32);
    cluster.write_seed("pg-1", SeedFormat::Directory, &seed, true).unwrap();
    assert!(cluster.generate_secret("reporting").is_err(), "a password in use is not replaced by accident");
}

#[test]
fn an_iso_is_a_private_volume_called_cidata() {
    if crate::tool::table::XORRISO.find().is_err() && crate::tool::table::GENISOIMAGE.find().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let iso = dir.path().join("pg-1.iso");
    new_cluster(dir.path()).write_seed("pg-1", SeedFormat::Iso, &iso, true).unwrap();
    let bytes = fs_err::read(&iso).unwrap();
    // Primary volume descriptor: sector 16, volume identifier at byte 40.
    assert_eq!(&bytes[16 * 2048 + 1..16 * 2048 + 6], b"CD001");
    assert_eq!(&bytes[16 * 2048 + 40..16 * 2048 + 46], b"cidata");
    assert_eq!(fs_err::metadata(&iso).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn everything_wrong_with_a_definition_is_told_at_once() {
    let text = r#"schema = 1
name = "Orders"
uuid = "6f9c2d3e-1b2a-4c3d-8e4f-5a6b7c8d9e0f"
subnet = "10.0.0.0/24"
gatway = "10.0.0.1"
client_networks = ["10.0.0.0/33"]

[[nodes]]
slot = "pg-1"
address = "10.0.0.11"
[[nodes]]
slot = "pg-2"
address = "10.0.1.12"
[[nodes]]
slot = "pg-1"
address = "10.0.0.13"
[[nodes]]
slot = "pg-4"
address = "10.0.0.11"

[postgres]
rto = "fats"
databases = [{ name = "orders", owner = "order_app" }]
roles = [{ name = "orders_app", login = true }]
"#;
    insta::assert_snapshot!(parse(text, "cluster.toml").unwrap_err().to_string(), @r"
    cluster.toml:2: `Orders` cannot be a cluster's name
      hint: use lower-case letters, digits and hyphens, beginning with a letter, at most 63
    cluster.toml:5: unknown key `gatway`
      hint: did you mean `gateway`?
    cluster.toml:6: `10.0.0.0/33` is no valid `client_networks`
      hint: write it like `10.0.0.0/16`
    cluster.toml:8: four nodes: the voters must be 1, 3 or 5
      hint: leave one out or add one; an even number survives no more failures than one less
    cluster.toml:13: address 10.0.1.12 of slot `pg-2` is outside the subnet 10.0.0.0/24
      hint: correct the address, or `subnet`
    cluster.toml:15: slot `pg-1` is given twice (node 1 and node 3)
      hint: give every node its own slot
    cluster.toml:19: slots `pg-1` and `pg-4` have the same address 10.0.0.11
      hint: give every node its own address
    cluster.toml:22: unknown `postgres.rto`: `fats`
      hint: did you mean `fast`?
    cluster.toml:23: database `orders` belongs to role `order_app`, which is not defined
      hint: did you mean `orders_app`?
    ");
}
