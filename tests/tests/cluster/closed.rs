//! What a formed cluster must refuse.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use firstboot::spec::Secret;
use pgkiln::demo::client::Login;
use pgkiln_tests::cluster::{TestCluster, block_on};

/// Every TLS port, and whether it wants a client certificate for anything at all.
const TLS_PORTS: [(u16, bool); 4] = [(2379, true), (2380, true), (8008, false), (8443, true)];

pub(crate) fn plain_text(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        for (port, _) in TLS_PORTS {
            let mut stream = connect(cluster, slot, port)?;
            let answer = get(&mut stream, "/version");
            // A TLS alert, nothing at all, or from Go's servers 400 and a sentence.
            let refused = !answer.starts_with("HTTP/") || answer.split(' ').nth(1) == Some("400");
            ensure!(refused, "{slot}:{port} answers plain HTTP: {answer}");
        }
    }
    Ok(())
}

pub(crate) fn client_certificates(cluster: &TestCluster) -> anyhow::Result<()> {
    for slot in &cluster.slots {
        for (port, required) in TLS_PORTS {
            let answer = tls_request(cluster, slot, port, "GET /health HTTP/1.0\r\n\r\n")?;
            ensure!(required == answer.is_empty(), "{slot}:{port} without a client certificate: {answer:?}");
        }
        let body = "{\"leader\":\"pg-1\"}";
        let post = format!("POST /switchover HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = tls_request(cluster, slot, 8008, &post)?;
        ensure!(answer.starts_with("HTTP/1.0 403"), "{slot}: POST /switchover without a certificate: {answer:?}");
    }
    Ok(())
}

pub(crate) fn etcd_users(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = &cluster.slots[0];
    let secrets: serde_json::Value =
        serde_json::from_str(&cluster.output(slot, &["cat", "/var/lib/pgkiln/secrets.json"])?)?;
    let password = |user: &str| secrets["passwords"][format!("etcd_{user}")].as_str().unwrap_or_default().to_owned();
    let cases = [
        // The certificate of a node alone, then a wrong password: nothing may be read.
        (None, "get --prefix /", "permission denied"),
        (Some(("agent", "wrong".to_owned())), "get --prefix /", "authentication failed"),
        // Least privilege.
        (Some(("proxy", password("proxy"))), "put /service/orders/leader pg-9", "permission denied"),
        (Some(("patroni", password("patroni"))), "put /pgkiln/x y", "permission denied"),
        (
            Some(("patroni", password("patroni"))),
            "member add pg-9 --peer-urls=https://10.91.0.19:2380",
            "permission denied",
        ),
        (Some(("patroni", password("patroni"))), "auth disable", "permission denied"),
    ];
    for (user, command, expected) in cases {
        let login = match &user {
            Some((user, password)) => format!("ETCDCTL_USER={user} ETCDCTL_PASSWORD={password}"),
            None => "unset ETCDCTL_USER ETCDCTL_PASSWORD".to_owned(),
        };
        let script = format!("set -a; . /run/pgkiln/etcdctl/root.env; {login}; exec /usr/bin/etcdctl {command}");
        let done = cluster.run(slot, &["sh", "-c", &script])?;
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(!done.status.success() && done.stdout.is_empty(), "etcd allows `{command}` to {:?}", user.map(|u| u.0));
        ensure!(said.contains(expected), "`{command}` was refused for another reason: {said}");
    }
    Ok(())
}

pub(crate) fn postgres(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = cluster.leader()?;
    for port in [5000, 5001, 5432] {
        let host_port = cluster.port(&slot, port)?;
        let url = format!("host=127.0.0.1 port={host_port} user=orders_app dbname=orders sslmode=disable");
        let error = block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls))?.err();
        let error = error.with_context(|| format!("{port}: a session without TLS"))?;
        ensure!(chain(&error.into()).contains("no encryption"), "{port}");
    }
    let login = |host: &str, role: &str, password: &str| {
        let ca = cluster.cluster.ca_pem_path();
        Login::new(&ca, host, "orders", role, Secret::new(password.to_owned()))
    };
    let right = cluster.cluster.secret("orders_app")?;
    let superuser = cluster.cluster.secret("postgres")?;
    let cases = [
        (login("orders", "orders_app", "wrong")?, 5000, "password authentication failed"),
        (login("orders", "nobody", right.expose())?, 5000, "password authentication failed"),
        // The certificate names the cluster and the slot, nothing else.
        (login("elsewhere", "orders_app", right.expose())?, 5000, "NotValidForName"),
        // The superuser has no business on the network, and the lab's host is no client network.
        (login("orders", "postgres", superuser.expose())?, 5000, "pg_hba.conf"),
        (login("orders", "orders_app", right.expose())?, 5432, "pg_hba.conf"),
    ];
    for (login, port, expected) in cases {
        let host_port = cluster.port(&slot, port)?;
        match block_on(login.connect(host_port))? {
            Ok(_) => bail!("{} of {} is let in through {port}", login.role, login.host),
            Err(error) => {
                let said = chain(&error);
                ensure!(said.contains(expected), "{port}: refused for another reason than {expected:?}: {said}");
            }
        }
    }
    Ok(())
}

