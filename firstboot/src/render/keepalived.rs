//! Keepalived: the virtual IP in front of the HAProxies of one network.
//!
//! The address follows HAProxy's health, not PostgreSQL's leader: every HAProxy leads to it, so a database failover moves
//! no address. VRRP is unicast between the nodes that may hold it: nothing is sent to the network at large, and two
//! clusters in one network cannot meet.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::problem::Problem;
use crate::spec::{NodeSpec, Role, Secret};

/// Seconds between two advertisements (VRRP version 2 knows whole seconds only). The others take over after three missed
/// ones and a skew below one second.
pub const ADVERT_SECONDS: u32 = 1;
/// Priority of the first candidate; the others follow downwards, each its own.
const FIRST_PRIORITY: usize = 150;
/// VRRP takes eight characters and ignores the rest.
const PASSWORD_CHARACTERS: usize = 8;

/// The nodes that may hold the virtual IP, those with an HAProxy; the preferred one first.
pub fn candidates(spec: &NodeSpec) -> Vec<(String, IpAddr)> {
    spec.members_that(|role| matches!(role, Role::Node | Role::Proxy)).into_iter().collect()
}

/// `/run/pgkiln/keepalived/keepalived.conf`: holds a password, 0600 root.
pub fn config(
    spec: &NodeSpec,
    secret: &Secret,
    candidates: &[(String, IpAddr)],
    device: &str,
) -> Result<String, Problem> {
    let refuse = |what: String, remedy: &str| Problem::new(what, "pgkiln.vip", remedy);
    let Some(vip) = spec.lan_vip() else {
        return Err(refuse("there is no virtual IP for Keepalived".to_owned(), "give `vip` with `mode: lan`"));
    };
    let own = candidates.iter().enumerate().find(|(_, (slot, _))| *slot == spec.slot);
    let Some((rank, (_, ip))) = own else {
        let what = format!("slot `{}` is not among the nodes that may hold the virtual IP", spec.slot);
        return Err(refuse(what, "name it in `members` with role node or proxy"));
    };
    let peers: Vec<IpAddr> = candidates.iter().filter(|(slot, _)| *slot != spec.slot).map(|(_, ip)| *ip).collect();
    if peers.is_empty() {
        let what = format!("the virtual IP {} has nowhere to move to: this node has no peers", vip.addr());
        return Err(refuse(
            what,
            "remove `vip` (clients use the node's own address), or let a second node run HAProxy",
        ));
    }
    let priority = FIRST_PRIORITY.saturating_sub(rank);
    if priority == 0 {
        let what = format!("{} nodes may hold the virtual IP, VRRP tells {FIRST_PRIORITY} apart", candidates.len());
        return Err(refuse(what, "let fewer nodes run HAProxy"));
    }
    let peers: String = peers.iter().map(|ip| format!("        {ip}\n")).collect();
    let host_bits = if vip.addr().is_ipv4() { 32 } else { 128 };
    Ok(format!(
        "# Written by firstboot at every boot.
global_defs {{
    router_id {slot}
    enable_script_security
    script_user keepalived_script
    vrrp_check_unicast_src
    vrrp_startup_delay 1
    vrrp_garp_master_refresh 60
}}

# Until the first good checks the node is no candidate.
vrrp_script haproxy {{
    script \"/usr/bin/firstboot vip-check\"
    interval 1
    timeout 1
    fall 2
    rise 3
    init_fail
}}

vrrp_instance proxies {{
    state BACKUP
    nopreempt
    interface {device}
    virtual_router_id {router}
    priority {priority}
    advert_int {ADVERT_SECONDS}
    unicast_src_ip {ip}
    unicast_peer {{
{peers}    }}
    unicast_fault_no_peer
    authentication {{
        auth_type PASS
        auth_pass {password}
    }}
    # A host's address: the network belongs to the node's own, which stays the source of its connections.
    virtual_ipaddress {{
        {vip}/{host_bits} dev {device}
    }}
    track_script {{
        haproxy
    }}
}}
",
        slot = spec.slot,
        router = virtual_router_id(spec),
        password = password(spec, secret).expose(),
        vip = vip.addr(),
    ))
}

/// What the unit removes the address with, should Keepalived die and leave it behind.
pub fn environment(vip: IpAddr, device: &str) -> String {
    let host_bits = if vip.is_ipv4() { 32 } else { 128 };
    format!("VIP={vip}/{host_bits}\nVIP_DEVICE={device}\n")
}

/// 1..=255, from the cluster's identity.
fn virtual_router_id(spec: &NodeSpec) -> u8 {
    let hash = Sha256::digest(spec.cluster.uuid.as_bytes());
    u8::try_from(u16::from_be_bytes([hash[0], hash[1]]) % 255).unwrap_or(0) + 1
}

/// Derived from a secret that every node with an HAProxy has. VRRP sends it in the clear: it keeps mistakes apart, not
/// enemies, and must not lead back to the secret.
fn password(spec: &NodeSpec, secret: &Secret) -> Secret {
    let hash = Sha256::new()
        .chain_update(b"pgkiln VRRP password\0")
        .chain_update(spec.cluster.uuid.as_bytes())
        .chain_update(secret.expose().as_bytes())
        .finalize();
    Secret::new(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..PASSWORD_CHARACTERS].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::desired;
    use crate::spec::Password;
    use crate::spec::{Vip, VipMode};

    fn spec() -> NodeSpec {
        let mut spec = desired().accepted.spec;
        spec.vip = Some(Vip { address: "10.0.0.10/24".parse().unwrap(), mode: VipMode::Lan });
        spec
    }

    fn rendered(spec: &NodeSpec) -> Result<String, Problem> {
        config(spec, desired().secrets.passwords.get(Password::EtcdProxy)?, &candidates(spec), "host0")
    }

    #[test]
    fn keepalived_config() {
        insta::assert_snapshot!(rendered(&spec()).unwrap());
    }

    #[test]
    fn every_candidate_has_a_priority_of_its_own_and_the_same_router_and_password() {
        let value = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(' '));
            line.unwrap().to_owned()
        };
        let texts: Vec<String> = ["pg-1", "pg-2", "pg-3"]
            .into_iter()
            .map(|slot| rendered(&NodeSpec { slot: slot.to_owned(), ..spec() }).unwrap())
            .collect();
        let all = |key: &str| texts.iter().map(|text| value(text, key)).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(all("priority").len(), 3);
        assert_eq!(all("unicast_src_ip").len(), 3);
        assert_eq!((all("virtual_router_id").len(), all("auth_pass").len()), (1, 1));
        let mut other = spec();
        other.cluster.uuid = uuid::Uuid::from_u128(7);
        assert_ne!(value(&rendered(&other).unwrap(), "auth_pass"), value(&texts[0], "auth_pass"));
    }

    #[test]
    fn no_peers_no_keepalived() {
        let mut alone = spec();
        alone.seeds.retain(|slot, _| slot == "pg-1");
        let problem = rendered(&alone).unwrap_err();
        assert!(problem.what.contains("has no peers") && problem.remedy.contains("remove `vip`"), "{problem}");
    }
}
