//! Which certificates a node has: what its role runs, and no more. A node that joins sends keys for these, and the voter
//! that signs them takes the names from here, never from the request.

use std::net::IpAddr;

use super::Leaf;
use crate::spec::{NodeSpec, Role};

/// Leaves of the node that `spec` describes.
pub fn leaves(spec: &NodeSpec, ip: IpAddr) -> Vec<Leaf> {
    leaves_of(spec, &spec.slot, spec.role, ip)
}

/// Leaves of the node in `slot`; of `spec` only what is the same on all nodes counts.
pub fn leaves_of(spec: &NodeSpec, slot: &str, role: Role, ip: IpAddr) -> Vec<Leaf> {
    let vip = spec.vip.as_ref().map(|vip| vip.address.addr());
    let mut leaves = vec![Leaf::agent(slot, ip, spec.cluster.uuid)];
    if spec.seeds.contains_key(slot) {
        leaves.push(Leaf::etcd(slot, ip, spec.cluster.uuid));
    }
    if role.stores_data() {
        leaves.push(Leaf::patroni(slot, ip));
        leaves.push(Leaf::postgresql(slot, &spec.cluster.name, ip, vip));
    }
    if spec.backup.is_some() && (role.stores_data() || role == Role::Backup) {
        leaves.push(Leaf::pgbackrest(slot, ip));
    }
    if role.proxies() {
        leaves.push(Leaf::haproxy(slot));
    }
    leaves
}
