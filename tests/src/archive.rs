//! A small signed Debian archive made on the spot, so that locking, fetching and baking are tested without a network and
//! survive the real archive moving on.
//!
//! ```text
//! let mut archive = Archive::new("stable")?;
//! archive.add(&Deb::new("app", "1:2.0-1").depends("lib (>= 1.0)"))?;
//! archive.publish(&Publication::default())?;
//! let server = Server::start(archive.dir())?;          // archive_server.rs
//! let image = archive.recipe(&work, &server.url(), &["app"])?;
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use pgkiln::digest::Sha256;
use pgkiln::tool::{Cmd, Tool};

const GPG: Tool = Tool { name: "gpg", package: "gpg", minimum: None, why: "signing the test archive" };
const GPGCONF: Tool = Tool { name: "gpgconf", package: "gpgconf", minimum: None, why: "stopping the test keys' agent" };
const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg", minimum: None, why: "building test packages" };

/// A package to build.
#[derive(Debug, Clone)]
pub struct Deb {
    name: String,
    version: String,
    fields: Vec<(&'static str, String)>,
    files: Vec<(String, String)>,
    scripts: Vec<(&'static str, String)>,
}

impl Deb {
    /// A package with one file, `/usr/share/<name>/version`.
    pub fn new(name: &str, version: &str) -> Self {
        let file = (format!("usr/share/{name}/version"), format!("{version}\n"));
        Self { name: name.into(), version: version.into(), fields: Vec::new(), files: vec![file], scripts: Vec::new() }
    }

    /// Adds a control field.
    #[must_use]
    pub fn field(mut self, name: &'static str, value: &str) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Adds `Depends`.
    #[must_use]
    pub fn depends(self, on: &str) -> Self {
        self.field("Depends", on)
    }

    /// Makes it part of every system.
    #[must_use]
    pub fn essential(self) -> Self {
        self.field("Essential", "yes")
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, content: &str) -> Self {
        self.files.push((path.trim_start_matches('/').into(), content.into()));
        self
    }

    /// Adds a maintainer script or another control file (`conffiles`, `triggers`).
    #[must_use]
    pub fn script(mut self, name: &'static str, content: &str) -> Self {
        self.scripts.push((name, content.into()));
        self
    }

    fn file_name(&self) -> String {
        let version = self.version.split_once(':').map_or(self.version.as_str(), |(_, version)| version);
        format!("{}_{version}_all.deb", self.name)
    }

    fn control(&self) -> String {
        let mut text = format!("Package: {}\nVersion: {}\nArchitecture: all\n", self.name, self.version);
        text.push_str("Maintainer: Tests <tests@example.org>\nDescription: made for a test\n");
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\n"));
        }
        text
    }

    /// Builds the package at `to`.
    pub fn build(&self, to: &Path) -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        let debian = root.path().join("DEBIAN");
        fs_err::create_dir_all(&debian)?;
        fs_err::write(debian.join("control"), self.control())?;
        for (name, content) in &self.scripts {
            let path = debian.join(name);
            fs_err::write(&path, content)?;
            let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
            fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        }
        for (path, content) in &self.files {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().context("a packaged file has a directory")?)?;
            fs_err::write(path, content)?;
        }
        fs_err::create_dir_all(to.parent().context("the pool")?)?;
        Cmd::new(&DPKG_DEB).args(["--root-owner-group", "-Zgzip", "--build"]).arg(root.path()).arg(to).run()
    }
}

/// How a suite is published.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Until when, from now; negative: expired. `None`: for ever.
    pub valid_for: Option<SignedDuration>,
    /// Signed by the archive's second key instead of its first.
    pub second_key: bool,
    /// Whether indexes are also published by digest.
    pub by_hash: bool,
}

impl Default for Publication {
    fn default() -> Self {
        Self { valid_for: Some(SignedDuration::from_hours(24)), second_key: false, by_hash: false }
    }
}

/// An archive with one suite (`main`, `amd64`) and two keys.
#[derive(Debug)]
pub struct Archive {
    dir: tempfile::TempDir,
    gnupg: tempfile::TempDir,
    suite: String,
    debs: Vec<Deb>,
    fingerprints: Vec<String>,
}

impl Archive {
    /// An empty archive with fresh keys.
    pub fn new(suite: &str) -> anyhow::Result<Self> {
        let (dir, gnupg) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let mut archive = Self { dir, gnupg, suite: suite.into(), debs: Vec::new(), fingerprints: Vec::new() };
        for name in ["First", "Second"] {
            let user = format!("{name} Test Key <{name}@example.org>");
            archive
                .gpg()
                .args(["--passphrase", "", "--quick-generate-key", &user, "ed25519", "sign", "never"])
                .run()?;
            let listed = archive.gpg().args(["--with-colons", "--list-keys", &user]).text()?;
            let fingerprint = listed.lines().find_map(|line| line.strip_prefix("fpr:")?.split(':').nth(8));
            archive.fingerprints.push(fingerprint.context("gpg lists no fingerprint")?.to_owned());
        }
        archive.export("keyring.gpg", &[0, 1])?;
        archive.export("first.gpg", &[0])?;
        Ok(archive)
    }

