//! Environment of the `etcdctl` wrapper: root acts as the agent, postgres as Patroni.

use super::host;
use crate::spec::{NodeSpec, Secrets};

/// User of the system and what the wrapper exports for it.
pub fn environments(spec: &NodeSpec, secrets: &Secrets) -> [(&'static str, String); 2] {
    let endpoints: Vec<_> = spec.seeds.values().map(|ip| format!("https://{}:2379", host(*ip))).collect();
    let passwords = &secrets.passwords;
    let text = |pki: &str, user: &str, password: &str| {
        format!(
            "ETCDCTL_API=3\nETCDCTL_ENDPOINTS={}\nETCDCTL_CACERT=/run/pgkiln/pki/ca.pem\nETCDCTL_CERT={pki}.pem\n\
             ETCDCTL_KEY={pki}.key\nETCDCTL_USER={user}\nETCDCTL_PASSWORD={password}\n",
            endpoints.join(",")
        )
    };
    [
        ("root", text("/var/lib/pgkiln/pki/agent", "agent", passwords.etcd_agent.expose())),
        ("postgres", text("/run/pgkiln/pki/patroni/patroni", "patroni", passwords.etcd_patroni.expose())),
    ]
}
