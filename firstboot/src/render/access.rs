//! Who may connect to PostgreSQL: over the network only with TLS and a SCRAM password, from the cluster's own addresses
//! and the client networks.

use ipnet::IpNet;

use crate::spec::NodeSpec;

/// `pg_hba.conf`, one entry a line; the first match decides.
pub fn pg_hba(spec: &NodeSpec) -> Vec<String> {
    let mut lines = vec![
        "local all postgres peer map=local".to_owned(),
        "local replication replicator scram-sha-256".to_owned(),
        "local all all scram-sha-256".to_owned(),
        // The superuser has no business on the network: `sudo -u postgres psql` on the node.
        "hostssl all postgres all reject".to_owned(),
    ];
    let members: Vec<IpNet> = spec.seeds.values().map(|ip| IpNet::from(*ip)).collect();
    for member in &members {
        lines.push(format!("hostssl replication replicator {member} scram-sha-256"));
    }
    lines.push("host replication all all reject".to_owned());
    for network in members.iter().chain(&spec.client_networks) {
        lines.push(format!("hostssl all all {} scram-sha-256", network.trunc()));
    }
    lines.push("host all all all reject".to_owned());
    lines
}

/// `pg_ident.conf`: root and postgres are the superuser on the node itself.
pub fn pg_ident() -> Vec<String> {
    vec!["local root postgres".to_owned(), "local postgres postgres".to_owned()]
}
