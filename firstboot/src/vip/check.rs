//! `firstboot vip-check`: does HAProxy here serve clients? Run by Keepalived every second as a user without rights, so it
//! starts nothing, waits for little and says nothing but its exit status.
//!
//! It looks at HAProxy, and at whether the agent wants this node to stand aside (see `aside`). Whether PostgreSQL has a leader
//! is HAProxy's business: an address that moved whenever there is none would cut connections for nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fs_err as fs;

/// Statistics: answering there takes HAProxy's event loop, and no server.
const STATISTICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7000);
/// Where clients come in. Connecting there would open, and lose, a session with PostgreSQL every second.
const CLIENTS: u16 = 5000;
/// Keepalived gives up after 1 s.
const LIMIT: Duration = Duration::from_millis(400);
/// `TCP_LISTEN` of the kernel's `tcp_states.h`.
const LISTENS: &str = "0A";

/// Fails if HAProxy does not serve.
pub fn check() -> Result<()> {
    ensure!(!super::aside::stands_aside(), "other nodes lead to the primary, this one does not");
    answers(STATISTICS)?;
    let tables = ["/proc/net/tcp6", "/proc/net/tcp"].map(|path| fs::read_to_string(path).unwrap_or_default());
    ensure!(tables.iter().any(|table| listens(table, CLIENTS)), "nothing listens on port {CLIENTS}");
    Ok(())
}

fn answers(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT).context("connecting to HAProxy")?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut start = [0; 5];
    stream.read_exact(&mut start).context("waiting for HAProxy")?;
    ensure!(&start == b"HTTP/", "port {} is not HAProxy", address.port());
    Ok(())
}

fn listens(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&port)) && fields.get(3) == Some(&LISTENS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listening_socket_counts() {
        let table = "  sl  local_address  remote_address  st\n   \
             0: 00000000000000000000000000000000:1388 00000000000000000000000000000000:0000 0A 00000000:00000000\n   \
             1: 0000000000000000FFFF00000B00000A:1389 0000000000000000FFFF00000C00000A:9C40 01 00000000:00000000\n";
        assert!(listens(table, 5000));
        assert!(!listens(table, 5001));
        assert!(!listens(table, 40000));
    }

    #[test]
    fn an_answer_is_wanted_not_a_connection() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(answers(silent.local_addr().unwrap()).is_err());
        let address = {
            let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            gone.local_addr().unwrap()
        };
        assert!(answers(address).is_err());
    }
}
