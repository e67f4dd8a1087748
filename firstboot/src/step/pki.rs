//! Keys and certificates: made once and kept under `/var/lib/pgkiln/pki` (root only); each service gets copies of its
//! own under `/run/pgkiln/pki/<service>`, with its owner.

use anyhow::{Context, Result};
use fs_err as fs;

use super::Host;
use crate::durable::{self, Owner};
use crate::pki::{self, Leaf, Signer};
use crate::spec::{NodeSpec, Secrets};

/// Who gets a certificate handed out: its name, which is the directory's too, and the user that reads it.
const COPIES: [(&str, &str); 5] = [
    ("etcd", "etcd"),
    ("patroni", "postgres"),
    ("postgresql", "postgres"),
    ("pgbackrest", "postgres"),
    ("haproxy", "haproxy"),
];

/// Issues what is due where the intermediate is here, and hands out what is kept.
pub fn apply(host: &Host, spec: &NodeSpec, secrets: &Secrets) -> Result<()> {
    let kept = host.layout.pki();
    durable::create_dir(&kept, 0o700)?;
    write_once(&kept.join("ca.pem"), secrets.ca.as_bytes(), 0o644)?;
    let ip = spec.ip().context("the specification gives this node no address")?;
    let leaves = pki::leaves(spec, ip);
    // Without a vote they came with the answer to joining.
    if spec.is_voter() {
        let intermediate = secrets.signer()?;
        write_once(&kept.join("intermediate.key"), intermediate.key.expose().as_bytes(), 0o600)?;
        write_once(&kept.join("intermediate.pem"), intermediate.cert.as_bytes(), 0o644)?;
        let signer = Signer::new(&intermediate.cert, intermediate.key.expose())?;
        for leaf in &leaves {
            if pki::ensure(&kept, leaf, &signer)? {
                tracing::info!("certificate `{}` issued", leaf.name);
            }
        }
    }
    hand_out(host, secrets.ca.as_bytes(), &leaves)
}

fn hand_out(host: &Host, root: &[u8], leaves: &[Leaf]) -> Result<()> {
    let kept = host.layout.pki();
    for (name, user) in COPIES.into_iter().filter(|(name, _)| leaves.iter().any(|leaf| leaf.name == *name)) {
        let owner = Some(Owner { user, group: user });
        let directory = host.layout.service_pki(name);
        durable::write_volatile(&directory.join("ca.pem"), root, 0o444, None)?;
        for (extension, mode) in [("pem", 0o444), ("key", 0o400)] {
            let file = format!("{name}.{extension}");
            let bytes = fs::read(kept.join(&file)).context("handing out certificates")?;
            durable::write_volatile(&directory.join(file), &bytes, mode, owner)?;
        }
    }
    // For clients on this node: `sslrootcert`.
    durable::write_volatile(&host.layout.run().join("pki/ca.pem"), root, 0o444, None)
}

fn write_once(path: &std::path::Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    durable::write(path, bytes, mode)
}
