//! `show servers state`: what HAProxy has now. Columns are found by their names, which are the same from 2.6 on.

use std::net::IpAddr;

use anyhow::{Context, Result};

/// One server of the running HAProxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its backend.
    pub backend: String,
    /// Its name: a slot.
    pub name: String,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Whether its check is up; says nothing about maintenance.
    pub up: bool,
    /// Taken out by a command: what an interrupted removal leaves behind.
    pub maintenance: bool,
    /// Gets no new connections.
    pub drained: bool,
}

/// `srv_op_state`: fully up, or going down softly.
const UP: [&str; 2] = ["2", "3"];
/// `srv_admin_state`, bits: maintenance by command, by another server, in the file; by a name that does not resolve.
const MAINTENANCE: u32 = 0x01 | 0x02 | 0x04 | 0x20;
/// `srv_admin_state`, bits: drained by command, by another server.
const DRAINED: u32 = 0x08 | 0x10;

/// Reads the answer; servers of backends other than `backends` are left out.
pub fn parse(text: &str, backends: &[&str]) -> Result<Vec<Running>> {
    let mut lines = text.lines();
    let version = lines.next().unwrap_or_default();
    anyhow::ensure!(version.trim() == "1", "HAProxy's server state has version `{version}`, 1 is known");
    let header =
        lines.next().and_then(|line| line.strip_prefix("# ")).context("HAProxy's server state has no header")?;
    let names: Vec<_> = header.split_whitespace().collect();
    let column = |name: &str| {
        let found = names.iter().position(|column| *column == name);
        found.with_context(|| format!("HAProxy's server state has no column {name}"))
    };
    let [backend, name, address, op, admin] = [
        column("be_name")?,
        column("srv_name")?,
        column("srv_addr")?,
        column("srv_op_state")?,
        column("srv_admin_state")?,
    ];
    let mut servers = Vec::new();
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let field =
            |index: usize| fields.get(index).copied().with_context(|| format!("HAProxy's server state: {line}"));
        if !backends.contains(&field(backend)?) {
            continue;
        }
        let flags: u32 = field(admin)?.parse().with_context(|| format!("HAProxy's server state: {line}"))?;
        let maintenance = flags & MAINTENANCE != 0;
        servers.push(Running {
            backend: field(backend)?.to_owned(),
            name: field(name)?.to_owned(),
            address: field(address)?.parse().ok(),
            up: UP.contains(&field(op)?) && !maintenance,
            maintenance,
            drained: flags & DRAINED != 0,
        });
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_haproxy_3_0() {
        let text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
                    srv_time_since_last_change\n2 certificates 1 authority 127.0.0.1 0 5 1 1 1\n\
                    3 rw 1 pg-1 10.0.0.11 2 0 1 1 9\n3 rw 2 pg-2 10.0.0.12 0 0 1 1 9\n4 ro 1 pg-1 10.0.0.11 2 8 1 1 9\n\
                    4 ro 2 pg-2 10.0.0.12 2 1 1 1 9\n\n";
        let shown: Vec<_> = parse(text, &["rw", "ro"])
            .unwrap()
            .into_iter()
            .map(|s| format!("{}/{} up {} maint {} drained {}", s.backend, s.name, s.up, s.maintenance, s.drained))
            .collect();
        insta::assert_snapshot!(shown.join("\n"), @r"
        rw/pg-1 up true maint false drained false
        rw/pg-2 up false maint false drained false
        ro/pg-1 up true maint false drained true
        ro/pg-2 up false maint true drained false
        ");
        assert!(parse("2\n", &[]).is_err());
        assert!(parse("1\n# be_name srv_name\n", &[]).is_err());
    }
}
