//! The plan as text, what is refused, and that an applied plan leaves nothing to do.

use proptest::prelude::*;

use super::*;
use crate::fixtures::{desired, facts};
use crate::state::{Record, State};

/// What `apply` records.
fn applied(plan: &Plan, state: &mut State, boot_id: &str) {
    for step in plan.steps.iter().filter(|step| step.due != Due::No && step.lasts != Lasts::Run) {
        let record = Record {
            input_digest: step.digest.clone(),
            finished_at: "2026-01-01T00:00:00Z".into(),
            boot_id: boot_id.into(),
        };
        state.steps.insert(step.id.to_owned(), record);
    }
}

#[test]
fn first_boot() {
    let plan = plan(&desired(), &facts(), &State::default()).unwrap();
    insta::assert_snapshot!(plan.to_string());
}

#[test]
fn nothing_secret_in_the_printed_plan() {
    let plan = plan(&desired(), &facts(), &State::default()).unwrap();
    assert!(!format!("{plan}{plan:?}").contains("secret-"));
}

#[test]
fn what_is_not_carried_out_is_refused() {
    let mut wanted = desired();
    wanted.accepted.spec.role = Role::Standby;
    wanted.accepted.spec.pooler.kind = PoolerKind::Pgbouncer;
    let problems = plan(&wanted, &facts(), &State::default()).unwrap_err();
    let places: Vec<_> = problems.iter().map(|problem| problem.place.as_str()).collect();
    assert_eq!(places, ["pgkiln.role", "pgkiln.pooler"]);
    assert!(problems.iter().all(|problem| !problem.remedy.is_empty()));
}

#[test]
fn a_component_that_is_too_old_is_refused_before_anything_starts() {
    let mut wanted = desired();
    wanted.image.components.get_mut("patroni").unwrap().version = "2.1.7-1".to_owned();
    let problems = plan(&wanted, &facts(), &State::default()).unwrap_err();
    assert!(problems[0].what.contains("failsafe") && problems[0].remedy.contains("3.0.0"), "{}", problems[0]);
    plan(&crate::fixtures::desired_of_oldest_image(), &facts(), &State::default()).unwrap();
}

/// Steps of the node in `slot` of the layout with three databases, three proxies and a repository host.
fn steps(slot: &str) -> Vec<String> {
    let plan = plan(&crate::fixtures::desired_as(slot), &facts(), &State::default()).unwrap();
    let steps = plan.steps.iter().skip_while(|step| step.id != "pki");
    steps.map(|step| format!("{} {}", step.id, step.summary)).collect()
}

#[test]
fn each_role_runs_its_own() {
    insta::assert_snapshot!(steps("pg-1").join("\n"), @r"
    pki certificates for agent, etcd, patroni, postgresql, pgbackrest
    config etcd.env, root.env, postgres.env, patroni.yml, patroni.env, bootstrap.sql, pgbackrest.conf, environment
    etcd member of pg-1, pg-2, pg-3
    slot lease of slot pg-1
    hugepages from what PostgreSQL says it needs
    patroni start patroni.service
    pgbackrest start pgbackrest.service
    ");
    let units =
        "pgkiln-backup-full.service, pgkiln-backup-full.timer, pgkiln-backup-diff.service, pgkiln-backup-diff.timer";
    let backup = steps("bkp-1").join("\n").replace(units, "UNITS");
    insta::assert_snapshot!(backup, @r"
    pki certificates for agent, pgbackrest
    config root.env, pgbackrest.conf, environment, UNITS
    slot lease of slot bkp-1
    pgbackrest start pgbackrest.service
    ");
    insta::assert_snapshot!(steps("px-1").join("\n"), @r"
    pki certificates for agent, haproxy
    config root.env, start.state, haproxy.cfg
    haproxy start haproxy.service
    slot lease of slot px-1
    ");
}

#[test]
fn a_database_without_a_vote_holds_its_slot_before_patroni_starts() {
    let mut wanted = crate::fixtures::desired_as("pg-1");
    wanted.accepted.spec.seeds.remove("pg-1");
    let plan = plan(&wanted, &facts(), &State::default()).unwrap();
    let ids: Vec<_> = plan.steps.iter().map(|step| step.id).collect();
    assert!(ids.ends_with(&["config", "slot", "hugepages", "patroni", "pgbackrest"]), "{ids:?}");
    assert!(!plan.to_string().contains("etcd.env"), "{plan}");
}

#[test]
fn before_a_node_has_joined_only_the_machine_is_planned() {
    let mut wanted = crate::fixtures::desired_as("px-1");
    wanted.secrets = Secrets::default();
    let plan = plan(&wanted, &facts(), &State::default()).unwrap();
    let ids: Vec<_> = plan.steps.iter().map(|step| step.id).collect();
    assert_eq!(ids, ["network", "hostname", "identity", "clock", "join"]);
    assert_eq!(plan.steps[4].summary, "let in by pg-1, pg-2, pg-3");
}

#[test]
fn two_links_and_one_address_is_a_question() {
    let mut facts = facts();
    facts.links.push(crate::facts::Link { name: "eth1".into(), mac: "02:00:00:00:00:0c".into() });
    let problems = plan(&desired(), &facts, &State::default()).unwrap_err();
    assert!(problems[0].what.contains("exactly one Ethernet link, found 2: host0, eth1"), "{problems:?}");
}

proptest! {
    /// Applied, the same plan is settled in the same boot, whatever the input; in the next boot what lives in memory
    /// is due again, and applied it is settled again.
    #[test]
    fn applying_settles(
        memory_mib in 256u64..1 << 20,
        cpus in 1u32..256,
        work_mem in 1u32..1000,
        hostname in "[a-z][a-z0-9]{0,10}",
        keys in 0usize..3,
        killed_after in 0usize..12,
    ) {
        let mut wanted = desired();
        wanted.accepted.spec.postgres.parameters.insert("work_mem".into(), format!("{work_mem}MB"));
        wanted.accepted.config.hostname = Some(hostname);
        wanted.accepted.config.ssh_authorized_keys = vec!["ssh-ed25519 AAAA".into(); keys];
        let mut facts = facts();
        (facts.memory_mib, facts.cpus) = (memory_mib, cpus);
        let mut state = State::default();

        // Killed after any number of steps: the rest, and only the rest, is due afterwards.
        let mut first = plan(&wanted, &facts, &state).unwrap();
        let all = first.steps.clone();
        first.steps.truncate(killed_after);
        applied(&first, &mut state, "boot-1");
        let second = plan(&wanted, &facts, &state).unwrap();
        for (number, step) in second.steps.iter().enumerate() {
            let expected = number >= killed_after || step.lasts == Lasts::Run;
            prop_assert_eq!(step.due != Due::No, expected, "{}", step.id);
            prop_assert_eq!(&step.digest, &all[number].digest);
        }
        applied(&second, &mut state, "boot-1");
        prop_assert!(plan(&wanted, &facts, &state).unwrap().is_settled());

        facts.boot_id = "boot-2".into();
        let reboot = plan(&wanted, &facts, &state).unwrap();
        prop_assert!(!reboot.is_settled());
        applied(&reboot, &mut state, "boot-2");
        prop_assert!(plan(&wanted, &facts, &state).unwrap().is_settled());

        // A changed parameter is due, and nothing else than what it changes.
        wanted.accepted.spec.postgres.parameters.insert("work_mem".into(), "1GB".into());
        let changed: Vec<_> = plan(&wanted, &facts, &state).unwrap().steps.into_iter()
            .filter(|step| step.due == Due::Changed).map(|step| step.id).collect();
        prop_assert!(changed.contains(&"config"));
    }
}
