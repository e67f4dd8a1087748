//! Leaves from the intermediate: 90 days, ECDSA P-256, both usages, reused as long as they fit.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fs_err as fs;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::durable;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a leaf lives. Never beyond its intermediate.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// A leaf is issued anew when less than this is left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Clocks of a founding cluster may differ a little.
const BACKDATE: Duration = Duration::from_secs(3600);

/// What one certificate must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// File stem: `<name>.pem` (leaf and intermediate) and `<name>.key`.
    pub name: String,
    /// Slot of the node it is for.
    pub slot: String,
    /// Whether the slot is its common name, too.
    pub common_name: bool,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}

/// Names that say what the holder of a certificate is.
pub mod names {
    use uuid::Uuid;

    /// Carried by voters only; etcd's peer port asks for it.
    pub fn etcd_peer(cluster: Uuid) -> String {
        format!("etcd-peer.{cluster}")
    }

    /// Carried by agents only; port 8443 asks for it.
    pub fn agent(cluster: Uuid) -> String {
        format!("agent.{cluster}")
    }
}

impl Leaf {
    fn new(name: &str, slot: &str, dns: Vec<String>, ips: Vec<IpAddr>) -> Self {
        Self { name: name.to_owned(), slot: slot.to_owned(), common_name: false, dns, ips }
    }

    /// The agent's own: server on 8443 and client of peers, etcd and Patroni.
    pub fn agent(slot: &str, ip: IpAddr, cluster: Uuid) -> Self {
        Self::new("agent", slot, vec![slot.to_owned(), names::agent(cluster)], vec![ip])
    }

    /// etcd's client and peer ports.
    pub fn etcd(slot: &str, ip: IpAddr, cluster: Uuid) -> Self {
        let dns = vec![slot.to_owned(), "localhost".to_owned(), names::etcd_peer(cluster)];
        Self::new("etcd", slot, dns, vec![ip, Ipv4Addr::LOCALHOST.into()])
    }

    /// Patroni's REST interface, and Patroni as a client of etcd.
    pub fn patroni(slot: &str, ip: IpAddr) -> Self {
        let dns = vec![slot.to_owned(), "localhost".to_owned()];
        Self::new("patroni", slot, dns, vec![ip, Ipv4Addr::LOCALHOST.into()])
    }

    /// PostgreSQL: slot, cluster name (what clients verify), own and virtual address.
    pub fn postgresql(slot: &str, cluster_name: &str, ip: IpAddr, vip: Option<IpAddr>) -> Self {
        let mut ips = vec![ip];
        ips.extend(vip);
        Self::new("postgresql", slot, vec![slot.to_owned(), cluster_name.to_owned()], ips)
    }

    /// pgBackRest, server and client: it knows clients by their common name alone.
    pub fn pgbackrest(slot: &str, ip: IpAddr) -> Self {
        Self { common_name: true, ..Self::new("pgbackrest", slot, vec![slot.to_owned()], vec![ip]) }
    }

    /// HAProxy as a client of Patroni's health checks.
    pub fn haproxy(slot: &str) -> Self {
        Self::new("haproxy", slot, vec![format!("haproxy.{slot}")], Vec::new())
    }
}

/// The intermediate with its key, ready to sign.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    not_after: SystemTime,
    lifetime: Duration,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(****)")
    }
}

impl Signer {
    /// Checks that certificate and key belong together and that the certificate may still sign.
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key_pem).context("reading the intermediate's key")?;
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).context("reading the intermediate")?;
        let not_after = {
            let (_, cert) = X509Certificate::from_der(&der).context("reading the intermediate")?;
            anyhow::ensure!(cert.is_ca(), "the intermediate is not a CA certificate");
            anyhow::ensure!(
                cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw(),
                "the intermediate's key does not belong to its certificate"
            );
            at(cert.validity().not_after.timestamp())
        };
        anyhow::ensure!(not_after > SystemTime::now(), "the intermediate certificate has expired");
        let issuer = Issuer::from_ca_cert_der(&der, key).context("reading the intermediate")?;
        Ok(Self { issuer, pem: cert_pem.trim_end().to_owned() + "\n", der, not_after, lifetime: LIFETIME })
    }

    /// When the intermediate ends.
    pub fn ends(&self) -> SystemTime {
        self.not_after
    }

    /// The same for leaves that live for `lifetime` instead of ninety days.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime, ..self }
    }

    /// The certificate of `leaf` for a key, and after it the intermediate.
    pub fn sign(&self, leaf: &Leaf, key: &impl PublicKeyData) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Else no common name: with authentication on, etcd's gateway answers 400 to a client certificate that has one.
        if leaf.common_name {
            params.distinguished_name.push(DnType::CommonName, &leaf.slot);
        }
        params.distinguished_name.push(DnType::OrganizationName, &leaf.slot);
        params.distinguished_name.push(DnType::OrganizationalUnitName, &leaf.name);
        for name in &leaf.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().context("name in a certificate")?));
        }
        params.subject_alt_names.extend(leaf.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // Never twice (RFC 5280, 4.1.2.2), also for the same key: Patroni knows a new certificate by its number.
        let mut serial = *Uuid::new_v4().as_bytes();
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(serial.to_vec().into());
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let now = SystemTime::now();
        params.not_before = epoch + since_epoch(now - BACKDATE);
        params.not_after = epoch + since_epoch((now + self.lifetime).min(self.not_after));
        let cert = params.signed_by(key, &self.issuer).with_context(|| format!("signing `{}`", leaf.name))?;
        Ok(cert.pem() + &self.pem)
    }
}

