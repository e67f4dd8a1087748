//! The cluster's certificate authorities. The root stays with the operator; the intermediate goes to the founding voters,
//! can only sign leaves (path length 0) and expires, so losing a node is no catastrophe.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SigningKey,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3653);
const INTERMEDIATE_LIFETIME: Duration = DAY.saturating_mul(365);
/// Nodes whose clock is a little behind must still accept what was signed just now.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// A certificate authority.
pub(super) struct Authority {
    /// Certificate, PEM.
    pub certificate: String,
    /// Private key, PKCS#8 PEM.
    pub key: String,
}

/// The two authorities of a cluster.
pub(super) struct Authorities {
    /// Trust anchor of everything in the cluster.
    pub root: Authority,
    /// Signs the nodes' certificates.
    pub intermediate: Authority,
}

impl Authorities {
    /// Makes new authorities for a cluster.
    pub(super) fn generate(cluster: &str, uuid: Uuid) -> anyhow::Result<Self> {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making the root's key")?;
        // One below: the intermediate, which in turn has none below.
        let root_params = params(cluster, "root", uuid, 1, ROOT_LIFETIME);
        let root = root_params.self_signed(&root_key).context("signing the root certificate")?;
        let root_pem = Authority { certificate: root.pem(), key: root_key.serialize_pem() };
        let issuer = Issuer::new(root_params, root_key);
        let intermediate = sign_intermediate(cluster, uuid, &issuer)?;
        Ok(Self { root: root_pem, intermediate })
    }
}

/// A new intermediate under the same root: everything that trusts the root goes on trusting.
pub(super) fn renew_intermediate(cluster: &str, uuid: Uuid, root: &Authority) -> anyhow::Result<Authority> {
    let key = KeyPair::from_pem(&root.key).context("reading the root's key")?;
    let issuer = Issuer::from_ca_cert_pem(&root.certificate, key).context("reading the root certificate")?;
    sign_intermediate(cluster, uuid, &issuer)
}

fn sign_intermediate(cluster: &str, uuid: Uuid, issuer: &Issuer<'_, impl SigningKey>) -> anyhow::Result<Authority> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making the intermediate's key")?;
    let mut params = params(cluster, "intermediate", uuid, 0, INTERMEDIATE_LIFETIME);
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).context("signing the intermediate certificate")?;
    Ok(Authority { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A certificate for one run of the operator's, signed by the root itself.
pub(super) fn operator(name: &str, root: &Authority) -> anyhow::Result<Authority> {
    let root_key = KeyPair::from_pem(&root.key).context("reading the root's key")?;
    let issuer = Issuer::from_ca_cert_pem(&root.certificate, root_key).context("reading the root certificate")?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making the operator's key")?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).context("the operator's name")?;
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + DAY;
    let certificate = params.signed_by(&key, &issuer).context("signing the operator's certificate")?;
    Ok(Authority { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn params(cluster: &str, which: &str, uuid: Uuid, below: u8, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "pgkiln");
    name.push(DnType::OrganizationalUnitName, uuid.to_string());
    name.push(DnType::CommonName, format!("{cluster} {which} CA"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + lifetime;
    params
}

/// SHA-256 of a certificate's DER form in hexadecimal: the pin that goes into metadata.
pub(super) fn fingerprint(pem: &str) -> anyhow::Result<String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("reading the root certificate")?;
    let digest = Sha256::digest(&block.contents);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// When a certificate stops being valid, in seconds since 1970.
pub(super) fn expires_at(pem: &str) -> anyhow::Result<i64> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("reading a certificate")?;
    let certificate = block.parse_x509().context("reading a certificate")?;
    Ok(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_intermediate_is_signed_by_the_root_and_signs_only_leaves() {
        let authorities = Authorities::generate("orders", Uuid::nil()).unwrap();
        let pem = |text: &str| x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1;
        let (root, intermediate) = (pem(&authorities.root.certificate), pem(&authorities.intermediate.certificate));
        let (root, intermediate) = (root.parse_x509().unwrap(), intermediate.parse_x509().unwrap());
        assert_eq!(intermediate.issuer(), root.subject());
        let path_len = |cert: &x509_parser::certificate::X509Certificate<'_>| {
            let constraints = cert.basic_constraints().unwrap().unwrap();
            assert!(constraints.critical && constraints.value.ca);
            constraints.value.path_len_constraint
        };
        assert_eq!((path_len(&root), path_len(&intermediate)), (Some(1), Some(0)));
        let days = |cert: &x509_parser::certificate::X509Certificate<'_>| {
            (cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp()) / 86_400
        };
        assert_eq!((days(&root), days(&intermediate)), (3653, 365));
        assert_eq!(fingerprint(&authorities.root.certificate).unwrap().len(), 64);
    }
}
