//! Reader for the `.deb` format: an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*` (deb(5)).
//!
//! A package is read into memory once, its SHA-256 is compared, and only those very bytes are parsed afterwards. A file
//! that was altered in the cache, or changes while it is being read, is therefore refused before anything of it is used.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use super::control::Paragraph;
use crate::digest::Sha256;
use crate::problem::Problem;

/// Bytes of one package whose digest was compared with the lock.
pub struct Deb {
    bytes: Vec<u8>,
    control: Member,
    data: Member,
}

/// What a package is called; a lock and the package itself must agree on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Package name.
    pub name: String,
    /// Version with epoch.
    pub version: String,
    /// `amd64`, `all`, …
    pub arch: String,
}

/// Position and compression of one tar member inside the archive.
#[derive(Debug, Clone)]
struct Member {
    start: usize,
    len: usize,
    suffix: String,
}

/// What `control.tar` carries: the control paragraph, and every other file by name (`preinst`, `md5sums`, `triggers`, …).
#[derive(Debug, Clone)]
pub struct Control {
    /// The `control` file itself.
    pub paragraph: Paragraph,
    /// The other files with their mode, as dpkg keeps them under `info/`.
    pub files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Control {
    /// Refuses a package that says it is another than the one that was promised.
    pub fn check_identity(&self, promised: &Identity, place: &str) -> Result<(), Problem> {
        let Identity { name, version, arch } = promised;
        for (field, promised) in [("Package", name), ("Version", version), ("Architecture", arch)] {
            let found = self.paragraph.get(field).trim();
            if found != promised {
                return Err(Problem::new(
                    format!(
                        "package {name} {version} is not what the index says: its {field} is `{found}`, not `{promised}`"
                    ),
                    place,
                    "the file was not used; the archive contradicts itself: tell its owner, or use another archive",
                ));
            }
        }
        Ok(())
    }

    /// Text of a control file; empty if the package has none of that name.
    pub fn text(&self, name: &str) -> String {
        self.files.get(name).map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// The configuration files, absolute, without the `remove-on-upgrade` ones (they are not shipped).
    pub fn conffiles(&self) -> Vec<String> {
        self.text("conffiles").lines().filter(|line| line.starts_with('/')).map(|line| line.trim().to_owned()).collect()
    }
}

impl Deb {
    /// Reads a package, refusing it unless its SHA-256 is the one the lock names.
    pub fn open(path: &Path, sha256: &Sha256) -> anyhow::Result<Self> {
        let bytes = fs_err::read(path)?;
        let found = Sha256::of(&bytes);
        if found != *sha256 {
            return Err(Problem::new(
                format!("package is altered: its SHA-256 is `{found}`, the lock says `{sha256}`"),
                path.display().to_string(),
                "delete the file; the next bake downloads it again",
            )
            .into());
        }
        Self::parse(bytes).with_context(|| format!("reading package {}", path.display()))
    }

    /// Finds the members of an archive already in memory.
    fn parse(bytes: Vec<u8>) -> anyhow::Result<Self> {
        ensure!(bytes.starts_with(b"!<arch>\n"), "not an ar archive");
        let (mut control, mut data, mut first) = (None, None, true);
        let mut at = 8;
        while at + 60 <= bytes.len() {
            let header = &bytes[at..at + 60];
            ensure!(&header[58..60] == b"`\n", "ar member header at byte {at} is damaged");
            let name = std::str::from_utf8(&header[..16])?.trim_end().trim_end_matches('/').to_owned();
            let len: usize = std::str::from_utf8(&header[48..58])?.trim_end().parse().context("ar member size")?;
            let start = at + 60;
            ensure!(len <= bytes.len() - start, "ar member `{name}` is truncated");
            if first {
                ensure!(name == "debian-binary", "first member is `{name}`, not `debian-binary`");
                ensure!(bytes[start..start + len].starts_with(b"2."), "not a format 2 package");
                first = false;
            }
            let member = |stem: &str| Member { start, len, suffix: name[stem.len()..].to_owned() };
            if name.starts_with("control.tar") {
                control = Some(member("control.tar"));
            } else if name.starts_with("data.tar") {
                data = Some(member("data.tar"));
            }
            at = start + len + (len & 1);
        }
        let control = control.context("no control.tar member")?;
        let data = data.context("no data.tar member")?;
        Ok(Self { bytes, control, data })
    }

    fn tar(&self, member: &Member) -> anyhow::Result<tar::Archive<Box<dyn Read + '_>>> {
        let raw = &self.bytes[member.start..member.start + member.len];
        let plain: Box<dyn Read + '_> = match member.suffix.as_str() {
            "" => Box::new(raw),
            ".gz" => Box::new(flate2::read::GzDecoder::new(raw)),
            ".xz" => Box::new(liblzma::read::XzDecoder::new(raw)),
            ".zst" => Box::new(zstd::stream::read::Decoder::with_buffer(raw)?),
            other => bail!("compression `{other}` is not supported"),
        };
        Ok(tar::Archive::new(plain))
    }

    /// The files that make the package, in archive order.
    pub fn data(&self) -> anyhow::Result<tar::Archive<Box<dyn Read + '_>>> {
        self.tar(&self.data)
    }

    /// The package's control information.
    pub fn control(&self) -> anyhow::Result<Control> {
        let mut files = BTreeMap::new();
        let mut archive = self.tar(&self.control)?;
        for entry in archive.entries()? {
            let mut entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name =
                entry.path()?.file_name().context("control member without a name")?.to_string_lossy().into_owned();
            let mode = entry.header().mode()? & 0o777;
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(name, (mode, bytes));
        }
        let (_, text) = files.remove("control").context("no control file")?;
        let paragraph = Paragraph::parse(&String::from_utf8(text)?)?;
        Ok(Control { paragraph, files })
    }
}
