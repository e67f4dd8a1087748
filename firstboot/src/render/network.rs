//! systemd-networkd files: from the specification's `address` on a single Ethernet link, or from the seed's
//! `network-config` (version 2, ethernets).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::facts::Link;
use crate::problem::Problem;
use crate::spec::NodeSpec;
use crate::spec::reader::Reader;
use crate::spec::tree::{self, Node};

/// Files for `/run/systemd/network`: name and text. Nothing to write means that the network is configured already.
pub fn files(
    spec: &NodeSpec,
    network_config: Option<&str>,
    links: &[Link],
    place: &str,
) -> Result<Vec<(String, String)>, Vec<Problem>> {
    if let Some(text) = network_config {
        return from_network_config(text, links, place);
    }
    let Some(address) = spec.address else { return Ok(Vec::new()) };
    match links {
        [link] => Ok(vec![("10-pgkiln.network".to_owned(), static_network(link, address))]),
        _ => {
            let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
            let what =
                format!("`address` needs exactly one Ethernet link, found {}: {}", links.len(), names.join(", "));
            let remedy = "add a `network-config` to the seed that says which link carries it";
            Err(vec![Problem::new(what, "pgkiln.address", remedy)])
        }
    }
}

fn static_network(link: &Link, address: IpNet) -> String {
    format!(
        "# Written by firstboot from the specification's address.\n[Match]\nName={}\nMACAddress={}\n\n\
         [Link]\nRequiredForOnline=no\n\n[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nLLDP=no\n\n\
         [Address]\nAddress={address}\n# Peers dial at once: do not wait for duplicates that a lease would show anyway.\n\
         DuplicateAddressDetection=none\n",
        link.name, link.mac
    )
}

fn from_network_config(text: &str, links: &[Link], place: &str) -> Result<Vec<(String, String)>, Vec<Problem>> {
    let root = tree::parse(text, place).map_err(|problem| vec![problem])?;
    // Both spellings are in the field: the document itself, or under `network:`.
    let root = root.get("network").unwrap_or(&root);
    let mut r = Reader::new(place);
    let version = root.get("version").and_then(Node::scalar).unwrap_or_default();
    if version != "2" {
        let line = root.get("version").map_or(root.line, |n| n.line);
        r.problem(line, format!("network-config version `{version}` is not read"), "write it as version 2");
        return Err(r.problems);
    }
    r.mapping(root, "network", &["version", "ethernets", "renderer"]);
    let mut files = Vec::new();
    for (id, ethernet) in root.get("ethernets").map_or(&[][..], Node::entries) {
        if let Some(text) = ethernet_file(&mut r, &id.name, ethernet, links) {
            files.push((format!("10-pgkiln-{}.network", files.len()), text));
        }
    }
    if r.problems.is_empty() { Ok(files) } else { Err(r.problems) }
}

