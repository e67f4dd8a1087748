//! Who may connect to PostgreSQL: over the network only with TLS and a SCRAM password, from the cluster's own addresses
//! and the client networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::spec::{NodeSpec, Role};

/// `pg_hba.conf`, one entry a line; the first match decides.
pub fn pg_hba(spec: &NodeSpec) -> Vec<String> {
    let mut lines = vec![
        "local all postgres peer map=local".to_owned(),
        "local replication replicator scram-sha-256".to_owned(),
        "local all all scram-sha-256".to_owned(),
        // The superuser has no business on the network: `sudo -u postgres psql` on the node.
        "hostssl all postgres all reject".to_owned(),
    ];
    let addresses = |members: BTreeMap<String, IpAddr>| members.into_values().map(IpNet::from).collect::<Vec<_>>();
    for member in addresses(spec.members_that(Role::stores_data)) {
        lines.push(format!("hostssl replication replicator {member} scram-sha-256"));
    }
    lines.push("host replication all all reject".to_owned());
    // Clients that come through HAProxy have its address.
    let clients = addresses(spec.members_that(|role| role.stores_data() || role.proxies()));
    for network in clients.iter().chain(&spec.client_networks) {
        lines.push(format!("hostssl all all {} scram-sha-256", network.trunc()));
    }
    lines.push("host all all all reject".to_owned());
    lines
}

/// `pg_ident.conf`: root and postgres are the superuser on the node itself.
pub fn pg_ident() -> Vec<String> {
    vec!["local root postgres".to_owned(), "local postgres postgres".to_owned()]
}
