//! Secure Boot: a signature on what the firmware starts, made after everything else is decided.
//!
//! sbsign of the tool tree makes it and puts the time of day into it, which is part of what is signed. So the time is set to
//! the image's and that part is signed again with the same key: RSA (PKCS #1 v1.5) gives the same signature every time.
//!
//! Microsoft, "Windows Authenticode Portable Executable Signature Format"; RFC 2315 (PKCS #7) 9.2 and 9.3.

use std::path::PathBuf;

use anyhow::Context;
use rcgen::{KeyPair, SigningKey as _};

use super::Work;
use crate::problem::Problem;

/// Who signs.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Private RSA key, PEM (PKCS #8), without passphrase.
    pub key: PathBuf,
    /// Its certificate, PEM: what the firmware is told to believe.
    pub certificate: PathBuf,
}

/// The attribute `signingTime` as far as its value: identifier 1.2.840.113549.1.9.5, a set with one UTCTime.
const SIGNING_TIME: [u8; 15] =
    [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x05, 0x31, 0x0f, 0x17, 0x0d];
/// `YYMMDDHHMMSSZ`.
const TIME: usize = 13;
/// The attribute `contentType`, which comes first among what is signed.
const CONTENT_TYPE: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x03];

/// Signs `<dir>/<name>` and returns the signed program's path.
pub(super) fn sign(work: &Work<'_>, keys: &Keys, name: &str) -> anyhow::Result<PathBuf> {
    let pem = fs_err::read_to_string(&keys.key)?;
    let key = KeyPair::from_pem(&pem).map_err(|error| {
        let remedy = "give an RSA key as PEM (PKCS #8) without passphrase: `openssl pkcs8 -topk8 -nocrypt -in KEY`";
        Problem::new(format!("not a private key: {error}"), keys.key.display().to_string(), remedy)
    })?;
    // Beside what other tools see, for as long as sbsign reads them; should we be killed, the next bake sweeps it.
    let private = tempfile::tempdir_in(work.dir.parent().context("path of the bake's directory")?)?;
    fs_err::copy(&keys.key, private.path().join("key"))?;
    fs_err::copy(&keys.certificate, private.path().join("certificate"))?;
    let signed = format!("{name}.signed");
    let (from, to) = (format!("/srv/{name}"), format!("/srv/{signed}"));
    let argv = ["sbsign", "--key", "/mnt/key", "--cert", "/mnt/certificate", "--output", &to, &from];
    work.sandbox().bind(private.path(), "mnt", true).run(&argv)?;
    let path = work.dir.join(signed);
    let mut program = fs_err::read(&path)?;
    at_time(&mut program, work.epoch, &|message| Ok(key.sign(message)?))?;
    fs_err::write(&path, program)?;
    Ok(path)
}

/// Sets the signature's time and signs again.
fn at_time(program: &mut [u8], epoch: u64, sign: &dyn Fn(&[u8]) -> anyhow::Result<Vec<u8>>) -> anyhow::Result<()> {
    let header = u32_at(program, 0x3c)? + 24;
    let (start, length) = (u32_at(program, header + 144)?, u32_at(program, header + 148)?);
    let table = program.get_mut(start..start + length).context("the signature is outside the program")?;
    let find = |table: &[u8], what: &[u8]| table.windows(what.len()).rposition(|part| part == what);
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
    let place = find(&table[..], &[&[0x04, 0x82], &(signature.len() as u16).to_be_bytes()[..]].concat());
    let place = place.filter(|place| *place >= end).context("the signature is not of this key's size")? + 4;
    table[place..place + signature.len()].copy_from_slice(&signature);
    let sum = checksum(program, header + 64);
    program[header + 64..header + 68].copy_from_slice(&sum.to_le_bytes());
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