/// A key somebody else made and keeps.
#[derive(Debug)]
pub struct PublicKey(SubjectPublicKeyInfo);

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo; only the kind of key that agents make is taken.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let key = SubjectPublicKeyInfo::from_pem(pem).context("not a public key")?;
        anyhow::ensure!(*key.algorithm() == rcgen::PKCS_ECDSA_P256_SHA256, "not an ECDSA P-256 key");
        Ok(Self(key))
    }

    /// The bare key.
    pub fn bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

/// The public half of `<dir>/<name>.key`, PEM; the key is made and stored if it is not there.
pub fn public_key(dir: &Path, name: &str) -> Result<String> {
    let path = dir.join(format!("{name}.key"));
    let key = match read_key(&path)? {
        Some(key) => key,
        None => new_key(&path)?,
    };
    Ok(key.public_key_pem())
}

/// A certificate that proves nothing but who holds `<dir>/<name>.key`, which is made and stored if it is not there.
pub fn self_signed(
    dir: &Path,
    name: &str,
    slot: &str,
) -> Result<(CertificateDer<'static>, rustls::pki_types::PrivateKeyDer<'static>)> {
    durable::create_dir(dir, 0o700)?;
    public_key(dir, name)?;
    let key = read_key(&dir.join(format!("{name}.key")))?.with_context(|| format!("`{name}` has no key"))?;
    let params = CertificateParams::new(vec![slot.to_owned()]).context("name in a certificate")?;
    let certificate = params.self_signed(&key).with_context(|| format!("signing `{name}`"))?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((certificate.der().clone(), key.into()))
}

/// When `<dir>/<name>.pem` ends.
pub fn stored_ends(dir: &Path, name: &str) -> Result<SystemTime> {
    let path = dir.join(format!("{name}.pem"));
    ends_pem(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())
}

/// When the first certificate of a chain ends.
pub fn ends_pem(chain: &str) -> Result<SystemTime> {
    ends(&CertificateDer::from_pem_slice(chain.as_bytes()).context("reading a certificate")?)
}

/// Whether something that ends then should be issued anew.
pub fn is_due(end: SystemTime) -> bool {
    end < SystemTime::now() + RENEW_BEFORE
}

/// When a certificate ends.
pub fn ends(cert: &CertificateDer<'_>) -> Result<SystemTime> {
    let (_, parsed) = X509Certificate::from_der(cert).context("reading a certificate")?;
    Ok(at(parsed.validity().not_after.timestamp()))
}

