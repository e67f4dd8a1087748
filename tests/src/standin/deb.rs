//! A package under another name: a new control member in front of the old content. The content's bytes stay as they are, unless
//! files are to be taken away or put into it, so hundreds of packages take seconds.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};
use pgkiln::unpack::deb::Deb;

/// What is different in a package.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Control fields: set, or removed where the value is empty, or lengthened where the name begins with `+`.
    pub fields: Vec<(&'static str, String)>,
    /// Files put in, absolute, with mode and content; they replace those of the same path.
    pub put: Vec<(String, u32, String)>,
    /// If any: only what begins with one of these stays.
    pub keep: Vec<String>,
    /// What files are called: this part of their path becomes that, and so does the extension inside `.control` and `.sql` files.
    pub rename: Option<(String, String)>,
    /// Files taken away: paths that begin with one of these.
    pub take: Vec<String>,
    /// Control files taken away (`postinst`).
    pub scripts_taken: Vec<&'static str>,
    /// Maintainer scripts put in.
    pub scripts_put: Vec<(&'static str, String)>,
}

impl Change {
    fn touches_content(&self) -> bool {
        !self.put.is_empty() || !self.take.is_empty() || !self.keep.is_empty()
    }
}

/// The control paragraph as fields in their order.
pub type Fields = Vec<(String, String)>;

/// What a package says about itself.
pub fn fields(deb: &Deb) -> anyhow::Result<Fields> {
    Ok(deb.control()?.paragraph.fields().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Sets a field, or removes it if `value` is empty.
pub fn set(fields: &mut Fields, name: &str, value: &str) {
    let found = fields.iter().position(|(field, _)| field.eq_ignore_ascii_case(name));
    match (found, value.is_empty()) {
        (Some(at), true) => drop(fields.remove(at)),
        (Some(at), false) => fields[at].1 = value.to_owned(),
        (None, true) => {}
        (None, false) => fields.push((name.to_owned(), value.to_owned())),
    }
}

/// A field's value; empty if it is not there.
pub fn get<'f>(fields: &'f Fields, name: &str) -> &'f str {
    fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

/// The paragraph's text.
pub fn text(fields: &Fields) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}\n")).collect()
}

/// The package in `bytes` with another control paragraph and other content. Control is packed with zstd, as Ubuntu does.
pub fn relabel(bytes: &[u8], deb: &Deb, paragraph: &Fields, change: &Change) -> anyhow::Result<Vec<u8>> {
    let mut files: BTreeMap<String, (u32, Vec<u8>)> = deb.control()?.files;
    files.retain(|name, _| !change.scripts_taken.contains(&name.as_str()));
    for (name, text) in &change.scripts_put {
        files.insert((*name).to_owned(), (0o755, text.clone().into_bytes()));
    }
    let data = if change.touches_content() {
        // Digests of files that are no longer there.
        files.remove("md5sums");
        let paths = |line: &&str| change.take.iter().any(|taken| line.trim().starts_with(taken.as_str()));
        if let Some((_, conffiles)) = files.get_mut("conffiles") {
            let text = String::from_utf8(std::mem::take(conffiles))?;
            *conffiles =
                text.lines().filter(|line| !paths(line)).flat_map(|line| [line, "\n"]).collect::<String>().into();
        }
        ("data.tar.zst".to_owned(), content(deb, change)?)
    } else {
        member(bytes, "data.tar")?
    };
    package(paragraph, &files, data)
}

/// A package without content: relations alone.
pub fn empty(paragraph: &Fields) -> anyhow::Result<Vec<u8>> {
    let data = tar::Builder::new(Vec::new()).into_inner()?;
    package(paragraph, &BTreeMap::new(), ("data.tar.zst".to_owned(), pack(&data)?))
}

fn package(
    paragraph: &Fields,
    files: &BTreeMap<String, (u32, Vec<u8>)>,
    data: (String, Vec<u8>),
) -> anyhow::Result<Vec<u8>> {
    let mut control = tar::Builder::new(Vec::new());
    let text = text(paragraph).into_bytes();
    let control_file = [("control", 0o644, &text)];
    for (name, mode, content) in
        control_file.into_iter().chain(files.iter().map(|(name, (mode, content))| (&**name, *mode, content)))
    {
        append(&mut control, &format!("./{name}"), mode, content)?;
    }
    let control = pack(&control.into_inner()?)?;
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.zst", &control), (&data.0, &data.1)] {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len()).bytes());
        out.extend(content);
        out.resize(out.len().next_multiple_of(2), b'\n');
    }
    Ok(out)
}

fn content(deb: &Deb, change: &Change) -> anyhow::Result<Vec<u8>> {
    let gone = |path: &str| {
        // Directories stay if something below them does.
        let kept = |keep: &String| path.starts_with(keep.as_str()) || (path.ends_with('/') && keep.starts_with(path));
        if !change.keep.is_empty() && !change.keep.iter().any(kept) {
            return true;
        }
        change.take.iter().any(|taken| path.starts_with(taken.as_str()))
            || change.put.iter().any(|(put, ..)| put == path)
    };
    let mut out = tar::Builder::new(Vec::new());
    for entry in deb.data()?.entries()? {
        let mut entry = entry?;
        let path = format!("/{}", entry.path()?.display().to_string().trim_start_matches("./"));
        if gone(&path) {
            continue;
        }
        let (mut header, mut path) = (entry.header().clone(), entry.path()?.into_owned());
        let renamed = change.rename.as_ref().filter(|_| header.entry_type().is_file());
        if let Some((from, to)) = renamed {
            path = path.to_string_lossy().replace(from, to).into();
        }
        let kind = header.entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name()?.context("a link without a target")?.into_owned();
            out.append_link(&mut header, path, target)?;
        } else {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if let Some((from, to)) = renamed {
                let end = path.extension().and_then(|end| end.to_str());
                let words = match end {
                    Some("control") => Some((from.clone(), to.clone())),
                    // What it creates keeps its names: the library knows them by these.
                    Some("sql") => Some((format!("EXTENSION {from}"), format!("EXTENSION {to}"))),
                    _ => None,
                };
                if let Some((from, to)) = words {
                    bytes = String::from_utf8(bytes)?.replace(&from, &to).into_bytes();
                    header.set_size(bytes.len() as u64);
                }
            }
            out.append_data(&mut header, path, &bytes[..])?;
        }
    }
    for (path, mode, text) in &change.put {
        append(&mut out, &format!(".{path}"), *mode, text.as_bytes())?;
    }
    pack(&out.into_inner()?)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    Ok(tar.append_data(&mut header, Path::new(path), content)?)
}

fn pack(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    Ok(zstd::stream::encode_all(bytes, 1)?)
}

/// A member of an ar archive by the beginning of its name.
fn member(bytes: &[u8], stem: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let mut at = 8;
    while at + 60 <= bytes.len() {
        let name = std::str::from_utf8(&bytes[at..at + 16])?.trim_end().trim_end_matches('/').to_owned();
        let length: usize = std::str::from_utf8(&bytes[at + 48..at + 58])?.trim_end().parse()?;
        let start = at + 60;
        ensure!(start + length <= bytes.len(), "ar member `{name}` is cut off");
        if name.starts_with(stem) {
            return Ok((name, bytes[start..start + length].to_vec()));
        }
        at = start + length.next_multiple_of(2);
    }
    anyhow::bail!("no member `{stem}`")
}
