use proptest::prelude::*;

use super::*;
use crate::register::Image;

fn node(role: &str, address: &str, state: &str) -> Node {
    Node {
        role: role.into(),
        address: address.into(),
        image: Image { name: "debian-13".into(), version: "1".into(), root_hash: None },
        pgbackrest: None,
        update: None,
        collations: None,
        state: state.into(),
        since: "2026-01-01T00:00:00Z".into(),
    }
}

fn registry(nodes: &[(&str, &str, &str)], held: &[&str]) -> Registry {
    let address = |slot: &str| format!("10.0.0.1{}", slot.chars().last().unwrap());
    let nodes = nodes.iter().map(|(slot, role, state)| ((*slot).to_owned(), node(role, &address(slot), state)));
    Registry { nodes: nodes.collect(), held: held.iter().map(|slot| (*slot).to_owned()).collect() }
}

fn three() -> Servers {
    let address = |n: u8| IpAddr::from([10, 0, 0, 10 + n]);
    unregistered(&(1..=3).map(|n| (format!("pg-{n}"), address(n))).collect())
}

/// HAProxy after all commands, with checks as in `up`.
fn apply(running: &[Running], commands: &[Command]) -> Vec<Running> {
    let mut servers = running.to_vec();
    for command in commands {
        match command {
            Command::Add { backend, slot, address } => {
                assert!(!servers.iter().any(|s| s.backend == *backend && s.name == *slot), "added twice: {slot}");
                servers.push(Running {
                    backend: (*backend).to_owned(),
                    name: slot.clone(),
                    address: Some(*address),
                    up: false,
                    maintenance: false,
                    drained: false,
                });
            }
            Command::Remove { backend, slot } => servers.retain(|s| s.backend != *backend || s.name != *slot),
            Command::Drain(slot) => {
                servers.iter_mut().filter(|s| s.backend == RO && s.name == *slot).for_each(|s| s.drained = true);
            }
            Command::Ready { backend, slot } => {
                for server in servers.iter_mut().filter(|s| s.backend == *backend && s.name == *slot) {
                    (server.maintenance, server.drained) = (false, false);
                }
            }
        }
    }
    servers
}

fn running(servers: &Servers, up: &[&str]) -> Vec<Running> {
    let mut all = apply(&[], &diff(&[], servers, &Registry::default()));
    all.iter_mut().filter(|server| server.backend == RO).for_each(|server| server.up = up.contains(&&*server.name));
    all
}

fn names(servers: &Servers) -> Vec<&str> {
    servers.keys().map(String::as_str).collect()
}

#[test]
fn a_seed_that_never_registered_stays() {
    let known = three();
    let registry = registry(&[("pg-1", "node", "running")], &["pg-1"]);
    let servers = desired(&known, &running(&known, &[]), &registry);
    assert_eq!(names(&servers), ["pg-1", "pg-2", "pg-3"]);
    assert!(servers["pg-1"].registered && !servers["pg-2"].registered);
}

#[test]
fn only_a_deleted_entry_removes_and_only_if_the_check_is_not_up() {
    let all = [("pg-1", "node", "running"), ("pg-2", "node", "running"), ("pg-3", "node", "running")];
    // Leases gone, entries there: nothing changes, up or down.
    let known = desired(&three(), &[], &registry(&all, &[]));
    for up in [&["pg-1", "pg-3"][..], &[]] {
        let now = running(&known, up);
        assert_eq!(desired(&known, &now, &registry(&all, &[])), known);
        assert_eq!(diff(&now, &known, &registry(&all, &[])), []);
    }
    let two = registry(&all[..2], &["pg-1", "pg-2"]);
    assert_eq!(names(&desired(&known, &running(&known, &["pg-3"]), &two)), ["pg-1", "pg-2", "pg-3"]);
    let left = desired(&known, &running(&known, &["pg-1"]), &two);
    assert_eq!(names(&left), ["pg-1", "pg-2"]);
    let commands = diff(&running(&known, &["pg-1"]), &left, &two);
    let remove = |backend| Command::Remove { backend, slot: "pg-3".into() };
    assert_eq!(commands, [remove(RW), remove(RO)]);
}