/// SHA-256 of the public key of a certificate, in hexadecimal.
pub fn key_sha256(cert: &CertificateDer<'_>) -> Result<String> {
    let (_, parsed) = X509Certificate::from_der(cert).context("reading a certificate")?;
    let digest = Sha256::digest(parsed.public_key().subject_public_key.data.as_ref());
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a leaf is kept. One that ends with its intermediate cannot be bettered.
fn enough(leaf: SystemTime, intermediate: SystemTime) -> bool {
    !is_due(leaf.min(intermediate)) || leaf >= intermediate - DAY
}

/// Stores a chain that somebody else signed as `<dir>/<name>.pem`, if it belongs to the key there.
pub fn install(dir: &Path, name: &str, chain: &str) -> Result<()> {
    let key = read_key(&dir.join(format!("{name}.key")))?.with_context(|| format!("`{name}` has no key"))?;
    let leaf = CertificateDer::pem_slice_iter(chain.as_bytes()).next().context("no certificate")?;
    let leaf = leaf.with_context(|| format!("reading certificate `{name}`"))?;
    let (_, parsed) = X509Certificate::from_der(&leaf).with_context(|| format!("reading certificate `{name}`"))?;
    let fits = parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw();
    anyhow::ensure!(fits, "certificate `{name}` is for another key");
    durable::write(&dir.join(format!("{name}.pem")), chain.as_bytes(), 0o644)
}

/// `None`: there is none, or nothing usable.
fn read_key(path: &Path) -> Result<Option<KeyPair>> {
    match fs::read_to_string(path) {
        Ok(pem) => Ok(KeyPair::from_pem(&pem).ok()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn new_key(path: &Path) -> Result<KeyPair> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("generating a key")?;
    durable::write(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Makes `<dir>/<name>.pem` and `.key` what `leaf` asks for; `true` if something was issued.
///
/// An existing pair is kept if it fits: same names, this intermediate, enough time left. The key is written first and
/// reused by a run that follows a kill in between: whatever is on disk is either nothing, a key, or a matching pair.
pub fn ensure(dir: &Path, leaf: &Leaf, signer: &Signer) -> Result<bool> {
    let (cert_path, key_path) = (dir.join(format!("{}.pem", leaf.name)), dir.join(format!("{}.key", leaf.name)));
    let key = read_key(&key_path)?;
    if is_kept(dir, leaf, signer) {
        return Ok(false);
    }
    let key = match key {
        Some(key) => key,
        None => new_key(&key_path)?,
    };
    durable::write(&cert_path, signer.sign(leaf, &key)?.as_bytes(), 0o644)?;
    Ok(true)
}

/// Whether [`ensure`] would leave the pair of `leaf` as it is.
pub fn is_kept(dir: &Path, leaf: &Leaf, signer: &Signer) -> bool {
    let path = |extension: &str| dir.join(format!("{}.{extension}", leaf.name));
    match (read_key(&path("key")), fs::read(path("pem"))) {
        (Ok(Some(key)), Ok(chain)) => fits(&chain, leaf, signer, &key),
        _ => false,
    }
}

/// Whether `intermediate` was signed by `root` and may sign; both PEM.
pub fn is_issued_by(intermediate: &str, root: &str) -> Result<bool> {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).context("reading a CA certificate");
    let (intermediate, root) = (der(intermediate)?, der(root)?);
    let (_, intermediate) = X509Certificate::from_der(&intermediate).context("reading the intermediate")?;
    let (_, root) = X509Certificate::from_der(&root).context("reading the root")?;
    let signed = intermediate.verify_signature(Some(root.public_key())).is_ok();
    Ok(signed && intermediate.is_ca() && intermediate.issuer() == root.subject())
}

fn fits(chain: &[u8], leaf: &Leaf, signer: &Signer, key: &KeyPair) -> bool {
    let certs: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok).collect();
    let [cert, issuer] = certs.as_slice() else { return false };
    let Ok((_, parsed)) = X509Certificate::from_der(cert) else { return false };
    *issuer == signer.der
        && enough(at(parsed.validity().not_after.timestamp()), signer.not_after)
        && at(parsed.validity().not_before.timestamp()) <= SystemTime::now()
        && parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        && sans(&parsed) == wanted(leaf)
}

fn sans(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let mut names: Vec<_> = extension
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => IpAddr::from(v4).to_string(),
                Err(_) => {
                    <[u8; 16]>::try_from(*bytes).map_or_else(|_| "?".to_owned(), |v6| IpAddr::from(v6).to_string())
                }
            },
            _ => "?".to_owned(),
        })
        .collect();
    names.sort();
    names
}

fn wanted(leaf: &Leaf) -> Vec<String> {
    let mut names: Vec<_> = leaf.dns.iter().cloned().chain(leaf.ips.iter().map(IpAddr::to_string)).collect();
    names.sort();
    names
}

