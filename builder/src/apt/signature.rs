//! Who signed an `InRelease` file: gpgv decides whether a signature is good, the recipe whose signature counts.
//!
//! This is the one place where a signature is judged. apt looks at the same files again when it resolves, but only at the
//! copies that passed here.

use std::path::Path;

use anyhow::Context;

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

/// Verifies `inrelease` with the keys in `keyring` (binary); at least one good signature must come from a key of `pinned`
/// (primary fingerprints). `what` names the file for messages, `work` is a scratch directory.
pub fn verify(inrelease: &[u8], keyring: &Path, pinned: &[String], what: &str, work: &Path) -> anyhow::Result<Signed> {
    check_frame(inrelease, what)?;
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
    let signatures = signatures(&String::from_utf8_lossy(&checked.stdout));
    let trusted = signatures.iter().find(|one| one.verdict == Verdict::Good && pinned.contains(&one.signer));
    let Some(trusted) = trusted.filter(|_| !signatures.iter().any(|one| one.verdict == Verdict::Altered)) else {
        return Err(refusal(&signatures, pinned, what).into());
    };
    let text = fs_err::read_to_string(&text).context("reading what gpgv verified")?;
    Ok(Signed { text, signer: trusted.signer.clone() })
}

const BEGIN: &str = "-----BEGIN PGP SIGNED MESSAGE-----\n";
const SIGNATURE: &str = "\n-----BEGIN PGP SIGNATURE-----\n";
const END: &str = "\n-----END PGP SIGNATURE-----\n";

