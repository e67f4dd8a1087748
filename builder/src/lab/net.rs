//! The lab's network: a bridge in a network namespace of its own. Nodes bring their own addresses.

use super::config::Options;
use crate::tool::{Cmd, table};

/// Name of the bridge; the namespace is ours, so it cannot clash.
pub(super) const BRIDGE: &str = "br0";

/// Builds the bridge in the current network namespace and gives the lab an address on it.
pub(super) fn build(options: &Options) -> anyhow::Result<()> {
    // Snooping off: a bridge without a querier would drop multicast (VRRP, neighbour discovery) after a while.
    let mut batch = format!("link set lo up\nlink add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0\n");
    if let Some(address) = options.own_address() {
        batch += &format!("address add {address} dev {BRIDGE}\n");
    }
    batch += &format!("link set {BRIDGE} up\n");
    Cmd::new(&table::IP).args(["-batch", "-"]).stdin_bytes(batch).run()
}

/// Makes a machine's port on the bridge.
pub(super) fn add_tap(port: &str) -> anyhow::Result<()> {
    let batch = format!("tuntap add dev {port} mode tap\nlink set {port} master {BRIDGE}\nlink set {port} up\n");
    Cmd::new(&table::IP).args(["-batch", "-"]).stdin_bytes(batch).run()
}

/// Removes a killed node's port at once; the kernel would get to it later, and a restart would find the name taken.
pub(super) fn remove_port(port: &str) {
    let _ = Cmd::new(&table::IP).args(["link", "delete", port]).captured();
}

/// The addresses that a node (its PID 1) has given itself.
pub(super) fn addresses(init: i32) -> Vec<String> {
    let target = format!("--target={init}");
    let shown = Cmd::new(&table::IP).args(["-json", "address", "show", "dev", "host0"]);
    let Ok(text) = shown.wrapped_by(&table::NSENTER, [&target, "--net", "--"]).text() else { return Vec::new() };
    parse(&text)
}

/// The addresses in what `ip -json address` says; link-local ones and the loopback's left out.
pub(super) fn parse(text: &str) -> Vec<String> {
    let links: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let infos = links.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    let global = infos.filter(|info| info["scope"] != "link" && info["scope"] != "host");
    global.filter_map(|info| Some(format!("{}/{}", info["local"].as_str()?, info["prefixlen"]))).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn link_local_addresses_are_left_out() {
        let text = r#"[{"ifname":"host0","addr_info":[
            {"family":"inet","local":"10.0.0.11","prefixlen":24,"scope":"global"},
            {"family":"inet6","local":"fe80::1","prefixlen":64,"scope":"link"}]}]"#;
        assert_eq!(super::parse(text), ["10.0.0.11/24"]);
        assert!(super::parse("").is_empty());
    }
}