fn at(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(timestamp.try_into().unwrap_or(0))
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{BasicConstraints, IsCa};

    use super::*;

    /// Root and intermediate as the operator makes them.
    pub(crate) struct TestCa {
        pub(crate) root: String,
        pub(crate) intermediate: String,
        pub(crate) key: String,
    }

    impl TestCa {
        pub(crate) fn new() -> Self {
            let ca = |cn: &str, constraint| {
                let mut params = CertificateParams::default();
                params.distinguished_name = DistinguishedName::new();
                params.distinguished_name.push(DnType::CommonName, cn);
                params.is_ca = IsCa::Ca(constraint);
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
                params
            };
            let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let root_params = ca("root", BasicConstraints::Unconstrained);
            let root = root_params.self_signed(&root_key).unwrap().pem();
            let issuer = Issuer::new(root_params, root_key);
            let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
            let mut params = ca("intermediate", BasicConstraints::Constrained(0));
            params.use_authority_key_identifier_extension = true;
            let intermediate = params.signed_by(&key, &issuer).unwrap().pem();
            Self { root, intermediate, key: key.serialize_pem() }
        }

        pub(crate) fn signer(&self) -> Signer {
            Signer::new(&self.intermediate, &self.key).unwrap()
        }
    }

    #[test]
    fn a_fitting_pair_is_kept_and_any_change_issues_anew() {
        let (ca, dir, uuid) = (TestCa::new(), tempfile::tempdir().unwrap(), Uuid::new_v4());
        let leaf = Leaf::etcd("pg-1", "10.0.0.11".parse().unwrap(), uuid);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(ensure(dir.path(), &leaf, &ca.signer()).unwrap());
        let (cert, key) = (read("etcd.pem"), read("etcd.key"));
        assert!(!ensure(dir.path(), &leaf, &ca.signer()).unwrap());
        assert_eq!((&cert, &key), (&read("etcd.pem"), &read("etcd.key")));
        let mode = fs::metadata(dir.path().join("etcd.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let moved = Leaf::etcd("pg-1", "10.0.0.99".parse().unwrap(), uuid);
        assert!(ensure(dir.path(), &moved, &ca.signer()).unwrap(), "another address");
        assert!(ensure(dir.path(), &moved, &TestCa::new().signer()).unwrap(), "another intermediate");
        fs::remove_file(dir.path().join("etcd.key")).unwrap();
        assert!(ensure(dir.path(), &moved, &ca.signer()).unwrap(), "lost key");
        assert_ne!(key, read("etcd.key"));
        // Killed between key and certificate: the pair on disk does not match yet.
        fs::write(dir.path().join("etcd.pem"), &cert).unwrap();
        assert!(ensure(dir.path(), &leaf, &ca.signer()).unwrap(), "certificate of another key");
    }

    #[test]
    fn a_leaf_is_due_a_month_before_its_end_unless_its_intermediate_ends_first() {
        let (ca, dir, uuid) = (TestCa::new(), tempfile::tempdir().unwrap(), Uuid::new_v4());
        ensure(dir.path(), &Leaf::agent("pg-1", "10.0.0.11".parse().unwrap(), uuid), &ca.signer()).unwrap();
        assert!(!is_due(stored_ends(dir.path(), "agent").unwrap()));
        let serial = || {
            let der = CertificateDer::from_pem_slice(&fs::read(dir.path().join("agent.pem")).unwrap()).unwrap();
            X509Certificate::from_der(&der).unwrap().1.raw_serial_as_string()
        };
        let first = serial();
        fs::remove_file(dir.path().join("agent.pem")).unwrap();
        ensure(dir.path(), &Leaf::agent("pg-1", "10.0.0.11".parse().unwrap(), uuid), &ca.signer()).unwrap();
        assert_ne!(first, serial(), "the same key, another certificate");
        assert!(stored_ends(dir.path(), "etcd").is_err(), "no such certificate");
        assert!(is_issued_by(&ca.intermediate, &ca.root).unwrap());
        assert!(!is_issued_by(&ca.intermediate, &TestCa::new().root).unwrap());
        assert!(!is_issued_by(&fs::read_to_string(dir.path().join("agent.pem")).unwrap(), &ca.root).unwrap());
        let now = SystemTime::now();
        let kept = |leaf: u32, intermediate: u32| enough(now + DAY * leaf, now + DAY * intermediate);
        assert!(kept(31, 300) && kept(89, 300));
        assert!(!kept(29, 300) && !kept(0, 300));
        assert!(kept(10, 10), "nothing to be won");
        assert!(!kept(8, 20), "twelve days to be won");
    }

    #[test]
    fn a_key_of_another_intermediate_is_refused() {
        let (one, two) = (TestCa::new(), TestCa::new());
        let error = Signer::new(&one.intermediate, &two.key).unwrap_err();
        assert!(error.to_string().contains("does not belong"), "{error:#}");
    }
}
