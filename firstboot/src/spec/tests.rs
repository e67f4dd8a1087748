//! Good and bad specifications: every bad one names its line and its remedy.

use super::*;

const GOOD: &str = include_str!("testdata/node.yaml");

fn problems(text: &str) -> Vec<String> {
    let problems = NodeSpec::from_text(text, "user-data").expect_err("accepted");
    problems.iter().map(ToString::to_string).collect()
}

fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "testdata has no `{from}`");
    GOOD.replace(from, to)
}

#[test]
fn what_one_writes_the_other_reads() {
    let spec = NodeSpec::from_text(GOOD, "user-data").expect("good");
    assert_eq!(spec.ip(), Some("10.0.0.11".parse().unwrap()));
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(NodeSpec::from_text(&json, "spec.json").expect("JSON"), spec);
    let yaml = serde_saphyr::to_string(&spec).unwrap();
    assert_eq!(NodeSpec::from_text(&yaml, "seed").expect("YAML"), spec);
}

#[test]
fn a_tweak_that_is_not_named_keeps_its_default() {
    let spec = NodeSpec::from_text(&with("role: node", "role: node\ntweaks: {push_roles: false}"), "x").expect("good");
    assert_eq!(spec.tweaks, Tweaks { push_roles: false, ..Tweaks::default() });
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(NodeSpec::from_text(&json, "spec.json").expect("JSON").tweaks, spec.tweaks);
    assert!(!serde_json::to_string(&NodeSpec::from_text(GOOD, "x").unwrap()).unwrap().contains("tweaks"));
}

#[test]
fn nothing_secret_is_printed() {
    let spec = NodeSpec::from_text(GOOD, "user-data").expect("good");
    assert!(!format!("{spec:?}").contains("secret-"));
    assert!(!serde_json::to_string(&spec.without_secrets()).unwrap().contains("secret-"));
}

