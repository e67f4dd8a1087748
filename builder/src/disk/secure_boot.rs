//! Secure Boot: a signature on what the firmware starts, made after everything else is decided.
//!
//! sbsign of the tool tree makes it and puts the time of day into it, which is part of what is signed. So the time is set to
//! the image's and that part is signed again with the same key: RSA (PKCS #1 v1.5) gives the same signature every time.
//!
//! A key that nobody can take out of its token (PKCS #11, a service) cannot be given to sbsign. It then gets one that is
//! thrown away, and the certificate with that one's public key; the certificate's own is put back, and what is signed in the
//! end is signed by the operator's command. So the bytes are those that the key itself would give.
//!
//! Microsoft, "Windows Authenticode Portable Executable Signature Format"; RFC 2315 (PKCS #7) 9.2 and 9.3; RFC 8017
//! (PKCS #1) 9.2.

use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{KeyPair, SigningKey as _};
use rustls::SignatureScheme;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::cluster::private_temporary_dir;
use crate::digest::Sha256;
use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// Who signs.
#[derive(Debug, Clone)]
pub struct Keys {
    /// The key, or how to reach it.
    pub signer: Signer,
    /// Its certificate, PEM: what the firmware is told to believe.
    pub certificate: PathBuf,
}

/// Where the private key is.
#[derive(Debug, Clone)]
pub enum Signer {
    /// In a file: RSA, PEM (PKCS #8), without passphrase.
    Key(PathBuf),
    /// Elsewhere. A line for `sh`, run once for each signature: it reads a `DigestInfo` (DER, SHA-256) and writes the raw
    /// RSA signature of it (PKCS #1 v1.5).
    Command(String),
}

/// The attribute `signingTime` as far as its value: identifier 1.2.840.113549.1.9.5, a set with one UTCTime.
const SIGNING_TIME: [u8; 15] =
    [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x05, 0x31, 0x0f, 0x17, 0x0d];
/// `YYMMDDHHMMSSZ`.
const TIME: usize = 13;
/// The attribute `contentType`, which comes first among what is signed.
const CONTENT_TYPE: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];
/// A `DigestInfo` of SHA-256 as far as the digest (RFC 8017, 9.2, note 1).
const DIGEST_INFO: [u8; 19] =
    [0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20];
/// What UEFI's firmware believes (EDK II: 2048 to 4096), in bits.
const SIZES: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Signs `<dir>/<name>` with sbsign of the tool tree at `tools`, and returns the signed program's path.
pub fn sign(tools: &Path, dir: &Path, epoch: u64, keys: &Keys, name: &str) -> anyhow::Result<PathBuf> {
    let certificate = Certificate::read(&keys.certificate)?;
    // Beside what other tools see, for as long as sbsign reads them; should we be killed, the next bake sweeps it.
    let private = private_temporary_dir(dir.parent().context("path of the bake's directory")?)?;
    let key_file = private.path().join("key");
    let (shown, signer) = match &keys.signer {
        Signer::Key(path) => {
            let key = key(path, &certificate)?;
            fs_err::copy(path, &key_file)?;
            (certificate.der.clone(), Signs::Key(Box::new(key)))
        }
        Signer::Command(line) => (certificate.of_another_key(&key_file)?, Signs::Command(line)),
    };
    fs_err::write(private.path().join("certificate"), pem("CERTIFICATE", &shown))?;
    let signed = format!("{name}.signed");
    let (from, to) = (format!("/srv/{name}"), format!("/srv/{signed}"));
    let argv = ["sbsign", "--key", "/mnt/key", "--cert", "/mnt/certificate", "--output", &to, &from];
    super::sandbox(tools, dir, epoch).bind(private.path(), "mnt", true).run(&argv)?;
    let path = dir.join(signed);
    let mut program = fs_err::read(&path)?;
    let table = signature_table(&mut program)?;
    let place = find(table, &shown).context("the signature has not the certificate in it")?;
    table[place..place + shown.len()].copy_from_slice(&certificate.der);
    at_time(&mut program, epoch, &|message| {
        let signature = signer.sign(message)?;
        certificate.check(message, &signature).map_err(|what| signer.blame(what, &certificate))?;
        Ok(signature)
    })?;
    fs_err::write(&path, program)?;
    Ok(path)
}

