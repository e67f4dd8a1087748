//! An update set: what `pgkiln bake --format update` left in a directory, read from there or from a web server.
//!
//! `SHA256SUMS` has the sums of all files, `manifest.json` says what the image is; both are read whole, the large files as a
//! stream that is checked against its sum. Whoever names the sum of `SHA256SUMS` itself has named every byte.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fs_err as fs;
use reqwest::Url;
use reqwest::redirect::Policy;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::verity::hex;
use crate::image_info::ImageInfo;
use crate::names::Resolved;
use crate::problem::Problem;

/// Name of the list of sums.
const SUMS: &str = "SHA256SUMS";
const MANIFEST: &str = "manifest.json";
/// A list of a few files; a manifest names every file of an image (4 MB for `debian-13`).
const MOST_SUMS: u64 = 64 << 10;
const MOST_MANIFEST: u64 = 64 << 20;
/// From connecting to the answer's first byte, and between two parts of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Certificates of public authorities, in every image.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// As browsers and curl have it, more or less; mirrors need two.
const MOST_REDIRECTS: usize = 10;
/// Parts of an answer on their way from the network to the disk.
const PARTS: usize = 16;

/// Where a set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory.
    Directory(PathBuf),
    /// An address that names of files are put behind.
    Url(String),
}

impl Source {
    /// `http://…` and `https://…` are addresses, all else is a directory.
    pub fn parse(text: &str) -> Self {
        match text.starts_with("http://") || text.starts_with("https://") {
            true => Self::Url(text.trim_end_matches('/').to_owned()),
            false => Self::Directory(text.into()),
        }
    }

    /// Opens one file of it.
    pub fn open(&self, name: &str) -> Result<Box<dyn Read + Send>> {
        match self {
            Self::Directory(dir) => Ok(Box::new(fs::File::open(dir.join(name))?)),
            Self::Url(base) => Ok(Box::new(download(format!("{base}/{name}"))?)),
        }
    }

    fn whole(&self, name: &str, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.take(most + 1).read_to_end(&mut bytes).with_context(|| self.place(name))?;
        anyhow::ensure!(bytes.len() as u64 <= most, "{} is larger than {most} bytes", self.place(name));
        Ok(bytes)
    }

    /// How problems name a file of it.
    pub fn place(&self, name: &str) -> String {
        match self {
            Self::Directory(dir) => dir.join(name).display().to_string(),
            Self::Url(base) => format!("{base}/{name}"),
        }
    }
}

/// A file of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

/// What a set says about itself, checked against its sums.
#[derive(Debug, Clone)]
pub struct Set {
    /// Where it is.
    pub source: Source,
    /// SHA-256 of its `SHA256SUMS`.
    pub sums_sha256: String,
    /// Architecture, as Debian calls it.
    pub architecture: String,
    /// Root hash of the image.
    pub root_hash: String,
    /// Catalog version of its PostgreSQL.
    pub catalog: Option<u32>,
    /// What the image says about itself.
    pub image: ImageInfo,
    /// The unified kernel image.
    pub uki: Part,
    /// The root.
    pub root: Part,
    /// Its hash tree.
    pub hashes: Part,
}

#[derive(Deserialize)]
struct Manifest {
    architecture: Option<String>,
    root_hash: Option<String>,
    catalog_version: Option<u32>,
    describes: Option<ImageInfo>,
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    format: String,
    bytes: u64,
    sha256: String,
}

impl Set {
    /// Reads the set's description; the large files are not touched. With `sums_sha256` only the set with that sum will do.
    pub fn read(source: &Source, sums_sha256: Option<&str>) -> Result<Self> {
        let sums = source.whole(SUMS, MOST_SUMS).map_err(|error| no_set(source, &error))?;
        let found = sha256(&sums);
        if let Some(wanted) = sums_sha256.filter(|wanted| !wanted.eq_ignore_ascii_case(&found)) {
            let what = format!("the set's sums have SHA-256 {found}, not {wanted}");
            let remedy = "this is another set than the one that was asked for; name it anew if it is the right one";
            return Err(Problem::new(what, source.place(SUMS), remedy).into());
        }
        let sums = String::from_utf8(sums).context("SHA256SUMS is no text")?;
        let manifest = source.whole(MANIFEST, MOST_MANIFEST).map_err(|error| no_set(source, &error))?;
        check_sum(source, &sums, MANIFEST, &sha256(&manifest))?;
        let unknown = |error: serde_json::Error| {
            Problem::new(format!("the manifest cannot be read: {error}"), source.place(MANIFEST), BAKE)
        };
        Self::of(source, &sums, found, serde_json::from_slice(&manifest).map_err(unknown)?)
    }

