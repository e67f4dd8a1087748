//! What must hold between the parts of a definition, checked the same way for a file and for the arguments of
//! `pgkiln cluster new`: a rule names the part it concerns, the caller knows where that part stands.

use std::collections::BTreeMap;

use firstboot::spec::{Durability, Role, VipMode};
use toml::Spanned;
use toml::de::DeTable;

use super::definition::Definition;
use crate::problem::{Problem, Problems};
use crate::strict::Reader;

/// A broken rule.
struct Broken {
    /// Key path, for instance `["nodes", "2", "address"]`.
    part: Vec<String>,
    what: String,
    remedy: String,
}

/// Reports every broken rule at its line in `cluster.toml`.
pub(super) fn places(reader: &mut Reader<'_>, table: &Spanned<DeTable<'_>>, definition: &Definition) {
    for broken in all(definition) {
        let mut span = table.span();
        let mut parts = broken.part.iter();
        let mut value = parts.next().and_then(|key| table.get_ref().get(key.as_str()));
        while let Some(found) = value {
            span = found.span();
            value = parts.next().and_then(|key| match key.parse::<usize>() {
                Ok(index) => found.get_ref().get(index),
                Err(_) => found.get_ref().get(key.as_str()),
            });
        }
        reader.problem(&span, broken.what, broken.remedy);
    }
}

/// Checks a definition that was not read from a file; `place` is where its parts came from.
pub(super) fn arguments(definition: &Definition, place: &str) -> Result<(), Problems> {
    let problems: Vec<_> =
        all(definition).into_iter().map(|broken| Problem::new(broken.what, place, broken.remedy)).collect();
    if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
}

fn all(definition: &Definition) -> Vec<Broken> {
    let mut rules = Rules::default();
    rules.names(definition);
    rules.voters(definition);
    rules.addresses(definition);
    rules.postgres(definition);
    rules.backup(definition);
    rules.broken
}

/// Lower-case letters, digits and hyphens: at once a host name, an etcd member's name and a Patroni scope.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(allowed)
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
}

