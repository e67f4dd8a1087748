//! Names of servers that are not the cluster's: of metadata, of update sets. systemd-resolved is asked over Varlink
//! (`varlinkctl introspect /run/systemd/resolve/io.systemd.Resolve`), because the C library's resolver loads its parts at run
//! time, which a static program cannot do.
//!
//! Who answers is not proven by a name any more than by an address: nothing secret is taken from a server found this way, and
//! what it gives is checked otherwise. Nodes of the cluster are never looked up; their addresses come from the specification.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const SOCKET: &str = "/run/systemd/resolve/io.systemd.Resolve";
const METHOD: &str = "io.systemd.Resolve.ResolveHostname";
/// systemd-resolved tries several servers; after that another attempt is as good.
const LIMIT: Duration = Duration::from_secs(10);
/// An answer has a few addresses in it.
const LARGEST: u64 = 64 * 1024;

/// Looks up names for an HTTP client.
#[derive(Debug, Clone)]
pub struct Resolved {
    socket: PathBuf,
}

impl Default for Resolved {
    fn default() -> Self {
        Self { socket: SOCKET.into() }
    }
}

impl Resolve for Resolved {
    fn resolve(&self, name: Name) -> Resolving {
        let socket = self.socket.clone();
        Box::pin(async move {
            let name = name.as_str();
            let found = tokio::time::timeout(LIMIT, ask(&socket, name)).await;
            let found = found.unwrap_or_else(|_| bail!("systemd-resolved does not answer"));
            let found = found.map_err(|error| format!("`{name}` is not found: {error:#}"))?;
            // The client puts the port of its URL there.
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}

async fn ask(socket: &Path, name: &str) -> Result<Vec<IpAddr>> {
    let mut stream = UnixStream::connect(socket).await.context("systemd-resolved does not run")?;
    let mut call = serde_json::to_vec(&serde_json::json!({"method": METHOD, "parameters": {"name": name}}))?;
    call.push(0);
    stream.write_all(&call).await.context("asking systemd-resolved")?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !answer.contains(&0) {
        let read = stream.read(&mut part).await.context("reading systemd-resolved's answer")?;
        anyhow::ensure!(read > 0 && answer.len() as u64 <= LARGEST, "systemd-resolved broke off");
        answer.extend_from_slice(&part[..read]);
    }
    addresses(answer.split(|byte| *byte == 0).next().unwrap_or_default())
}

/// A reply of `io.systemd.Resolve.ResolveHostname`.
#[derive(Debug, Deserialize)]
struct Reply {
    error: Option<String>,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    addresses: Vec<Address>,
    /// Of a DNS server that answered with an error (RFC 1035, 4.1.1).
    rcode: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Address {
    address: Vec<u8>,
}

fn addresses(reply: &[u8]) -> Result<Vec<IpAddr>> {
    const NO_SUCH_NAME: u32 = 3;
    let reply: Reply = serde_json::from_slice(reply).context("systemd-resolved's answer")?;
    if let Some(error) = reply.error {
        let error = error.trim_start_matches("io.systemd.Resolve.");
        match (error, reply.parameters.rcode) {
            ("NoNameServers", _) => bail!("no DNS server is known (yet)"),
            ("NetworkDown" | "NoSource", _) => bail!("no network to a DNS server (yet)"),
            ("QueryTimedOut" | "MaxAttemptsReached", _) => bail!("no DNS server answers"),
            ("NoSuchResourceRecord", _) => bail!("DNS has no address for it"),
            ("DNSError", Some(NO_SUCH_NAME)) => bail!("DNS has no such name"),
            ("DNSError", Some(code)) => bail!("the DNS server says error {code}"),
            (other, _) => bail!("systemd-resolved says {other}"),
        }
    }
    let ip = |one: Address| match one.address.len() {
        4 => <[u8; 4]>::try_from(one.address).ok().map(|bytes| IpAddr::from(Ipv4Addr::from(bytes))),
        _ => <[u8; 16]>::try_from(one.address).ok().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes))),
    };
    let found: Vec<IpAddr> = reply.parameters.addresses.into_iter().filter_map(ip).collect();
    anyhow::ensure!(!found.is_empty(), "DNS has no address for it");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};

    use super::*;

    /// In the form of the interface's description; what systemd-resolved really says is asked by `tests/tests/netboot.rs`.
    const BOTH: &str = r#"{"parameters":{"addresses":[{"ifindex":2,"family":2,"address":[10,93,0,1]},{"ifindex":2,"family":10,"address":[253,0,0,0,0,0,0,0,0,0,0,0,0,0,0,5]}],"name":"seeds.example","flags":1048577}}"#;

    #[test]
    fn addresses_of_both_families() {
        let expected = ["10.93.0.1", "fd00::5"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(addresses(BOTH.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn a_name_that_is_not_found_says_why() {
        let said = |error: &str, parameters: &str| {
            let reply = format!(r#"{{"error":"io.systemd.Resolve.{error}","parameters":{parameters}}}"#);
            addresses(reply.as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(said("NoNameServers", "{}"), "no DNS server is known (yet)");
        assert_eq!(said("DNSError", r#"{"rcode":3}"#), "DNS has no such name");
        assert_eq!(said("DNSError", r#"{"rcode":2}"#), "the DNS server says error 2");
        assert_eq!(said("DNSSECValidationFailed", "{}"), "systemd-resolved says DNSSECValidationFailed");
        assert!(addresses(br#"{"parameters":{"addresses":[]}}"#).unwrap_err().to_string().contains("no address"));
        assert!(addresses(b"{").is_err());
    }

    /// Answers the one call it gets in two pieces, or not at all.
    fn server(dir: &Path, answer: &'static str) -> PathBuf {
        let socket = dir.join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = Vec::new();
            std::io::BufReader::new(&stream).read_until(0, &mut call).unwrap();
            assert_eq!(
                serde_json::from_slice::<serde_json::Value>(&call[..call.len() - 1]).unwrap(),
                serde_json::json!({"method": METHOD, "parameters": {"name": "seeds.example"}})
            );
            let (one, two) = answer.split_at(answer.len() / 2);
            for part in [one, two] {
                stream.write_all(part.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        socket
    }

    #[tokio::test]
    async fn a_call_ends_with_an_answer_or_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let missing = ask(&dir.path().join("none"), "seeds.example").await.unwrap_err();
        assert!(missing.to_string().contains("does not run"), "{missing}");
        let whole = format!("{BOTH}\0");
        let socket = server(dir.path(), whole.leak());
        assert_eq!(ask(&socket, "seeds.example").await.unwrap().len(), 2);
        fs_err::remove_file(&socket).unwrap();
        let socket = server(dir.path(), BOTH);
        let broken = ask(&socket, "seeds.example").await.unwrap_err();
        assert!(broken.to_string().contains("broke off"), "{broken}");
    }
}
