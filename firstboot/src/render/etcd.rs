//! etcd's environment file. Not a configuration file: there etcd 3.4 loses its gateway, which Patroni needs.

use super::Input;

/// Whether this start may found a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialState {
    /// Found it together with the other voters. Written only by birth, after all intents were seen equal.
    New,
    /// Never found one: with its data directory gone etcd refuses to start instead of being born twice.
    Existing,
}

/// The environment of etcd.service.
pub fn environment(input: &Input<'_>, state: InitialState) -> String {
    let spec = input.spec;
    let ip = super::host(input.ip);
    let cluster = spec.seeds.iter().map(|(slot, ip)| format!("{slot}=https://{}:2380", super::host(*ip)));
    let cluster = cluster.collect::<Vec<_>>().join(",");
    let election = super::preset::of(spec.postgres.rto).election_ms;
    let pki = "/run/pgkiln/pki/etcd";
    let state = match state {
        InitialState::New => "new",
        InitialState::Existing => "existing",
    };
    let lines = [
        ("ETCD_NAME", spec.slot.clone()),
        ("ETCD_DATA_DIR", "/var/lib/etcd/default".to_owned()),
        ("ETCD_LISTEN_PEER_URLS", format!("https://{ip}:2380")),
        ("ETCD_INITIAL_ADVERTISE_PEER_URLS", format!("https://{ip}:2380")),
        ("ETCD_LISTEN_CLIENT_URLS", format!("https://{ip}:2379,https://127.0.0.1:2379")),
        ("ETCD_ADVERTISE_CLIENT_URLS", format!("https://{ip}:2379")),
        ("ETCD_INITIAL_CLUSTER", cluster),
        // Two clusters with the same addresses and different tokens never mix.
        ("ETCD_INITIAL_CLUSTER_TOKEN", spec.cluster.uuid.to_string()),
        ("ETCD_INITIAL_CLUSTER_STATE", state.to_owned()),
        ("ETCD_HEARTBEAT_INTERVAL", (election / 10).to_string()),
        // Never above half of Patroni's retry_timeout: an election must fit into a retry.
        ("ETCD_ELECTION_TIMEOUT", election.to_string()),
        ("ETCD_PRE_VOTE", "true".to_owned()),
        ("ETCD_STRICT_RECONFIG_CHECK", "true".to_owned()),
        ("ETCD_QUOTA_BACKEND_BYTES", "2147483648".to_owned()),
        ("ETCD_AUTO_COMPACTION_MODE", "periodic".to_owned()),
        ("ETCD_AUTO_COMPACTION_RETENTION", "1h".to_owned()),
        ("ETCD_SNAPSHOT_COUNT", "10000".to_owned()),
        // Passwords are 32 random characters: a slow hash would only slow down every token request.
        ("ETCD_BCRYPT_COST", "4".to_owned()),
        ("ETCD_CLIENT_CERT_AUTH", "true".to_owned()),
        ("ETCD_TRUSTED_CA_FILE", format!("{pki}/ca.pem")),
        ("ETCD_CERT_FILE", format!("{pki}/etcd.pem")),
        ("ETCD_KEY_FILE", format!("{pki}/etcd.key")),
        ("ETCD_PEER_CLIENT_CERT_AUTH", "true".to_owned()),
        ("ETCD_PEER_TRUSTED_CA_FILE", format!("{pki}/ca.pem")),
        ("ETCD_PEER_CERT_FILE", format!("{pki}/etcd.pem")),
        ("ETCD_PEER_KEY_FILE", format!("{pki}/etcd.key")),
        // Only voters carry this name: a node without a vote cannot pose as a peer.
        ("ETCD_PEER_CERT_ALLOWED_HOSTNAME", format!("etcd-peer.{}", spec.cluster.uuid)),
        ("ETCD_LISTEN_METRICS_URLS", "http://127.0.0.1:2381".to_owned()),
        ("ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK", "true".to_owned()),
    ];
    let mut text = String::from("# Written by firstboot at every boot.\n");
    for (key, value) in lines {
        text.push_str(&format!("{key}={value}\n"));
    }
    // Options that older releases refuse.
    let version = input.etcd_version;
    if version >= (3, 5, 8) || (version.0 == 3 && version.1 == 4 && version.2 >= 25) {
        text.push_str("ETCD_TLS_MIN_VERSION=TLS1.2\n");
    }
    if version >= (3, 5, 5) {
        text.push_str("ETCD_EXPERIMENTAL_COMPACT_HASH_CHECK_ENABLED=true\n");
    }
    text
}