fn ethernet_file(r: &mut Reader<'_>, id: &str, node: &Node, links: &[Link]) -> Option<String> {
    let path = format!("network.ethernets.{id}");
    let known = [
        "match",
        "dhcp4",
        "dhcp6",
        "addresses",
        "gateway4",
        "gateway6",
        "routes",
        "nameservers",
        "mtu",
        "optional",
        "accept-ra",
    ];
    r.mapping(node, &path, &known);
    let link = matched_link(r, id, node, links, &path)?;
    let mut text = format!(
        "# Written by firstboot from network-config `{id}`.\n[Match]\nName={}\nMACAddress={}\n\n[Link]\n\
         RequiredForOnline=no\n",
        link.name, link.mac
    );
    if let Some(mtu) = r.optional(node, "mtu").and_then(|n| r.parsed::<u32>(n, &format!("{path}.mtu"), "1500")) {
        text.push_str(&format!("MTUBytes={mtu}\n"));
    }
    let flag = |r: &mut Reader<'_>, key: &str| match r.optional(node, key) {
        // YAML 1.1 spellings are in the documentation of network-config.
        Some(n) if n.scalar().is_some_and(|t| t == "yes" || t == "on") => true,
        Some(n) if n.scalar().is_some_and(|t| t == "no" || t == "off") => false,
        Some(n) => r.boolean(n, &format!("{path}.{key}")).unwrap_or(false),
        None => false,
    };
    let dhcp = match (flag(r, "dhcp4"), flag(r, "dhcp6")) {
        (true, true) => "yes",
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        (false, false) => "no",
    };
    let ra = flag(r, "accept-ra") || dhcp == "ipv6" || dhcp == "yes";
    text.push_str(&format!("\n[Network]\nDHCP={dhcp}\nIPv6AcceptRA={ra}\n"));
    if let Some(nameservers) = r.optional(node, "nameservers") {
        r.mapping(nameservers, &format!("{path}.nameservers"), &["addresses", "search"]);
        for server in r.optional(nameservers, "addresses").map_or(&[][..], |n| r.list(n, &path)) {
            if let Some(ip) = r.parsed::<IpAddr>(server, &format!("{path}.nameservers"), "10.0.0.2") {
                text.push_str(&format!("DNS={ip}\n"));
            }
        }
        for domain in r.optional(nameservers, "search").map_or(&[][..], |n| r.list(n, &path)) {
            let domain =
                r.text(domain, &path).filter(|d| d.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)));
            text.push_str(&domain.map_or(String::new(), |domain| format!("Domains={domain}\n")));
        }
    }
    if dhcp != "no" {
        // The default identifier comes from the machine-id, which clones share.
        text.push_str("\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\n");
    }
    for address in r.optional(node, "addresses").map_or(&[][..], |n| r.list(n, &path)) {
        if let Some(address) = r.parsed::<IpNet>(address, &format!("{path}.addresses"), "10.0.0.11/24") {
            text.push_str(&format!("\n[Address]\nAddress={address}\n"));
        }
    }
    for key in ["gateway4", "gateway6"] {
        if let Some(n) = r.optional(node, key)
            && let Some(ip) = r.parsed::<IpAddr>(n, &format!("{path}.{key}"), "10.0.0.1")
        {
            text.push_str(&format!("\n[Route]\nGateway={ip}\n"));
        }
    }
    for route in r.optional(node, "routes").map_or(&[][..], |n| r.list(n, &path)) {
        text.push_str(&route_section(r, route, &path));
    }
    Some(text)
}

fn route_section(r: &mut Reader<'_>, route: &Node, path: &str) -> String {
    let path = format!("{path}.routes");
    r.mapping(route, &path, &["to", "via", "metric", "on-link"]);
    let mut text = String::from("\n[Route]\n");
    if let Some(to) = r.required(route, &path, "to")
        && to.scalar().as_deref() != Some("default")
        && let Some(network) = r.parsed::<IpNet>(to, &path, "10.1.0.0/16")
    {
        text.push_str(&format!("Destination={network}\n"));
    }
    if let Some(ip) = r.optional(route, "via").and_then(|n| r.parsed::<IpAddr>(n, &path, "10.0.0.1")) {
        text.push_str(&format!("Gateway={ip}\n"));
    }
    if let Some(metric) = r.optional(route, "metric").and_then(|n| r.parsed::<u32>(n, &path, "100")) {
        text.push_str(&format!("Metric={metric}\n"));
    }
    if r.optional(route, "on-link").and_then(|n| r.boolean(n, &path)) == Some(true) {
        text.push_str("GatewayOnLink=yes\n");
    }
    text
}

fn matched_link<'l>(r: &mut Reader<'_>, id: &str, node: &Node, links: &'l [Link], path: &str) -> Option<&'l Link> {
    let matching = r.optional(node, "match");
    let (by_mac, by_name) = match matching {
        Some(m) => {
            r.mapping(m, &format!("{path}.match"), &["macaddress", "name"]);
            (m.get("macaddress").and_then(Node::scalar), m.get("name").and_then(Node::scalar))
        }
        None => (None, Some(id.to_owned())),
    };
    let fits = |link: &&Link| {
        by_mac.as_ref().is_none_or(|mac| mac.to_lowercase() == link.mac)
            && by_name.as_ref().is_none_or(|name| match name.strip_suffix('*') {
                Some(prefix) => link.name.starts_with(prefix),
                None => *name == link.name,
            })
    };
    let found: Vec<_> = links.iter().filter(fits).collect();
    match found[..] {
        [link] => Some(link),
        _ => {
            let have: Vec<_> = links.iter().map(|link| format!("{} {}", link.name, link.mac)).collect();
            let what = format!("`{id}` matches {} links of this machine", found.len());
            r.problem(node.line, what, format!("match exactly one of: {}", have.join(", ")));
            None
        }
    }
}
