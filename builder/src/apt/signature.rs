//! Who signed an `InRelease` file: gpgv decides whether a signature is good, the recipe whose signature counts.

use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine as _;

use crate::problem::Problem;
use crate::tool::{Cmd, table};

/// The signed text and the pinned key that signed it.
#[derive(Debug)]
pub struct Signed {
    /// What was signed; nothing outside the signature is in it.
    pub text: String,
    /// Primary key, full fingerprint.
    pub signer: String,
}

/// Verifies `inrelease` with the keys in `keyring`; at least one good signature must come from a key of `pinned` (primary
/// fingerprints). `what` names the file for messages, `work` is a scratch directory.
pub fn verify(inrelease: &[u8], keyring: &Path, pinned: &[String], what: &str, work: &Path) -> anyhow::Result<Signed> {
    let signed = work.join("InRelease.signed");
    let text = work.join("InRelease.text");
    fs_err::write(&signed, inrelease)?;
    let _ = fs_err::remove_file(&text);
    let checked = Cmd::new(&table::GPGV)
        .args(["--status-fd", "1", "--keyring"])
        .arg(keyring)
        .arg("--output")
        .arg(&text)
        .arg(&signed)
        .env("LC_ALL", "C")
        .captured()?;
    let status = String::from_utf8_lossy(&checked.stdout).into_owned();
    let good = good_signers(&status);
    let signer = good.iter().find(|signer| pinned.contains(signer)).cloned();
    let Some(signer) = signer.filter(|_| !status.contains("[GNUPG:] BADSIG")) else {
        return Err(refusal(&status, &good, pinned, what).into());
    };
    let text = fs_err::read_to_string(&text).context("reading what gpgv verified")?;
    Ok(Signed { text, signer })
}

/// Primary fingerprints of good signatures by keys that are neither expired nor revoked.
fn good_signers(status: &str) -> Vec<String> {
    let (mut signers, mut good) = (Vec::new(), false);
    for line in status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] ")) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "NEWSIG" => good = false,
            "GOODSIG" => good = true,
            // The last word is the primary key, the first the (sub)key that signed.
            "VALIDSIG" if good => signers.extend(words.last().map(|word| (*word).to_owned())),
            _ => {}
        }
    }
    signers
}

fn refusal(status: &str, good: &[String], pinned: &[String], what: &str) -> Problem {
    let pinned = pinned.join(", ");
    if status.contains("[GNUPG:] BADSIG") {
        return Problem::new(
            "the signature does not match the content: the file was altered or is incomplete",
            what,
            "try again later or use another mirror; do not work around it",
        );
    }
    if !good.is_empty() {
        return Problem::new(
            format!("signed by {}, the recipe pins {pinned}", good.join(", ")),
            what,
            "compare the fingerprints with the ones the archive publishes, then correct `fingerprints` in image.toml",
        );
    }
    let trouble = [
        ("EXPKEYSIG", "signed by a key that has expired"),
        ("REVKEYSIG", "signed by a key that was revoked"),
        ("EXPSIG", "signed, but the signature has expired"),
        ("NO_PUBKEY", "signed by a key that is not in the keyring"),
    ];
    match trouble.iter().find(|(word, _)| status.contains(&format!("[GNUPG:] {word}"))) {
        Some((_, trouble)) => Problem::new(
            format!("{trouble}; the recipe pins {pinned}"),
            what,
            "update the keyring's package, or correct `key` and `fingerprints` in image.toml",
        ),
        None => {
            Problem::new("not signed, so nothing in it can be believed", what, "use a mirror that serves InRelease")
        }
    }
}

/// gpgv reads binary keyrings only; an armoured one is decoded into `work`.
pub fn binary_keyring(path: &Path, work: &Path) -> anyhow::Result<PathBuf> {
    let bytes = fs_err::read(path)?;
    if !bytes.starts_with(b"-----BEGIN PGP") {
        return Ok(path.to_owned());
    }
    let text = String::from_utf8(bytes).with_context(|| format!("reading {}", path.display()))?;
    let mut binary = Vec::new();
    for block in text.split("-----BEGIN PGP PUBLIC KEY BLOCK-----").skip(1) {
        let body = block.split("-----END").next().unwrap_or_default().replace('\r', "");
        let data = body.split_once("\n\n").map_or(body.as_str(), |(_, data)| data);
        let lines: String = data.lines().filter(|line| !line.starts_with('=')).map(str::trim).collect();
        let engine = base64::engine::general_purpose::STANDARD;
        binary.extend(engine.decode(lines).with_context(|| format!("decoding {}", path.display()))?);
    }
    let name = path.file_name().map_or_else(|| "keyring".into(), |name| name.to_string_lossy());
    let decoded = work.join(format!("{name}.gpg"));
    fs_err::write(&decoded, binary)?;
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 6ED0 a\n[GNUPG:] VALIDSIG 4CB5 2026-11-21 1 0 4 0 1 8 01 B8B8\n\
        [GNUPG:] NEWSIG\n[GNUPG:] EXPKEYSIG 78DB b\n[GNUPG:] VALIDSIG B8E5 2026-11-21 1 0 4 0 1 8 01 04B5\n";

    #[test]
    fn only_good_signatures_count_and_by_their_primary_key() {
        assert_eq!(good_signers(STATUS), ["B8B8"]);
    }

    #[test]
    fn a_refusal_tells_a_wrong_key_from_an_altered_file() {
        let pinned = ["04B5".to_owned()];
        assert!(
            refusal(STATUS, &good_signers(STATUS), &pinned, "x")
                .what
                .starts_with("signed by B8B8, the recipe pins 04B5")
        );
        assert!(refusal("[GNUPG:] BADSIG 1 a\n", &[], &pinned, "x").what.contains("altered"));
        assert!(refusal("", &[], &pinned, "x").what.contains("not signed"));
    }
}
