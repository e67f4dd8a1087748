//! HAProxy: 5000 to the primary, 5001 to the replicas, 7000 statistics on loopback. What a server is checked with is
//! written once, for the file and for servers added to the running HAProxy.

use std::net::IpAddr;

use super::host;
use super::preset::{self, Preset};
use crate::proxy::servers::Servers;
use crate::spec::NodeSpec;

/// Where HAProxy finds its servers' states: [`states`] at a start, its own before a reload; its unit puts them there.
pub const STATE_FILE: &str = "/run/haproxy/servers.state";

/// `/run/pgkiln/haproxy/haproxy.cfg`.
pub fn config(spec: &NodeSpec, servers: &Servers) -> String {
    let preset = preset::of(spec.postgres.rto);
    let servers: String =
        servers.iter().map(|(slot, server)| format!("    server {}\n", check(slot, server.address, CA))).collect();
    let listener = |name: &str, port: u16, balance: &str, uri: &str| {
        format!(
            "\nlisten {name}\n    bind :::{port} v4v6\n    balance {balance}\n    option httpchk\n    \
             http-check send meth OPTIONS uri {uri}\n    http-check expect status 200\n{servers}"
        )
    };
    let mut text = format!(
        "# Written by firstboot at every boot and whenever a node comes or goes; the running HAProxy gets the same by its
# socket. Servers and their states are the agent's: what is changed by hand, it changes back.
global
    user haproxy
    group haproxy
    maxconn 4000
    stats socket /run/haproxy/admin.sock user haproxy group haproxy mode 660 level admin expose-fd listeners
    server-state-file {STATE_FILE}
    hard-stop-after 30s

defaults
    mode tcp
    # A refused connection is tried again after `timeout connect`, each time at whoever is up then (`redispatch` alone means
    # the last time only): clients that connect during a switchover wait a moment instead of failing.
    retries 6
    option redispatch 1
    timeout connect {}ms
    timeout check 2s
    timeout client 30m
    timeout server 30m
    option tcpka
    load-server-state-from-file global
    default-server {}

# Loads the authority's certificate: a server added later may only name what was loaded at the start.
backend authority
    server none 127.0.0.1:1 check-ssl verify required ca-file {CA} disabled
",
        preset.connect_ms,
        pace(&preset),
    );
    text.push_str(&listener("rw", 5000, "roundrobin", "/primary"));
    text.push_str(&listener("ro", 5001, "leastconn", "/replica?lag=64MB"));
    text.push_str(
        "\nlisten stats\n    bind 127.0.0.1:7000\n    mode http\n    stats enable\n    stats uri /\n    \
         http-request use-service prometheus-exporter if { path /metrics }\n",
    );
    text
}

const CA: &str = "/run/pgkiln/pki/haproxy/ca.pem";

/// The rest of `add server <backend>/`: such a server inherits nothing. `ca` is the file loaded at the start.
pub fn dynamic_server(slot: &str, ip: IpAddr, preset: &Preset, ca: &str) -> String {
    format!("{} {}", check(slot, ip, ca), pace(preset))
}

/// States for a HAProxy that starts: every server is down until its checks say otherwise. Without them HAProxy before 3.1
/// (`init-state`) sends clients everywhere until its first checks have failed.
pub fn states(servers: &Servers) -> String {
    let mut text = format!("1\n# {COLUMNS}\n");
    for (number, backend) in ["rw", "ro"].into_iter().enumerate() {
        for (index, (slot, server)) in servers.iter().enumerate() {
            // Backends and servers are found by name; their numbers only have to be there.
            let (backend_id, server_id, ip) = (number + 3, index + 1, server.address);
            text.push_str(&format!(
                "{backend_id} {backend} {server_id} {slot} {ip} 0 0 1 1 0 1 0 0 6 0 0 0 - 5432 - 0 8008 - - 0\n"
            ));
        }
    }
    text
}

/// Version 1 of the format, as HAProxy 2.6 to 3.0 write it.
const COLUMNS: &str = "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
    srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
    bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr \
    srv_agent_port";

/// `verify required` alone would accept any certificate of our CA: `verifyhost` ties it to the slot.
fn check(slot: &str, ip: IpAddr, ca: &str) -> String {
    let ip = host(ip);
    format!("{slot} {ip}:5432 check port 8008 check-ssl verify required ca-file {ca} verifyhost {slot} maxconn 500")
}

fn pace(preset: &Preset) -> String {
    let [inter, fastinter, downinter] = preset.check_ms;
    let [rise, fall] = preset.rise_fall;
    format!(
        "inter {inter}ms fastinter {fastinter}ms downinter {downinter}ms rise {rise} fall {fall} \
         on-marked-down shutdown-sessions"
    )
}