/// The key in a file, which must be the certificate's.
fn key(path: &Path, certificate: &Certificate) -> anyhow::Result<KeyPair> {
    let key = KeyPair::from_pem(&fs_err::read_to_string(path)?).map_err(|error| {
        let remedy = "give an RSA key as PEM (PKCS #8) without passphrase: `openssl pkcs8 -topk8 -nocrypt -in KEY`";
        Problem::new(format!("not a private key: {error}"), path.display().to_string(), remedy)
    })?;
    if key.public_key_raw() != certificate.public {
        let what = format!("not the key of the certificate {}", certificate.place);
        let remedy = "give the key and the certificate that was made for it";
        return Err(Problem::new(what, path.display().to_string(), remedy).into());
    }
    Ok(key)
}

/// Makes a signature.
enum Signs<'a> {
    Key(Box<KeyPair>),
    Command(&'a str),
}

impl Signs<'_> {
    fn sign(&self, message: &[u8]) -> anyhow::Result<Vec<u8>> {
        let line = match self {
            Self::Key(key) => return Ok(key.sign(message)?),
            Self::Command(line) => line,
        };
        let digest = [&DIGEST_INFO[..], Sha256::of(message).as_bytes()].concat();
        let signed = Cmd::new(&table::SH).args(["-c", line]).stdin_bytes(digest).output();
        signed.map_err(|error| Problem::new(format!("{error:#}"), COMMAND, CONTRACT).into())
    }

    /// Why a signature is not taken.
    fn blame(&self, what: String, certificate: &Certificate) -> Problem {
        match self {
            Self::Key(_) => Problem::new(what, certificate.place.clone(), "report this: the key fits the certificate"),
            Self::Command(_) => Problem::new(format!("its output is no signature: {what}"), COMMAND, CONTRACT),
        }
    }
}

/// Where a problem with the command is.
const COMMAND: &str = "--secure-boot-command";
/// What to do about it.
const CONTRACT: &str = "the command must sign what it reads with the certificate's key (RSA, PKCS #1 v1.5, no hashing) and write \
                        nothing else, like `openssl pkeyutl -sign -inkey KEY` or `pkcs11-tool --sign --mechanism RSA-PKCS`";

/// A certificate with an RSA key.
struct Certificate {
    place: String,
    der: Vec<u8>,
    /// `RSAPublicKey` (RFC 8017, A.1.1).
    public: Vec<u8>,
    bits: usize,
}

impl Certificate {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let place = path.display().to_string();
        let problem = |what: String| {
            let remedy = "give the certificate of an RSA key (2048 to 4096 bits, public exponent 65537) as PEM";
            Problem::new(what, place.clone(), remedy)
        };
        let bytes = fs_err::read(path)?;
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(&bytes).map_err(|error| problem(format!("not PEM: {error}")))?;
        let (_, parsed) =
            X509Certificate::from_der(&pem.contents).map_err(|error| problem(format!("not a certificate: {error}")))?;
        let public = parsed.public_key();
        let rsa = match public.parsed() {
            Ok(PublicKey::RSA(rsa)) if rsa.try_exponent() == Ok(65537) => rsa,
            _ => return Err(problem("its key is not RSA with the public exponent 65537".to_owned()).into()),
        };
        let bits = rsa.key_size();
        if !SIZES.contains(&bits) {
            return Err(problem(format!("its key has {bits} bits, which firmware does not take")).into());
        }
        let public = public.subject_public_key.data.to_vec();
        Ok(Self { public, bits, der: pem.contents.clone(), place })
    }

    /// The same with the public key of one that is made now, into `file`, and has the same size.
    fn of_another_key(&self, file: &Path) -> anyhow::Result<Vec<u8>> {
        let bits = format!("rsa_keygen_bits:{}", self.bits);
        let made =
            Cmd::new(&table::OPENSSL).args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", &bits, "-out"]);
        made.arg(file).run()?;
        let key = KeyPair::from_pem(&fs_err::read_to_string(file)?).context("reading the key that was made")?;
        let mut der = self.der.clone();
        let place = find(&der, &self.public).context("the certificate has its key in it")?;
        let other = key.public_key_raw();
        anyhow::ensure!(other.len() == self.public.len(), "openssl made a key of another size");
        der[place..place + other.len()].copy_from_slice(other);
        Ok(der)
    }

    /// Whether a signature is this certificate's; if not, what is wrong with it.
    fn check(&self, message: &[u8], signature: &[u8]) -> Result<(), String> {
        let length = self.bits.div_ceil(8);
        if signature.len() != length {
            return Err(format!("{} bytes instead of {length}", signature.len()));
        }
        let known = rustls::crypto::ring::default_provider().signature_verification_algorithms.mapping;
        let ours = known.iter().filter(|(scheme, _)| *scheme == SignatureScheme::RSA_PKCS1_SHA256);
        let good = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
            algorithm.verify_signature(&self.public, message, signature).is_ok()
        };
        match ours.flat_map(|(_, algorithms)| *algorithms).any(good) {
            true => Ok(()),
            false => Err(format!("the key of {} did not make it", self.place)),
        }
    }
}

