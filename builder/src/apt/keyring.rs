//! Key files: which primary keys one has, by full fingerprint. gpgv checks signatures; what it cannot say is whether a
//! downloaded file holds the pinned key and nothing else, so the packets are told apart here (RFC 9580, section 4.2).

use anyhow::{Context, bail, ensure};
use base64::Engine as _;

use crate::digest::Sha256;
use crate::problem::Problem;

/// A certificate: a primary key with its user ids, subkeys and signatures.
#[derive(Debug, Clone)]
pub struct Key {
    /// Full fingerprint of the primary key.
    pub fingerprint: String,
    /// Its packets, as gpgv reads them.
    pub packets: Vec<u8>,
}

const SECRET_KEY: u8 = 5;
const PUBLIC_KEY: u8 = 6;
const SECRET_SUBKEY: u8 = 7;

/// The keys of a file, armoured or not; `place` names it for messages.
pub fn read(bytes: &[u8], place: &str) -> Result<Vec<Key>, Problem> {
    let remedy = "give a file with public keys, as the archive publishes it";
    let keys = binary(bytes).and_then(|bytes| split(&bytes));
    let keys = keys.map_err(|error| Problem::new(format!("not a key file: {error:#}"), place, remedy))?;
    if keys.is_empty() {
        return Err(Problem::new("not a key file: there is no key in it", place, remedy));
    }
    Ok(keys)
}

/// All keys as one binary keyring.
pub fn join(keys: &[Key]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.packets.iter().copied()).collect()
}

fn binary(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        return Ok(bytes.to_owned());
    }
    let text = std::str::from_utf8(bytes).context("neither packets nor text")?;
    ensure!(!text.contains("-----BEGIN PGP PRIVATE KEY BLOCK-----"), "it has a secret key");
    let mut binary = Vec::new();
    for block in text.split("-----BEGIN PGP PUBLIC KEY BLOCK-----").skip(1) {
        let body = block.split("-----END").next().unwrap_or_default().replace('\r', "");
        let data = body.split_once("\n\n").map_or(body.as_str(), |(_, data)| data);
        let lines: String = data.lines().filter(|line| !line.starts_with('=')).map(str::trim).collect();
        binary.extend(base64::engine::general_purpose::STANDARD.decode(lines).context("damaged armour")?);
    }
    Ok(binary)
}

fn split(mut bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    let mut keys: Vec<Key> = Vec::new();
    while !bytes.is_empty() {
        let (tag, header, length) = packet(bytes)?;
        let whole = header.checked_add(length).filter(|end| *end <= bytes.len()).context("it is cut off")?;
        let body = &bytes[header..whole];
        match tag {
            SECRET_KEY | SECRET_SUBKEY => bail!("it has a secret key"),
            PUBLIC_KEY => keys.push(Key { fingerprint: fingerprint(body)?, packets: Vec::new() }),
            _ => {}
        }
        let key = keys.last_mut().context("it does not begin with a key")?;
        key.packets.extend_from_slice(&bytes[..whole]);
        bytes = &bytes[whole..];
    }
    Ok(keys)
}

/// Tag, length of the header, length of the body of the packet at the start of `bytes`.
fn packet(bytes: &[u8]) -> anyhow::Result<(u8, usize, usize)> {
    let byte = |at: usize| bytes.get(at).map(|byte| usize::from(*byte)).context("it is cut off");
    let number = |from: usize, length: usize| (from..from + length).try_fold(0, |n, at| anyhow::Ok(n << 8 | byte(at)?));
    let first = bytes[0];
    ensure!(first & 0x80 != 0, "there is something between its packets");
    if first & 0x40 == 0 {
        let length = match first & 3 {
            3 => bail!("a packet has no length"),
            kind => 1 << kind,
        };
        return anyhow::Ok((first >> 2 & 0xf, 1 + length, number(1, length)?));
    }
    let tag = first & 0x3f;
    match byte(1)? {
        length @ 0..192 => Ok((tag, 2, length)),
        high @ 192..224 => Ok((tag, 3, ((high - 192) << 8) + byte(2)? + 192)),
        255 => Ok((tag, 6, number(2, 4)?)),
        _ => bail!("a packet comes in parts"),
    }
}

fn fingerprint(body: &[u8]) -> anyhow::Result<String> {
    let length = u32::try_from(body.len())?.to_be_bytes();
    match body.first() {
        Some(4) => {
            Ok(sha1_smol::Sha1::from([&[0x99], &length[2..], body].concat()).digest().to_string().to_uppercase())
        }
        Some(6) => Ok(Sha256::of([&[0x9b], &length[..], body].concat()).to_string().to_uppercase()),
        version => bail!("it has a key of version {}, which is not supported", version.unwrap_or(&0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A v4 ed25519 key's packet with a user id behind it: only the framing and the digest matter here.
    fn certificate(seed: u8) -> Vec<u8> {
        let mut body = vec![4, 0x60, 0, 0, 0, 22];
        body.extend([seed; 40]);
        let mut packets = vec![0x98, u8::try_from(body.len()).unwrap()];
        packets.extend(&body);
        packets.extend([0xb4, 1, b'u']);
        packets
    }

    #[test]
    fn keys_are_told_apart_and_join_again() {
        let file = [certificate(1), certificate(2)].concat();
        let keys = read(&file, "x").unwrap();
        assert_eq!(keys.len(), 2);
        assert_ne!(keys[0].fingerprint, keys[1].fingerprint);
        assert_eq!(keys[0].packets, certificate(1));
        assert_eq!(join(&keys), file);
        assert_eq!(keys[0].fingerprint.len(), 40);
        let text = base64::engine::general_purpose::STANDARD.encode(&file);
        let armoured =
            format!("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{text}\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n");
        assert_eq!(join(&read(armoured.as_bytes(), "x").unwrap()), file);
    }

    #[test]
    fn what_is_no_key_file_is_told_so() {
        let mut secret = certificate(1);
        secret[0] = 0x94;
        let cut = &certificate(1)[..20];
        let cases: [(&[u8], &str); 5] = [
            (b"<html>", "no key in it"),
            (&secret, "secret key"),
            (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n", "secret key"),
            (cut, "cut off"),
            (&[0xb4, 1, b'u'], "does not begin with a key"),
        ];
        for (bytes, expected) in cases {
            let problem = read(bytes, "key").unwrap_err();
            assert!(problem.what.contains(expected) && problem.place == "key", "{problem}");
        }
    }
}