    fn of(source: &Source, sums: &str, sums_sha256: String, manifest: Manifest) -> Result<Self> {
        let lacks = |what: &str| Problem::new(format!("the set has no {what}"), source.place(MANIFEST), BAKE);
        let part = |kind: &str, fits: fn(&str) -> bool| -> Result<Part> {
            let found = manifest.outputs.iter().find(|output| output.format == "update" && fits(&output.name));
            let found = found.ok_or_else(|| lacks(kind))?;
            anyhow::ensure!(!found.name.contains('/'), "{}: `{}` is no name", source.place(MANIFEST), found.name);
            check_sum(source, sums, &found.name, &found.sha256)?;
            Ok(Part { name: found.name.clone(), bytes: found.bytes, sha256: found.sha256.clone() })
        };
        let root_hash =
            manifest.root_hash.as_deref().and_then(|hash| super::loader::hash_of(&format!("roothash={hash}")));
        Ok(Self {
            uki: part("unified kernel image", |name| name.ends_with(".efi"))?,
            root: part("root image", |name| name.contains(".root.") && name.ends_with(".raw"))?,
            hashes: part("hash tree", |name| name.contains(".root-verity.") && name.ends_with(".raw"))?,
            source: source.clone(),
            sums_sha256,
            architecture: manifest.architecture.ok_or_else(|| lacks("architecture"))?,
            root_hash: root_hash.ok_or_else(|| lacks("root hash"))?,
            catalog: manifest.catalog_version,
            image: manifest.describes.ok_or_else(|| lacks("description of its image"))?,
        })
    }
}

const BAKE: &str = "make it with `pgkiln bake IMAGE --format update`";

fn no_set(source: &Source, error: &anyhow::Error) -> Problem {
    let place = match source {
        Source::Directory(dir) => dir.display().to_string(),
        Source::Url(base) => base.clone(),
    };
    Problem::new(format!("there is no update set: {error:#}"), place, BAKE)
}

fn check_sum(source: &Source, sums: &str, name: &str, sha256: &str) -> Result<(), Problem> {
    let listed = sums.lines().find_map(|line| line.split_once("  ").filter(|(_, listed)| *listed == name));
    match listed {
        Some((sum, _)) if sum == sha256 => Ok(()),
        Some((sum, _)) => Err(Problem::new(
            format!("`{name}` has SHA-256 {sha256}, SHA256SUMS says {sum}"),
            source.place(name),
            "the set is damaged or half copied: copy it again",
        )),
        None => Err(Problem::new(format!("SHA256SUMS does not list `{name}`"), source.place(SUMS), BAKE)),
    }
}

/// SHA-256 of bytes in memory.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A stream whose digest and length are known at its end.
pub struct Digester<R> {
    inner: R,
    digest: Sha256,
    /// Bytes read so far.
    pub bytes: u64,
}

impl<R: Read> Digester<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// The digest of everything read.
    pub fn finish(self) -> String {
        hex(&self.digest.finalize())
    }
}

impl<R: Read> Read for Digester<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// An answer as it comes: a thread of its own asks, so that writing to the disk never keeps the network waiting for long.
struct Download {
    parts: std::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>,
    part: std::io::Cursor<Vec<u8>>,
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.part.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.parts.recv() {
                Ok(part) => self.part = std::io::Cursor::new(part?),
                Err(_) => return Ok(0),
            }
        }
    }
}

fn download(url: String) -> Result<Download> {
    let (send, parts) = std::sync::mpsc::sync_channel(PARTS);
    std::thread::spawn(move || {
        let ended = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = ended.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(fetch(&url, &send)));
        if let Err(error) = ended {
            // Nobody listens any more: nothing to tell.
            let _ = send.send(Err(std::io::Error::other(format!("{url}: {error:#}"))));
        }
    });
    Ok(Download { parts, part: std::io::Cursor::default() })
}

async fn fetch(url: &str, parts: &std::sync::mpsc::SyncSender<std::io::Result<Vec<u8>>>) -> Result<()> {
    let redirects = Policy::custom(|attempt| {
        let previous = attempt.previous();
        if previous.len() > MOST_REDIRECTS {
            return attempt.error("it is redirected without end");
        }
        if is_unprotected(previous, attempt.url()) {
            return attempt.error("it is redirected from https to an address without protection");
        }
        attempt.follow()
    });
    let client = reqwest::Client::builder().no_proxy().redirect(redirects);
    let client = client.connect_timeout(ANSWER).read_timeout(ANSWER);
    let client = client.tls_backend_preconfigured(public_tls()?).dns_resolver(Resolved::default()).build()?;
    let answer = client.get(url).send().await.map_err(|error| anyhow::anyhow!(crate::etcd::plain(&error)))?;
    anyhow::ensure!(answer.status().is_success(), "the server says {}", answer.status());
    let length = answer.content_length();
    let (mut answer, mut got) = (answer, 0);
    while let Some(chunk) = answer.chunk().await.map_err(|error| anyhow::anyhow!(crate::etcd::plain(&error)))? {
        got += chunk.len() as u64;
        if parts.send(Ok(chunk.to_vec())).is_err() {
            return Ok(());
        }
    }
    anyhow::ensure!(length.is_none_or(|length| length == got), "the answer ended after {got} bytes");
    Ok(())
}