/// A name that SQL takes without quotes.
fn is_identifier(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (1..=63).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[derive(Default)]
struct Rules {
    broken: Vec<Broken>,
}

impl Rules {
    fn add(&mut self, part: &[&str], what: impl Into<String>, remedy: impl Into<String>) {
        let part = part.iter().map(ToString::to_string).collect();
        self.broken.push(Broken { part, what: what.into(), remedy: remedy.into() });
    }

    fn names(&mut self, definition: &Definition) {
        let remedy = "use lower-case letters, digits and hyphens, beginning with a letter, at most 63";
        if !is_name(&definition.name) {
            self.add(&["name"], format!("`{}` cannot be a cluster's name", definition.name), remedy);
        }
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, node) in definition.nodes.iter().enumerate() {
            let at = index.to_string();
            if !is_name(&node.slot) {
                self.add(&["nodes", &at, "slot"], format!("`{}` cannot be a slot", node.slot), remedy);
            }
            if let Some(first) = seen.insert(&node.slot, index) {
                let what = format!("slot `{}` is given twice (node {} and node {})", node.slot, first + 1, index + 1);
                self.add(&["nodes", &at, "slot"], what, "give every node its own slot");
            }
        }
    }

    fn voters(&mut self, definition: &Definition) {
        let count = definition.voters().count();
        if ![1, 3, 5].contains(&count) {
            let word = ["no", "one", "two", "three", "four", "five", "six"].get(count);
            let word = word.map_or_else(|| count.to_string(), ToString::to_string);
            let remedy = match count {
                0 => "name 1, 3 or 5 nodes of role node, database or etcd",
                2 | 4 => "leave one out or add one; an even number survives no more failures than one less",
                _ => "name at most 5 voters; more make every write slower and no failure likelier to be survived",
            };
            let all = count == definition.nodes.len();
            let nodes = if all { "nodes" } else { "nodes with a vote" };
            self.add(&["nodes"], format!("{word} {nodes}: the voters must be 1, 3 or 5"), remedy);
        }
        if count > 0 && !definition.nodes.iter().any(|node| definition.role_of(node).stores_data()) {
            let remedy = "give at least one node role `node` or `database`";
            self.add(&["nodes"], "no node stores data", remedy);
        }
        for (index, node) in definition.nodes.iter().enumerate() {
            if matches!(definition.role_of(node), Role::Replica | Role::Standby) {
                let what = format!("role `{}` is not for nodes with a slot", definition.role_of(node).name());
                let remedy = "use node, database, etcd, proxy or backup";
                let at = index.to_string();
                let part: &[&str] = if node.role.is_some() { &["nodes", &at, "role"] } else { &["role"] };
                self.add(part, what, remedy);
            }
        }
    }

    fn addresses(&mut self, definition: &Definition) {
        let subnet = &definition.subnet;
        let mut owners = BTreeMap::new();
        for (index, node) in definition.nodes.iter().enumerate() {
            let (at, address) = (index.to_string(), node.address);
            let part = ["nodes", &at, "address"];
            if let Some(other) = owners.insert(address, node.slot.as_str()) {
                let what = format!("slots `{other}` and `{}` have the same address {address}", node.slot);
                self.add(&part, what, "give every node its own address");
            }
            if !subnet.contains(&address) {
                let what = format!("address {address} of slot `{}` is outside the subnet {subnet}", node.slot);
                self.add(&part, what, "correct the address, or `subnet`");
            } else if subnet.prefix_len() < 31 && (address == subnet.network() || address == subnet.broadcast()) {
                let what = format!("address {address} of slot `{}` names the subnet {subnet}, not a host", node.slot);
                self.add(&part, what, "use an address between the first and the last");
            }
            if node.mac.as_deref().is_some_and(|mac| !is_mac(mac)) {
                let what = format!("`{}` is no MAC address", node.mac.as_deref().unwrap_or_default());
                self.add(&["nodes", &at, "mac"], what, "write it like `52:54:00:12:34:56`");
            }
        }
        if let Some(gateway) = definition.gateway.filter(|gateway| !subnet.contains(gateway)) {
            let what = format!("gateway {gateway} is outside the subnet {subnet}");
            self.add(&["gateway"], what, "a node reaches its gateway directly: use an address of the subnet");
        }
        if let Some(vip) = &definition.vip {
            let address = vip.address.addr();
            if !subnet.contains(&address) {
                let what = format!("virtual address {address} is outside the subnet {subnet}");
                self.add(&["vip", "address"], what, "use a free address of the subnet");
            }
            let proxies = definition.nodes.iter().map(|node| definition.role_of(node));
            let proxies = proxies.filter(|role| matches!(role, Role::Node | Role::Proxy)).count();
            if vip.mode == VipMode::Lan && proxies < 2 {
                let what = format!("virtual address {address} has nowhere to move to: {proxies} node(s) run HAProxy");
                self.add(&["vip"], what, "remove it (clients use the node's own address), or name more nodes");
            }
            if let Some(slot) = owners.get(&address) {
                let what = format!("virtual address {address} is the address of slot `{slot}`");
                self.add(&["vip", "address"], what, "use a free address of the subnet");
            }
        }
    }

    fn backup(&mut self, definition: &Definition) {
        let Some(backup) = &definition.backup else { return };
        let known: Vec<&str> = definition.repositories().collect();
        match backup.host.as_deref() {
            _ if known.is_empty() => {
                let remedy = "add a node with `role = \"backup\"`, or remove `backup`";
                self.add(&["backup"], "backups without a node of role `backup`", remedy);
            }
            Some(host) if !known.contains(&host) => {
                let what = format!("`{host}` is no node of role `backup`");
                self.add(&["backup", "host"], what, crate::strict::suggestion(host, &known, "slot"));
            }
            _ => {}
        }
        if let Some(full) = backup.full.as_deref().filter(|full| !firstboot::spec::is_calendar(full)) {
            let remedy = "write it like `Sun 02:00` or `daily` (systemd.time(7))";
            self.add(&["backup", "full"], format!("`{full}` is no time for backups"), remedy);
        }
    }

    fn postgres(&mut self, definition: &Definition) {
        let postgres = &definition.postgres;
        if postgres.durability == Durability::ZeroLoss && definition.data_nodes() == 1 {
            let what = "durability zero-loss with one node that stores data: nobody could confirm a write";
            let remedy = "set `durability = \"available\"`, or name a second node that stores data";
            self.add(&["postgres", "durability"], what, remedy);
        }
        let remedy = "use lower-case letters, digits and underscores, not beginning with a digit, at most 63";
        for (index, role) in postgres.roles.iter().enumerate() {
            let at = index.to_string();
            let part = ["postgres", "roles", &at, "name"];
            if !is_identifier(&role.name) {
                self.add(&part, format!("`{}` cannot be a role", role.name), remedy);
            }
            if role.name.starts_with("pg_") || ["postgres", "replicator", "rewind", "public"].contains(&&*role.name) {
                let what = format!("role `{}` belongs to PostgreSQL or to the cluster itself", role.name);
                self.add(&part, what, "choose another name");
            }
            if postgres.roles[..index].iter().any(|other| other.name == role.name) {
                self.add(&part, format!("role `{}` is given twice", role.name), "remove one of them");
            }
        }
        for (index, database) in postgres.databases.iter().enumerate() {
            let at = index.to_string();
            let part = ["postgres", "databases", &at, "name"];
            if !is_identifier(&database.name) {
                self.add(&part, format!("`{}` cannot be a database", database.name), remedy);
            }
            if ["postgres", "template0", "template1"].contains(&&*database.name) {
                let what = format!("database `{}` belongs to PostgreSQL itself", database.name);
                self.add(&part, what, "choose another name");
            }
            if postgres.databases[..index].iter().any(|other| other.name == database.name) {
                self.add(&part, format!("database `{}` is given twice", database.name), "remove one of them");
            }
            let known: Vec<&str> = postgres.roles.iter().map(|role| role.name.as_str()).collect();
            if let Some(owner) = database.owner.as_deref().filter(|owner| !known.contains(owner)) {
                let what = format!("database `{}` belongs to role `{owner}`, which is not defined", database.name);
                let add = format!("add `{{ name = \"{owner}\", login = true }}` to `postgres.roles`");
                let remedy = match crate::strict::suggestion(owner, &known, "role") {
                    near if near.starts_with("did you mean") => near,
                    _ => add,
                };
                self.add(&["postgres", "databases", &at, "owner"], what, remedy);
            }
        }
    }
}

fn is_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    octets.len() == 6 && octets.iter().all(|octet| octet.len() == 2 && u8::from_str_radix(octet, 16).is_ok())
}