/// As PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + &format!("-----END {label}-----\n")
}

/// The last place of `what`.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).rposition(|part| part == what)
}

/// The program's table of signatures.
fn signature_table(program: &mut [u8]) -> anyhow::Result<&mut [u8]> {
    let header = u32_at(program, 0x3c)? + 24;
    let (start, length) = (u32_at(program, header + 144)?, u32_at(program, header + 148)?);
    program.get_mut(start..start + length).context("the signature is outside the program")
}

/// Sets the signature's time and signs again.
fn at_time(program: &mut [u8], epoch: u64, sign: &dyn Fn(&[u8]) -> anyhow::Result<Vec<u8>>) -> anyhow::Result<()> {
    let table = signature_table(program)?;
    let time = find(table, &SIGNING_TIME).context("the signature has no time")? + SIGNING_TIME.len();
    let text = jiff::Timestamp::from_second(i64::try_from(epoch)?)?.strftime("%y%m%d%H%M%SZ").to_string();
    table[time..time + TIME].copy_from_slice(text.as_bytes());
    // Attributes begin before their first one: its own sequence's head of two bytes, and theirs.
    let first = find(table, &CONTENT_TYPE).context("the signature has no attributes")? - 2;
    let (attributes, end) = attributes(table, first)?;
    // What is signed is a SET OF; in place it has an implicit tag.
    let mut message = table[attributes..end].to_vec();
    message[0] = 0x31;
    let signature = sign(&message)?;
    let place = find(table, &[&[0x04, 0x82], &(signature.len() as u16).to_be_bytes()[..]].concat());
    let place = place.filter(|place| *place >= end).context("the signature is not of this key's size")? + 4;
    table[place..place + signature.len()].copy_from_slice(&signature);
    let field = u32_at(program, 0x3c)? + 24 + 64;
    let sum = checksum(program, field);
    program[field..field + 4].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// Start and end of `[0] IMPLICIT SET OF` whose content starts at `content`.
fn attributes(table: &[u8], content: usize) -> anyhow::Result<(usize, usize)> {
    for head in [2, 3, 4] {
        let Some(start) = content.checked_sub(head) else { continue };
        let length = match (head, &table[start..content]) {
            (2, [0xa0, short]) if *short < 0x80 => usize::from(*short),
            (3, [0xa0, 0x81, one]) => usize::from(*one),
            (4, [0xa0, 0x82, high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
            _ => continue,
        };
        anyhow::ensure!(content + length <= table.len(), "the signature's attributes end outside it");
        return Ok((start, content + length));
    }
    anyhow::bail!("the signature's attributes do not begin where they should")
}

/// The checksum of a PE program: 16-bit words with carry, without the field itself, and the length.
fn checksum(program: &[u8], field: usize) -> u32 {
    let mut sum = 0u32;
    for (n, word) in program.chunks(2).enumerate() {
        if (field..field + 4).contains(&(2 * n)) {
            continue;
        }
        sum += u32::from(word[0]) | u32::from(word.get(1).copied().unwrap_or_default()) << 8;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum + program.len() as u32
}

fn u32_at(bytes: &[u8], at: usize) -> anyhow::Result<usize> {
    let bytes = bytes.get(at..at + 4).context("not an EFI program")?;
    Ok(u32::from_le_bytes(std::array::from_fn(|n| bytes[n])) as usize)
}