pub(crate) fn listening(cluster: &TestCluster) -> anyhow::Result<()> {
    const NETWORK: [&str; 8] = ["2379", "2380", "5432", "5000", "5001", "8008", "8443", "22"];
    // Statistics, metrics, etcd for the node itself, the resolver's stub.
    const LOOPBACK: [&str; 4] = ["7000", "2381", "2379", "53"];
    for slot in &cluster.slots {
        for (file, listens) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
            let table = cluster.output(slot, &["cat", &format!("/proc/net/{file}")])?;
            for line in table.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let Some((address, port)) = fields.get(1).and_then(|local| local.split_once(':')) else { continue };
                let port = u16::from_str_radix(port, 16)?.to_string();
                if fields.get(3) != Some(&listens) {
                    continue;
                }
                let loopback =
                    (address.len() == 8 && address.ends_with("7F")) || address == "00000000000000000000000001000000";
                let allowed = match (file.starts_with("tcp"), loopback) {
                    (true, true) => NETWORK.contains(&port.as_str()) || LOOPBACK.contains(&port.as_str()),
                    (true, false) => NETWORK.contains(&port.as_str()),
                    // chrony's command port, the resolver's stub.
                    (false, true) => port == "323" || port == "53",
                    (false, false) => false,
                };
                ensure!(allowed, "{slot}: {file} {address}:{port} listens");
            }
        }
    }
    Ok(())
}

pub(crate) fn secrets(cluster: &TestCluster) -> anyhow::Result<()> {
    let slot = cluster.leader()?;
    let toml = fs_err::read_to_string(cluster.cluster.dir().join("secrets.toml"))?;
    let key = fs_err::read_to_string(cluster.cluster.dir().join("pki/intermediate.key"))?;
    let key_line = key.lines().nth(1).context("a key has a second line")?;
    // Values of 32 random characters, and a line of the signing key.
    let passwords = toml.lines().filter_map(|line| line.split('"').nth(1)).filter(|value| value.len() == 32);
    let patterns: Vec<&str> = passwords.chain([key_line]).collect();
    ensure!(patterns.len() > 5, "secrets.toml has another shape than this test knows");
    // Patterns on standard input: this test's own arguments must not be what it finds.
    let list = "for d in /var/lib/pgkiln /run /etc /var/log /var/lib/cloud /tmp /var/tmp; do
        grep -raslFf - $d < /run/patterns; done | xargs -r stat -c '%a %n'";
    let script = format!("umask 077; cat > /run/patterns; {list}; rm /run/patterns");
    let found = cluster.lab.exec_with_input(&slot, ["sh", "-c", &script], patterns.join("\n"))?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(found.contains("/var/lib/pgkiln/secrets.json"), "the search finds nothing at all");
    for line in found.lines() {
        let (mode, path) = line.split_once(' ').context("mode and path")?;
        ensure!(mode.ends_with('0'), "secrets in a file everyone can read: {line}");
        ensure!(!path.starts_with("/var/log"), "secrets in a log: {line}");
        ensure!(!path.starts_with("/var/lib/cloud"), "the seed still has its secrets: {line}");
    }
    let arguments = cluster.output(&slot, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])?;
    ensure!(!patterns.iter().any(|secret| arguments.contains(secret)), "a secret in arguments");
    let journal = cluster.output(&slot, &["journalctl", "--no-pager", "-o", "cat", "-a"])?;
    ensure!(!patterns.iter().any(|secret| journal.contains(secret)), "a secret in the journal");
    Ok(())
}

fn connect(cluster: &TestCluster, slot: &str, port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", cluster.port(slot, port)?))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    Ok(stream)
}

fn get(stream: &mut (impl Read + Write), path: &str) -> String {
    request(stream, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

fn request(stream: &mut (impl Read + Write), text: &str) -> String {
    let mut answer = Vec::new();
    if stream.write_all(text.as_bytes()).is_ok() {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..read]);
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// What the server answers to a client that trusts the cluster but has no certificate; empty if it is cut off.
fn tls_request(cluster: &TestCluster, slot: &str, port: u16, text: &str) -> anyhow::Result<String> {
    let mut connection = cluster.tls(slot)?;
    let mut socket = connect(cluster, slot, port)?;
    Ok(request(&mut rustls::Stream::new(&mut connection, &mut socket), text))
}

fn chain(error: &anyhow::Error) -> String {
    error.chain().map(|cause| format!("{cause}: {cause:?}")).collect::<Vec<_>>().join("; ")
}
