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
use std::sync::Arc;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use pgkiln::digest::Sha256;
use pgkiln::tool::{Cmd, Tool};

use crate::keys::Keys;

const DPKG_DEB: Tool = Tool { name: "dpkg-deb", package: "dpkg", minimum: None, why: "building test packages" };

/// A package to build.
#[derive(Debug, Clone)]
pub struct Deb {
    name: String,
    version: String,
    architecture: String,
    fields: Vec<(&'static str, String)>,
    files: Vec<(String, Vec<u8>)>,
    links: Vec<(String, String)>,
    scripts: Vec<(&'static str, String)>,
}

impl Deb {
    /// A package with one file, `/usr/share/<name>/version`.
    pub fn new(name: &str, version: &str) -> Self {
        let file = (format!("usr/share/{name}/version"), format!("{version}\n").into_bytes());
        Self {
            name: name.into(),
            version: version.into(),
            architecture: "all".into(),
            fields: Vec::new(),
            files: vec![file],
            links: Vec::new(),
            scripts: Vec::new(),
        }
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

    /// For this architecture instead of for all.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = architecture.into();
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.push((path.trim_start_matches('/').into(), content.as_ref().to_vec()));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.links.push((path.trim_start_matches('/').into(), target.into()));
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
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }

    fn control(&self) -> String {
        let mut text =
            format!("Package: {}\nVersion: {}\nArchitecture: {}\n", self.name, self.version, self.architecture);
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
        for (path, target) in &self.links {
            let path = root.path().join(path);
            fs_err::create_dir_all(path.parent().context("a packaged link has a directory")?)?;
            fs_err::os::unix::fs::symlink(target, path)?;
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
    /// When it was made, from now.
    pub made: SignedDuration,
    /// Who says to have made it.
    pub origin: &'static str,
}

impl Default for Publication {
    fn default() -> Self {
        Self {
            valid_for: Some(SignedDuration::from_hours(24)),
            second_key: false,
            by_hash: false,
            made: SignedDuration::ZERO,
            origin: "Fixture",
        }
    }
}

/// An archive with one suite (`main`, `amd64`), signed by one of its keys `first` and `second`.
#[derive(Debug)]
pub struct Archive {
    dir: tempfile::TempDir,
    keys: Arc<Keys>,
    suite: String,
    debs: Vec<Deb>,
}

impl Archive {
    /// An empty archive with fresh keys.
    pub fn new(suite: &str) -> anyhow::Result<Self> {
        let mut keys = Keys::new()?;
        for name in ["first", "second"] {
            keys.make(name, "ed25519", "never", &[])?;
        }
        keys.export("keyring.gpg", &["first", "second"])?;
        keys.export("first.gpg", &["first"])?;
        Self::with_keys(suite, Arc::new(keys))
    }

    /// An empty archive with these keys; recipes for it use their `keyring.gpg`.
    pub fn with_keys(suite: &str, keys: Arc<Keys>) -> anyhow::Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, keys, suite: suite.into(), debs: Vec::new() })
    }

    /// From here on publishes another suite beside what was published before.
    pub fn switch_to(&mut self, suite: &str) {
        suite.clone_into(&mut self.suite);
    }

    /// The directory to serve.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The signed file.
    pub fn inrelease(&self) -> PathBuf {
        self.dir().join("dists").join(&self.suite).join("InRelease")
    }

    /// Full fingerprint of the first (0) or second (1) key.
    pub fn fingerprint(&self, key: usize) -> &str {
        self.keys.fingerprint(["first", "second"][key])
    }

    /// Keyring with both keys.
    pub fn keyring(&self) -> PathBuf {
        self.keys.path("keyring.gpg")
    }

    /// Keyring with the first key only.
    pub fn first_keyring(&self) -> PathBuf {
        self.keys.path("first.gpg")
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
        let release = self.lay_out(publication, self.index()?)?;
        let key = if publication.second_key { "second" } else { "first" };
        Ok(fs_err::write(self.inrelease(), self.keys.clearsign(release, &[key], &[])?)?)
    }

    /// The text of the index.
    pub fn index(&self) -> anyhow::Result<String> {
        let mut packages = String::new();
        for deb in &self.debs {
            let path = format!("pool/{}", deb.file_name());
            let (sha256, size) = Sha256::of_file(&self.dir().join(&path))?;
            writeln!(packages, "{}Filename: {path}\nSize: {size}\nSHA256: {sha256}\n", deb.control())?;
        }
        Ok(packages)
    }

    /// Writes the index; the text of the `Release` file that is to be signed.
    pub fn lay_out(&self, publication: &Publication, index: impl Into<Vec<u8>>) -> anyhow::Result<String> {
        let index = index.into();
        let mut packed = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
        packed.write_all(&index)?;
        let packed = packed.finish()?;
        self.lay_out_files(
            publication,
            &[("main/binary-amd64/Packages", index), ("main/binary-amd64/Packages.gz", packed)],
        )
    }

    /// The same with these files as the suite's indexes, whatever is in them.
    pub fn lay_out_files(&self, publication: &Publication, files: &[(&str, Vec<u8>)]) -> anyhow::Result<String> {
        let dists = self.dir().join("dists").join(&self.suite);
        let made = Timestamp::now() + publication.made;
        let date = |at: Timestamp| at.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string();
        let mut release =
            format!("Origin: {}\nLabel: Fixture\nSuite: {1}\nCodename: {1}\n", publication.origin, self.suite);
        writeln!(release, "Date: {}", date(made))?;
        if let Some(valid_for) = publication.valid_for {
            writeln!(release, "Valid-Until: {}", date(made + valid_for))?;
        }
        if publication.by_hash {
            release.push_str("Acquire-By-Hash: yes\n");
        }
        release.push_str("Architectures: amd64\nComponents: main\nSHA256:\n");
        for (path, content) in files {
            let sha256 = Sha256::of(content);
            writeln!(release, " {sha256} {} {path}", content.len())?;
            let path = dists.join(path);
            let dir = path.parent().context("an index is in a directory")?;
            fs_err::create_dir_all(dir.join("by-hash/SHA256"))?;
            fs_err::write(&path, content)?;
            fs_err::write(dir.join("by-hash/SHA256").join(sha256.to_string()), content)?;
        }
        Ok(release)
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