#[test]
fn all_problems_at_once() {
    let text = with("role: node", "role: nod").replace("durability:", "durabilty:").replace("10.0.0.12", "10.0.0.1x");
    let text = text.replace("rewind: secret-rewind", "rewnd: x");
    let found = problems(&text);
    insta::assert_snapshot!(found.join("\n"), @r"
    user-data:4: unknown role `nod`
      hint: did you mean `node`?
    user-data:6: `pgkiln.seeds.pg-2`: `10.0.0.1x` is not valid
      hint: write it like `10.0.0.11`
    user-data:9: unknown key `durabilty` in `pgkiln.postgres`
      hint: did you mean `durability`?
    user-data:25: unknown key `rewnd` in `pgkiln.founding.passwords`
      hint: did you mean `rewind`?
    user-data:23: missing secret: password `rewind`
      hint: write the seed again with `pgkiln cluster seed --embed-secrets`
    ");
}

#[test]
fn one_wrong_thing_each() {
    let cases = [
        ("pg-3: 10.0.0.13}", "pg-3: 10.0.0.13, pg-4: 10.0.0.14}", "user-data:6: four seeds"),
        ("pg-3: 10.0.0.13}", "pg-2: 10.0.0.13}", "user-data:6: invalid YAML: duplicate mapping key"),
        ("pg-3: 10.0.0.13}", "pg-3: 10.0.0.12}", "have the same address 10.0.0.12"),
        ("address: 10.0.0.11/24", "address: 10.9.0.11/24", "is outside the subnet of address 10.9.0.11/24"),
        ("address: 10.0.0.11/24", "address: 10.0.0.99/24", "differs from seed `pg-1`"),
        ("slot: pg-1", "slot: pg-l", "slot `pg-l` is not among the seeds"),
        ("schema: 1\ncluster", "schema: 2\ncluster", "schema 2 is not known"),
        ("work_mem: 32MB", "wal_level: minimal", "parameter `wal_level` is set by the agent"),
        ("owner: orders_app", "owner: orders_ap", "which is not listed"),
        ("    orders_app: SCRAM", "    other: SCRAM", "missing secret: no verifier for role `orders_app`"),
        ("client_networks: [10.0.0.0/16]", "client_networks: 10.0.0.0/16", "must be a list"),
        ("role: node", "role: node\nfoo", "user-data:"),
        ("role: node", "role: node\nvip: {address: 10.0.1.10/24, mode: lan}", "is outside the subnet 10.0.0.0/24"),
        ("role: node", "role: node\nvip: {address: 10.0.0.12/24, mode: lan}", "is the address of slot `pg-2`"),
        (
            "seeds: {pg-1: 10.0.0.11, pg-2: 10.0.0.12, pg-3: 10.0.0.13}",
            "seeds: {pg-1: 10.0.0.11}\nvip: {address: 10.0.0.10/24, mode: lan}",
            "has nowhere to move to: there is one node",
        ),
        ("role: node", "role: node\ntweaks: {push_role: true}", "unknown key `push_role` in `pgkiln.tweaks`"),
        ("role: node", "role: node\ntweaks: {push_roles: 1}", "`pgkiln.tweaks.push_roles` must be true or false"),
    ];
    for (from, to, expected) in cases {
        let found = problems(&with(from, to));
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}: {found:#?}");
        assert!(found.iter().all(|p| p.starts_with("user-data:") && p.contains("hint: ")), "{found:#?}");
    }
}

#[test]
fn backups_need_a_repository_host_and_a_time() {
    let with = |from: &str, to: &str| {
        let good = crate::fixtures::section_of("bkp-1");
        assert!(good.contains(from), "{from}");
        NodeSpec::from_text(&good.replacen(from, to, 1), "user-data")
    };
    assert!(with("host: bkp-1", "host: 10.0.0.31").is_ok(), "by address");
    for (from, to, expected) in [
        ("host: bkp-1", "host: pg-1", "repository host `pg-1` is no node of role `backup`"),
        ("host: bkp-1", "host: bkp-2", "did you mean `bkp-1`?"),
        ("type: host, host: bkp-1", "type: host", "names no `host`"),
        ("full: Sun 02:00", "full: sometimes", "`sometimes` is no time for backups"),
        ("retention_full: 2", "retention_full: 0", "every backup would be deleted"),
        ("backup: {repo", "# backup: {repo", "role `backup` without `backup`"),
    ] {
        let found = with(from, to).expect_err("accepted");
        assert!(found.iter().any(|p| p.to_string().contains(expected)), "{expected}: {found:#?}");
    }
}

#[test]
fn a_first_boot_needs_secrets() {
    let mut spec = NodeSpec::from_text(GOOD, "user-data").expect("good");
    assert!(missing_secrets(&spec, "user-data").is_none());
    spec.founding = None;
    assert!(missing_secrets(&spec, "user-data").is_some());
}

#[test]
fn members_agree_with_seeds_and_with_this_node() {
    use crate::fixtures::section_of;
    let proxy = NodeSpec::from_text(&section_of("px-1"), "user-data").expect("good");
    assert_eq!((proxy.is_voter(), proxy.ip()), (false, Some("10.0.0.21".parse().unwrap())));
    assert_eq!(proxy.members_that(Role::stores_data).len(), 3);
    assert_eq!(NodeSpec::from_text(&serde_json::to_string(&proxy).unwrap(), "x").expect("JSON"), proxy);
    let alike = NodeSpec::from_text(GOOD, "user-data").expect("good");
    assert_eq!(alike.members_that(|role| role == Role::Node), alike.seeds);

    let founding = format!("founding:{}", GOOD.split("founding:").nth(1).unwrap());
    for (slot, from, to, expected) in [
        ("px-1", "px-1: {role: proxy", "px-1: {role: database", "role `proxy` differs from member `px-1` (database)"),
        ("px-1", "px-1: {role", "px-9: {role", "slot `px-1` is not among the members"),
        ("px-1", "address: 10.0.0.21}", "address: 10.0.0.29}", "has address 10.0.0.29, this node another"),
        ("px-1", "address: 10.0.0.22}", "address: 10.0.0.23}", "have the same address 10.0.0.23"),
        ("px-1", "pg-2: {role: database", "pg-2: {role: proxy", "seed `pg-2` has role `proxy`, which has no vote"),
        ("px-1", "pg-2: {role: database", "pg-9: {role: database", "seed `pg-2` is not among the members"),
        ("px-1", "address: 10.0.0.12}", "address: 10.0.0.42}", "address 10.0.0.42, the seeds say 10.0.0.12"),
        ("px-1", "client_networks", &format!("{founding}client_networks"), "has no vote, but its seed carries"),
        ("pg-1", "slot: pg-1\nrole: database", "slot: pg-1\nrole: proxy", "slot `pg-1` of role `proxy` is among"),
    ] {
        let good = section_of(slot);
        assert!(good.contains(from), "{from}");
        let found = NodeSpec::from_text(&good.replacen(from, to, 1), "user-data").expect_err("accepted");
        assert!(found.iter().any(|p| p.what.contains(expected)), "{expected}: {found:#?}");
        assert!(found.iter().all(|p| !p.remedy.is_empty()), "{found:#?}");
    }
}