#[test]
fn an_empty_registry_and_roles_without_postgresql() {
    let known = desired(&three(), &[], &registry(&[("pg-1", "node", "running")], &[]));
    assert_eq!(desired(&known, &running(&known, &[]), &Registry::default()), known);
    let other =
        registry(&[("pg-1", "etcd", "running"), ("pg-4", "replica", "running"), ("pg-5", "proxy", "running")], &[]);
    assert_eq!(names(&desired(&known, &running(&known, &[]), &other)), ["pg-2", "pg-3", "pg-4"]);
}

#[test]
fn a_new_address_replaces_a_server_that_does_not_serve() {
    let known = desired(&three(), &[], &registry(&[("pg-1", "node", "running")], &[]));
    let moved =
        Registry { nodes: [("pg-1".to_owned(), node("node", "10.0.0.99", "running"))].into(), ..Registry::default() };
    assert_eq!(desired(&known, &running(&known, &["pg-1"]), &moved)["pg-1"].address, known["pg-1"].address);
    let now = running(&known, &[]);
    let servers = desired(&known, &now, &moved);
    assert_eq!(servers["pg-1"].address, IpAddr::from([10, 0, 0, 99]));
    let commands = diff(&now, &servers, &moved);
    assert_eq!(commands.len(), 4, "{commands:?}");
    assert_eq!(diff(&apply(&now, &commands), &servers, &moved), []);
}

#[test]
fn a_leaving_node_gets_no_new_readers_while_its_lease_is_held() {
    let nodes = [("pg-1", "node", "leaving"), ("pg-2", "node", "running")];
    let leaving = registry(&nodes, &["pg-1", "pg-2"]);
    let servers = desired(&three(), &[], &leaving);
    let now = running(&servers, &["pg-1"]);
    let commands = diff(&now, &servers, &leaving);
    assert_eq!(commands, [Command::Drain("pg-1".into())]);
    let drained = apply(&now, &commands);
    // It died before it could say that it is back.
    let ready = Command::Ready { backend: RO, slot: "pg-1".into() };
    assert_eq!(diff(&drained, &servers, &registry(&nodes, &["pg-2"])), [ready]);
}

fn arbitrary_registry() -> impl Strategy<Value = Registry> {
    let entry = (0..6u8, prop_oneof!["node", "etcd", "replica"], 0..3u8, prop_oneof!["running", "leaving"]);
    (proptest::collection::vec(entry, 0..6), proptest::collection::btree_set(0..6u8, 0..6)).prop_map(|(nodes, held)| {
        let nodes = nodes
            .into_iter()
            .map(|(n, role, a, state)| (format!("pg-{n}"), node(&role, &format!("10.0.{a}.{n}"), &state)));
        Registry { nodes: nodes.collect(), held: held.into_iter().map(|n| format!("pg-{n}")).collect() }
    })
}

proptest! {
    /// Whatever the registry says, one after the other: applied commands leave nothing to do, a server that serves
    /// stays, and HAProxy has exactly the servers of the list.
    #[test]
    fn any_history(history in proptest::collection::vec((arbitrary_registry(), any::<[bool; 6]>()), 1..8)) {
        let mut known = three();
        let mut now = running(&known, &[]);
        for (registry, up) in history {
            for server in &mut now {
                let n: usize = server.name[3..].parse().unwrap();
                server.up = up[n] && server.backend == RO;
            }
            let serving: Vec<_> = now.iter().filter(|s| s.up).map(|s| (s.name.clone(), s.address)).collect();
            let servers = desired(&known, &now, &registry);
            now = apply(&now, &diff(&now, &servers, &registry));
            prop_assert_eq!(diff(&now, &servers, &registry), vec![]);
            for (slot, address) in serving {
                prop_assert_eq!(Some(servers[&slot].address), address);
            }
            for backend in BACKENDS {
                let mut have: Vec<_> = now.iter().filter(|s| s.backend == backend).map(|s| s.name.as_str()).collect();
                have.sort_unstable();
                prop_assert_eq!(have, names(&servers));
            }
            known = servers;
        }
    }
}
