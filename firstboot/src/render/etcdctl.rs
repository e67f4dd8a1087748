//! Environment of the `etcdctl` wrapper: root acts as the agent, postgres as Patroni.

use super::host;
use crate::etcd::Credentials;
use crate::problem::Problem;
use crate::spec::{NodeSpec, Password, Secrets};

/// User of the system and what the wrapper exports for it.
pub fn environments(spec: &NodeSpec, secrets: &Secrets) -> Result<Vec<(&'static str, String)>, Problem> {
    let endpoints: Vec<_> = spec.seeds.values().map(|ip| format!("https://{}:2379", host(*ip))).collect();
    let agent = Credentials::of_agent(&spec.slot, secrets)?;
    let text = |pki: &str, user: &str, password: &str| {
        format!(
            "ETCDCTL_API=3\nETCDCTL_ENDPOINTS={}\nETCDCTL_CACERT=/run/pgkiln/pki/ca.pem\nETCDCTL_CERT={pki}.pem\n\
             ETCDCTL_KEY={pki}.key\nETCDCTL_USER={user}\nETCDCTL_PASSWORD={password}\n",
            endpoints.join(",")
        )
    };
    let mut all = vec![("root", text("/var/lib/pgkiln/pki/agent", &agent.user, agent.password.expose()))];
    if spec.role.stores_data() {
        let password = secrets.passwords.get(Password::EtcdPatroni)?;
        all.push(("postgres", text("/run/pgkiln/pki/patroni/patroni", "patroni", password.expose())));
    }
    Ok(all)
}
