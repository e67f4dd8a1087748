//! OpenPGP keys made on the spot: good ones, and every kind an archive must not be believed for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use pgkiln::tool::{Cmd, Tool};

const GPG: Tool = Tool { name: "gpg", package: "gpg", minimum: None, why: "signing the test archive" };
const GPGCONF: Tool = Tool { name: "gpgconf", package: "gpgconf", minimum: None, why: "stopping the test keys' agent" };

/// Long ago; keys born then can have expired by now.
pub const LONG_AGO: &str = "20200101T000000!";

/// Secret keys in a directory of their own, by name.
#[derive(Debug)]
pub struct Keys {
    home: tempfile::TempDir,
    fingerprints: BTreeMap<String, String>,
}

impl Keys {
    /// No keys yet.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { home: tempfile::tempdir()?, fingerprints: BTreeMap::new() })
    }

    /// Makes a key. `more` are arguments before gpg's command (`--faked-system-time`), `expires` is gpg's.
    pub fn make(&mut self, name: &str, algorithm: &str, expires: &str, more: &[&str]) -> anyhow::Result<()> {
        let user = format!("{name} test key <{name}@example.org>");
        let generate = ["--passphrase", "", "--quick-generate-key", &user, algorithm, "sign", expires];
        self.gpg().args(more).args(generate).run()?;
        let listed = self.gpg().args(["--with-colons", "--list-keys", &user]).text()?;
        let fingerprint = listed.lines().find_map(|line| line.strip_prefix("fpr:")?.split(':').nth(8));
        self.fingerprints.insert(name.into(), fingerprint.context("gpg lists no fingerprint")?.into());
        Ok(())
    }

    fn gpg(&self) -> Cmd {
        Cmd::new(&GPG).args(["--batch", "--quiet", "--no-tty", "--homedir"]).arg(self.home.path()).env("LC_ALL", "C")
    }

    /// Full fingerprint.
    pub fn fingerprint(&self, name: &str) -> &str {
        &self.fingerprints[name]
    }

    /// Public keys of these names as a binary keyring called `file`.
    pub fn export(&self, file: &str, names: &[&str]) -> anyhow::Result<PathBuf> {
        let keys = names.iter().map(|name| self.fingerprint(name));
        let path = self.path(file);
        fs_err::write(&path, self.gpg().arg("--export").args(keys).output()?)?;
        Ok(path)
    }

    /// A key with its secret part, as nobody should publish it.
    pub fn export_secret(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        self.gpg().args(["--passphrase", "", "--export-secret-keys", self.fingerprint(name)]).output()
    }

    /// A file beside the keys.
    pub fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    /// Signs in the clear; `more` are further arguments (`--digest-algo SHA1`).
    pub fn clearsign(&self, text: impl Into<Vec<u8>>, names: &[&str], more: &[&str]) -> anyhow::Result<Vec<u8>> {
        let users = names.iter().flat_map(|name| ["--local-user", self.fingerprint(name)]);
        self.gpg().args(more).args(users).arg("--clearsign").stdin_bytes(text).output()
    }

    /// Makes the key's owner take it back.
    pub fn revoke(&self, name: &str) -> anyhow::Result<()> {
        let made = self.home.path().join(format!("openpgp-revocs.d/{}.rev", self.fingerprint(name)));
        // gpg puts a colon there so that nobody does this by mistake.
        let certificate = fs_err::read_to_string(made)?.replace(":-----BEGIN", "-----BEGIN");
        self.gpg().arg("--import").stdin_bytes(certificate).run()
    }

    /// The binary content of an armoured block.
    pub fn dearmour(&self, text: &str) -> anyhow::Result<Vec<u8>> {
        self.gpg().arg("--dearmor").stdin_bytes(text).output()
    }

    /// The other way round, for signatures.
    pub fn armour_signature(&self, packets: &[u8]) -> anyhow::Result<String> {
        let armoured = String::from_utf8(self.gpg().arg("--enarmor").stdin_bytes(packets).output()?)?;
        let comment = |line: &&str| !line.starts_with("Comment:");
        let lines: Vec<&str> = armoured.lines().filter(comment).collect();
        Ok(lines.join("\n").replace("PGP ARMORED FILE", "PGP SIGNATURE") + "\n")
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // gpg started an agent for the keys; it would notice the missing directory only after a while.
        let _ = Cmd::new(&GPGCONF).arg("--homedir").arg(self.home.path()).args(["--kill", "gpg-agent"]).run();
    }
}