/// Whether a redirect leads away from what TLS protects: who asked for https must not get another's bytes.
fn is_unprotected(previous: &[Url], next: &Url) -> bool {
    next.scheme() != "https" && previous.iter().any(|url| url.scheme() == "https")
}

/// TLS that believes whom the image's own list of authorities believes.
pub(crate) fn public_tls() -> Result<rustls::ClientConfig> {
    tls(Path::new(AUTHORITIES))
}

fn tls(authorities: &Path) -> Result<rustls::ClientConfig> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let found = fs::read(authorities).unwrap_or_default();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&found).filter_map(Result::ok));
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A whole set in `dir`: an image of `version` whose root is `root`, with its UKI and hash tree.
    pub(crate) fn write(dir: &Path, version: &str, change: impl FnOnce(&mut serde_json::Value)) -> Set {
        let (root, hashes, hash) = super::super::tests::verified(version.as_bytes());
        let uki = super::super::loader::tests::uki(&hash);
        let names =
            [format!("t_{version}.efi"), format!("t_{version}.root.x.raw"), format!("t_{version}.root-verity.x.raw")];
        let mut sums = String::new();
        let mut outputs = Vec::new();
        for (name, content) in names.iter().zip([&uki, &root, &hashes]) {
            fs::write(dir.join(name), content).unwrap();
            let sum = sha256(content);
            outputs.push(serde_json::json!({"name": name, "format": "update", "bytes": content.len(), "sha256": sum}));
            sums.push_str(&format!("{sum}  {name}\n"));
        }
        let mut image: serde_json::Value = serde_json::from_str(crate::fixtures::IMAGE).unwrap();
        image["version"] = version.into();
        let mut manifest = serde_json::json!({
            "schema": 1, "architecture": "amd64", "root_hash": hash, "catalog_version": 202406281, "describes": image,
            "outputs": outputs,
        });
        change(&mut manifest);
        let manifest = serde_json::to_vec(&manifest).unwrap();
        fs::write(dir.join(MANIFEST), &manifest).unwrap();
        sums.push_str(&format!("{}  {MANIFEST}\n", sha256(&manifest)));
        fs::write(dir.join(SUMS), sums).unwrap();
        Set::read(&Source::Directory(dir.to_owned()), None).unwrap()
    }

    #[test]
    fn a_redirect_never_leaves_https() {
        let url = |text: &str| Url::parse(text).unwrap();
        let refused = |previous: &[&str], next: &str| {
            is_unprotected(&previous.iter().map(|text| url(text)).collect::<Vec<_>>(), &url(next))
        };
        assert!(refused(&["https://a/x"], "http://a/x") && refused(&["http://a/x", "https://a/x"], "http://b/x"));
        assert!(!refused(&["https://a/x"], "https://b/x") && !refused(&["http://a/x"], "http://b/x"));
        assert!(!refused(&["http://a/x"], "https://a/x"));
    }

    #[test]
    fn a_set_is_read_and_every_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let set = write(dir.path(), "20261125.aaaaaaaa", |_| {});
        assert_eq!((set.catalog, set.image.version.as_str()), (Some(202406281), "20261125.aaaaaaaa"));
        let source = Source::Directory(dir.path().to_owned());
        assert!(Set::read(&source, Some(&set.sums_sha256)).is_ok());
        let refused = |what: &str, sum: Option<&str>| {
            let error = Set::read(&source, sum).unwrap_err();
            let problem = error.downcast_ref::<Problem>().unwrap_or_else(|| panic!("{error:#}"));
            assert!(problem.what.contains(what) && !problem.remedy.is_empty(), "{problem}");
        };
        refused("have SHA-256", Some(&"0".repeat(64)));
        let manifest = fs::read(dir.path().join(MANIFEST)).unwrap();
        fs::write(dir.path().join(MANIFEST), [&manifest[..], b" "].concat()).unwrap();
        refused("SHA256SUMS says", None);
        fs::write(dir.path().join(MANIFEST), manifest).unwrap();
        let sums = fs::read_to_string(dir.path().join(SUMS)).unwrap();
        fs::write(dir.path().join(SUMS), sums.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>())
            .unwrap();
        refused("does not list", None);
        fs::remove_file(dir.path().join(SUMS)).unwrap();
        refused("no update set", None);
        write(dir.path(), "20261125.aaaaaaaa", |_| {});
    }
}
