//! HAProxy: 5000 to the primary, 5001 to the replicas, 7000 statistics on loopback. Servers are the nodes that store data.

use super::{host, preset};
use crate::spec::{NodeSpec, Role};

/// `/run/pgkiln/haproxy/haproxy.cfg`.
pub fn config(spec: &NodeSpec) -> String {
    let preset = preset::of(spec.postgres.rto);
    let [inter, fastinter, downinter] = preset.check_ms;
    let [rise, fall] = preset.rise_fall;
    let servers: String = spec
        .members_that(Role::stores_data)
        .iter()
        .map(|(slot, ip)| {
            let ip = host(*ip);
            // `verify required` alone would accept any certificate of our CA: `verifyhost` ties it to the slot.
            format!(
                "    server {slot} {ip}:5432 check port 8008 check-ssl verify required \
                 ca-file /run/pgkiln/pki/haproxy/ca.pem verifyhost {slot} maxconn 500\n"
            )
        })
        .collect();
    let listener = |name: &str, port: u16, balance: &str, uri: &str| {
        format!(
            "\nlisten {name}\n    bind :::{port} v4v6\n    balance {balance}\n    option httpchk\n    \
             http-check send meth OPTIONS uri {uri}\n    http-check expect status 200\n{servers}"
        )
    };
    let mut text = format!(
        "# Written by firstboot at every boot.
global
    user haproxy
    group haproxy
    maxconn 4000
    stats socket /run/haproxy/admin.sock user haproxy group haproxy mode 660 level admin expose-fd listeners
    hard-stop-after 30s

defaults
    mode tcp
    timeout connect 2s
    timeout check 2s
    timeout client 30m
    timeout server 30m
    option tcpka
    default-server inter {inter}ms fastinter {fastinter}ms downinter {downinter}ms rise {rise} fall {fall} on-marked-down shutdown-sessions
"
    );
    text.push_str(&listener("rw", 5000, "roundrobin", "/primary"));
    text.push_str(&listener("ro", 5001, "leastconn", "/replica?lag=64MB"));
    text.push_str(
        "\nlisten stats\n    bind 127.0.0.1:7000\n    mode http\n    stats enable\n    stats uri /\n    \
         http-request use-service prometheus-exporter if { path /metrics }\n",
    );
    text
}
