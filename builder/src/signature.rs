//! A signature over `SHA256SUMS`, and with it over every output: minisign's format (Ed25519; jedisct1.github.io/minisign).
//!
//! It is a step of its own, so that the key need not be where images are baked. It names image and version in its trusted
//! comment instead of the time: signing the same bake again gives the same bytes, and an older bake's signature cannot be
//! passed off for a newer one's.

use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};

use crate::problem::Problem;
use crate::tool::{Cmd, table};
use crate::verify::{self, SUMS, Verified};

/// Beside [`SUMS`].
pub const FILE: &str = "SHA256SUMS.minisig";

/// A signature that was made.
#[derive(Debug)]
pub struct Signed {
    /// Where it is.
    pub file: PathBuf,
    /// What it says.
    pub comment: String,
}

/// Checks the outputs in `dir` and signs them; only what is in order is signed.
///
/// # Errors
///
/// If the outputs are not what was baked, or minisign refuses the key.
pub fn sign(dir: &Path, key: &Path) -> anyhow::Result<Signed> {
    let Verified { image, version, .. } = verify::verify(dir, None)?;
    let (file, comment) = (dir.join(FILE), comment(&image, &version));
    let cmd = Cmd::new(&table::MINISIGN).arg("-S").arg("-s").arg(key).arg("-m").arg(dir.join(SUMS));
    let cmd = cmd.arg("-x").arg(&file).args(["-t", &comment, "-c", "pgkiln: signature of SHA256SUMS"]);
    if !cmd.interactive()?.success() {
        let remedy = "name the secret key (`minisign -G` makes one) and give its password";
        return Err(Problem::new("minisign did not sign", key.display().to_string(), remedy).into());
    }
    Ok(Signed { file, comment })
}

/// Checks the signature in `dir` by the key in a file as `minisign -G` writes it, or spelled out; the problem, if there is one.
pub(crate) fn check(dir: &Path, key: &str, image: &str, version: &str) -> anyhow::Result<Option<Problem>> {
    let key = public_key(key)?;
    let file = dir.join(FILE);
    let place = file.display().to_string();
    let told = |what: &str, remedy: &str| Ok(Some(Problem::new(what, place.clone(), remedy)));
    if !file.is_file() {
        return told("there is no signature", "`pgkiln sign` makes it where the key is; copy it from there");
    }
    let Ok(signature) = Signature::decode(&fs_err::read_to_string(&file)?) else {
        return told("not a signature of minisign", "copy it again from where it was signed");
    };
    let legacy = false;
    if key.verify(&fs_err::read(dir.join(SUMS))?, &signature, legacy).is_err() {
        return told(
            "it is not this key's signature of SHA256SUMS: another key signed, or the sums were altered",
            "do not use these files; get them, and the public key, again from who signs them",
        );
    }
    let (found, expected) = (signature.trusted_comment(), comment(image, version));
    if found != expected {
        return told(&format!("it is the signature of `{found}`, not of `{expected}`"), "sign with `pgkiln sign`");
    }
    Ok(None)
}

fn comment(image: &str, version: &str) -> String {
    format!("{image} {version}")
}

fn public_key(key: &str) -> anyhow::Result<PublicKey> {
    let file = Path::new(key);
    let read = if file.is_file() { PublicKey::from_file(file) } else { PublicKey::from_base64(key) };
    Ok(read.map_err(|error| {
        let remedy = "give the file `minisign -G` wrote, or its second line";
        Problem::new(format!("neither a file with a public key nor a public key: {error}"), key, remedy)
    })?)
}