/// One signed text with one block of signatures and nothing around it: what stands outside is signed by nobody, yet a
/// reader less careful than gpgv would take it for content.
fn check_frame(inrelease: &[u8], what: &str) -> Result<(), Problem> {
    let elsewhere = "use another mirror; do not work around it";
    let Ok(text) = std::str::from_utf8(inrelease) else {
        return Err(Problem::new("not UTF-8 text, which a Release file always is", what, elsewhere));
    };
    let text = text.replace("\r\n", "\n");
    let Some((before, rest)) = text.split_once(BEGIN) else {
        return Err(Problem::new(
            "not signed, so nothing in it can be believed",
            what,
            "use a mirror that serves InRelease",
        ));
    };
    if !before.trim().is_empty() {
        return Err(Problem::new("there is text before the signed part, which nobody signed", what, elsewhere));
    }
    let Some((_, after)) = rest.split_once(SIGNATURE).and_then(|(_, rest)| rest.split_once(END)) else {
        return Err(Problem::new(
            "cut off before the end of its signature",
            what,
            "try again later or use another mirror",
        ));
    };
    if !after.trim().is_empty() {
        return Err(Problem::new("there is text after the signature, which nobody signed", what, elsewhere));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Altered,
    KeyExpired,
    KeyRevoked,
    Expired,
    KeyMissing,
    /// Made with a hash for which other content with the same signature can be found.
    Weak(&'static str),
    Unknown,
}

/// One signature as gpgv sees it.
#[derive(Debug, PartialEq, Eq)]
struct Signature {
    verdict: Verdict,
    /// Primary key, full fingerprint, where gpgv knows it; else whatever it says about the key.
    signer: String,
}

/// What gpgv's status lines (doc/DETAILS of GnuPG) say, signature by signature.
fn signatures(status: &str) -> Vec<Signature> {
    let mut all: Vec<Signature> = Vec::new();
    for line in status.lines().filter_map(|line| line.strip_prefix("[GNUPG:] ")) {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "NEWSIG" {
            all.push(Signature { verdict: Verdict::Unknown, signer: String::new() });
        }
        let Some(one) = all.last_mut() else { continue };
        match (words[0], &words[1..]) {
            ("KEY_CONSIDERED", [primary, ..]) => (*primary).clone_into(&mut one.signer),
            ("GOODSIG", _) => one.verdict = Verdict::Good,
            ("BADSIG", _) => one.verdict = Verdict::Altered,
            ("EXPSIG", _) => one.verdict = Verdict::Expired,
            ("EXPKEYSIG", _) => one.verdict = Verdict::KeyExpired,
            ("REVKEYSIG", _) => one.verdict = Verdict::KeyRevoked,
            ("VALIDSIG", [_, _, _, _, _, _, _, hash, .., primary]) => {
                (*primary).clone_into(&mut one.signer);
                if let Some(hash) = weak(hash) {
                    one.verdict = Verdict::Weak(hash);
                }
            }
            ("ERRSIG", [_, _, hash, _, _, reason, key @ ..]) => {
                key.last().iter().for_each(|key| (**key).clone_into(&mut one.signer));
                one.verdict = match (weak(hash), *reason) {
                    (Some(hash), _) => Verdict::Weak(hash),
                    // GPG_ERR_NO_PUBKEY
                    (None, "9") => Verdict::KeyMissing,
                    (None, _) => Verdict::Unknown,
                };
            }
            _ => {}
        }
    }
    all
}

/// Names the hashes (RFC 9580, section 9.5) that must not be trusted; one that is not known is not either.
fn weak(id: &str) -> Option<&'static str> {
    match id {
        "8" | "9" | "10" | "12" | "14" => None,
        "1" => Some("MD5"),
        "2" => Some("SHA-1"),
        "3" => Some("RIPEMD-160"),
        "11" => Some("SHA-224"),
        _ => Some("an unknown hash"),
    }
}

fn refusal(signatures: &[Signature], pinned: &[String], what: &str) -> Problem {
    let names = pinned.join(", ");
    let signers = |verdict: Verdict| {
        let of = signatures.iter().filter(|one| one.verdict == verdict).map(|one| one.signer.as_str());
        of.collect::<Vec<_>>().join(", ")
    };
    let good = signers(Verdict::Good);
    let keys = "update the keyring's package, or correct `key` and `fingerprints` in image.toml";
    let ours = signatures.iter().find(|one| pinned.contains(&one.signer));
    // A signature of a pinned key says more about what is wrong than a stranger's does.
    let Some(told) = ours.or_else(|| signatures.iter().find(|one| one.verdict != Verdict::Good)).or(signatures.first())
    else {
        return Problem::new(
            "there is no signature in its signature block",
            what,
            "use another mirror; do not work around it",
        );
    };
    let besides = match (ours.is_some(), good.is_empty()) {
        (true, false) => format!("; besides it is signed by {good}, which the recipe does not pin"),
        (false, false) if told.verdict != Verdict::Altered => {
            return Problem::new(
                format!("signed by {good}, the recipe pins {names}"),
                what,
                "compare the fingerprints with the ones the archive publishes, then correct `fingerprints` in image.toml",
            );
        }
        _ => String::new(),
    };
    let signer = &told.signer;
    match told.verdict {
        Verdict::Altered if !besides.is_empty() => Problem::new(
            format!("the signature of the pinned key {signer} is of other content{besides}"),
            what,
            "use another mirror; do not work around it",
        ),
        Verdict::Altered => Problem::new(
            "the signature does not match the content: the file was altered or is incomplete",
            what,
            "try again later or use another mirror; do not work around it",
        ),
        // A pinned key's signature is good, another one's is not.
        Verdict::Good => Problem::new(
            format!("the signature of {} does not match the content", signers(Verdict::Altered)),
            what,
            "use another mirror; do not work around it",
        ),
        Verdict::KeyExpired => Problem::new(
            format!("signed by {signer}, a key that has expired; the recipe pins {names}{besides}"),
            what,
            keys,
        ),
        Verdict::KeyRevoked => Problem::new(
            format!("signed by {signer}, a key that was revoked; the recipe pins {names}{besides}"),
            what,
            "take the archive's new key from its owner and pin that; a revoked key may be in other hands",
        ),
        Verdict::Expired => Problem::new(
            format!("signed by {signer}, but the signature has expired{besides}"),
            what,
            "use a mirror that is kept up to date",
        ),
        Verdict::KeyMissing => Problem::new(
            format!("signed by a key that is not in the keyring ({signer}); the recipe pins {names}{besides}"),
            what,
            keys,
        ),
        Verdict::Weak(hash) => Problem::new(
            format!("signed with {hash}, for which other content with the same signature can be made{besides}"),
            what,
            "ask the archive's owner to sign with SHA-256 or better; there is no safe way to use it as it is",
        ),
        Verdict::Unknown => Problem::new(
            format!("gpgv cannot judge the signature{besides}"),
            what,
            "use another mirror, or report this",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "[GNUPG:] NEWSIG\n[GNUPG:] KEY_CONSIDERED B8B8 0\n[GNUPG:] GOODSIG 6ED0 a\n\
        [GNUPG:] VALIDSIG 4CB5 2026-11-21 1 0 4 0 1 8 01 B8B8\n\
        [GNUPG:] NEWSIG\n[GNUPG:] EXPKEYSIG 78DB b\n[GNUPG:] VALIDSIG B8E5 2026-11-21 1 0 4 0 1 8 01 04B5\n";

    fn told(status: &str, pinned: &str) -> String {
        refusal(&signatures(status), &[pinned.to_owned()], "x").what
    }

    #[test]
    fn only_good_signatures_count_and_by_their_primary_key() {
        let found = signatures(STATUS);
        let of = |n: usize| (found[n].verdict, found[n].signer.as_str());
        assert_eq!([of(0), of(1)], [(Verdict::Good, "B8B8"), (Verdict::KeyExpired, "04B5")]);
        let sha1 = STATUS.replace(" 8 01 B8B8", " 2 01 B8B8");
        assert_eq!(signatures(&sha1)[0].verdict, Verdict::Weak("SHA-1"));
    }

    #[test]
    fn a_refusal_says_most_about_the_pinned_key() {
        assert!(told(STATUS, "04B5").starts_with("signed by 04B5, a key that has expired"), "{}", told(STATUS, "04B5"));
        assert!(told(STATUS, "04B5").ends_with("besides it is signed by B8B8, which the recipe does not pin"));
        assert_eq!(told(STATUS, "FFFF"), "signed by B8B8, the recipe pins FFFF");
        assert!(told("[GNUPG:] NEWSIG\n[GNUPG:] BADSIG 1 a\n", "04B5").contains("altered"));
        assert!(told("", "04B5").contains("no signature"));
    }

    #[test]
    fn nothing_may_stand_around_the_signed_text() {
        let good = format!("{BEGIN}Hash: SHA512\n\nOrigin: x{SIGNATURE}\nabc{END}");
        assert_eq!(check_frame(good.as_bytes(), "x"), Ok(()));
        let what = |text: String| check_frame(text.as_bytes(), "x").unwrap_err().what;
        assert!(what(format!("Origin: y\n{good}")).contains("before"));
        assert!(what(format!("{good}Origin: y\n")).contains("after"));
        assert!(what(format!("{good}{good}")).contains("after"));
        assert!(what(good.replace(END, "")).contains("cut off"));
        assert!(what("Origin: x\n".to_owned()).contains("not signed"));
    }
}