    fn gpg(&self) -> Cmd {
        Cmd::new(&GPG).args(["--batch", "--quiet", "--no-tty", "--homedir"]).arg(self.gnupg.path()).env("LC_ALL", "C")
    }

    fn export(&self, name: &str, keys: &[usize]) -> anyhow::Result<()> {
        let keys = keys.iter().map(|key| self.fingerprints[*key].as_str());
        let bytes = self.gpg().arg("--export").args(keys).output()?;
        Ok(fs_err::write(self.gnupg.path().join(name), bytes)?)
    }

    /// The directory to serve.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Full fingerprint of the first (0) or second (1) key.
    pub fn fingerprint(&self, key: usize) -> &str {
        &self.fingerprints[key]
    }

    /// Keyring with both keys.
    pub fn keyring(&self) -> PathBuf {
        self.gnupg.path().join("keyring.gpg")
    }

    /// Keyring with the first key only.
    pub fn first_keyring(&self) -> PathBuf {
        self.gnupg.path().join("first.gpg")
    }

    /// Where a package is below the archive.
    pub fn pool_path(&self, name: &str) -> anyhow::Result<PathBuf> {
        let deb = self.debs.iter().rfind(|deb| deb.name == name).with_context(|| format!("no package {name}"))?;
        Ok(self.dir().join("pool").join(deb.file_name()))
    }

    /// Builds a package into the pool.
    pub fn add(&mut self, deb: &Deb) -> anyhow::Result<()> {
        deb.build(&self.dir().join("pool").join(deb.file_name()))?;
        self.debs.push(deb.clone());
        Ok(())
    }

    /// Removes all versions of a package, as an archive does some time after an update.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        for deb in self.debs.extract_if(.., |deb| deb.name == name) {
            fs_err::remove_file(self.dir.path().join("pool").join(deb.file_name()))?;
        }
        Ok(())
    }

    /// Writes index, `Release` and signature.
    pub fn publish(&self, publication: &Publication) -> anyhow::Result<()> {
        let mut packages = String::new();
        for deb in &self.debs {
            let path = format!("pool/{}", deb.file_name());
            let (sha256, size) = Sha256::of_file(&self.dir().join(&path))?;
            writeln!(packages, "{}Filename: {path}\nSize: {size}\nSHA256: {sha256}\n", deb.control())?;
        }
        let mut packed = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
        packed.write_all(packages.as_bytes())?;
        let files = [
            ("main/binary-amd64/Packages", packages.into_bytes()),
            ("main/binary-amd64/Packages.gz", packed.finish()?),
        ];

        let dists = self.dir().join("dists").join(&self.suite);
        let now = Timestamp::now();
        let date = |at: Timestamp| at.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string();
        let mut release =
            format!("Origin: Fixture\nLabel: Fixture\nSuite: {0}\nCodename: {0}\nDate: {1}\n", self.suite, date(now));
        if let Some(valid_for) = publication.valid_for {
            writeln!(release, "Valid-Until: {}", date(now + valid_for))?;
        }
        if publication.by_hash {
            release.push_str("Acquire-By-Hash: yes\n");
        }
        release.push_str("Architectures: amd64\nComponents: main\nSHA256:\n");
        for (path, content) in &files {
            let sha256 = Sha256::of(content);
            writeln!(release, " {sha256} {} {path}", content.len())?;
            let path = dists.join(path);
            let dir = path.parent().context("an index is in a directory")?;
            fs_err::create_dir_all(dir.join("by-hash/SHA256"))?;
            fs_err::write(&path, content)?;
            fs_err::write(dir.join("by-hash/SHA256").join(sha256.to_string()), content)?;
        }
        let key = &self.fingerprints[usize::from(publication.second_key)];
        let signed = self.gpg().args(["--local-user", key, "--clearsign"]).stdin_bytes(release).output()?;
        Ok(fs_err::write(dists.join("InRelease"), signed)?)
    }

    /// Writes a recipe for this archive at `url` into `<work>/fixture` and returns that directory. It pins the first key.
    pub fn recipe(&self, work: &Path, url: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
        let dir = work.join("fixture");
        fs_err::create_dir_all(&dir)?;
        let (suite, fingerprint, keyring) = (&self.suite, self.fingerprint(0), self.keyring());
        let text = format!(
            r#"schema = 1
name = "fixture"
distribution = "debian"
suite = "{suite}"
architecture = "amd64"
packages = {packages:?}

[archives.fixture]
url = "{url}"
suites = ["{suite}"]
components = ["main"]
key = "{}"
fingerprints = ["{fingerprint}"]
"#,
            keyring.display()
        );
        fs_err::write(dir.join("image.toml"), text)?;
        Ok(dir)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // gpg started an agent for the keys; it would notice the missing directory only after a while.
        let _ = Cmd::new(&GPGCONF).arg("--homedir").arg(self.gnupg.path()).args(["--kill", "gpg-agent"]).run();
    }
}
