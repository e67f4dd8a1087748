//! User-data: one `#cloud-config` document with our `pgkiln:` section and the declarative keys people rely on. Whatever
//! would execute something is refused by name; every other key is listed with its line, never silently dropped.

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::datasource::Seed;
use crate::problem::Problem;
use crate::spec::reader::Reader;
use crate::spec::tree::{self, Node};
use crate::spec::{self, NodeSpec};
use crate::status::IgnoredKey;

/// Larger documents are refused, compressed or not.
pub const LIMIT: usize = 1 << 20;

/// What the document says besides our section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudConfig {
    /// Host name.
    pub hostname: Option<String>,
    /// Fully qualified name.
    pub fqdn: Option<String>,
    /// Keys that may log in as root; without any, sshd stays off.
    #[serde(default)]
    pub ssh_authorized_keys: Vec<String>,
    /// Time zone, for instance `Europe/Berlin`.
    pub timezone: Option<String>,
    /// Time servers.
    pub ntp: Option<Ntp>,
}

/// Time servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ntp {
    /// Whether the clock is kept by us at all.
    pub enabled: bool,
    /// Single servers.
    pub servers: Vec<String>,
    /// Names that stand for several servers.
    pub pools: Vec<String>,
}

/// A document that was read.
#[derive(Debug, Clone)]
pub struct UserData {
    /// Declarative keys.
    pub config: CloudConfig,
    /// Our section.
    pub spec: NodeSpec,
    /// Keys without effect.
    pub ignored: Vec<IgnoredKey>,
}

/// Reads a document; all problems at once. `place` names it in them.
pub fn read(bytes: &[u8], place: &str) -> Result<UserData, Vec<Problem>> {
    let text = decode(bytes, place).map_err(|problem| vec![problem])?;
    header(&text, place).map_err(|problem| vec![problem])?;
    let root = tree::parse(&text, place).map_err(|problem| vec![problem])?;
    let mut reader = Reader::new(place);
    let (config, ignored) = cloud_config(&mut reader, &root);
    let spec = match root.get("pgkiln") {
        Some(section) => spec::read(section, place).map_err(|problems| reader.problems.extend(problems)).ok(),
        None => {
            let remedy = "add the section that `pgkiln cluster seed` writes";
            reader.problem(1, "the document has no `pgkiln:` section", remedy);
            None
        }
    };
    match spec {
        Some(spec) if reader.problems.is_empty() => Ok(UserData { config, spec, ignored }),
        _ => Err(reader.problems),
    }
}

/// Bytes to text: gzip once, at most [`LIMIT`], UTF-8.
pub fn decode(bytes: &[u8], place: &str) -> Result<String, Problem> {
    let too_large = || Problem::new("the document is larger than 1 MiB", place, "keep it small: it carries no payload");
    let mut plain = Vec::new();
    let bytes = if bytes.starts_with(&[0x1f, 0x8b]) {
        let limited = flate2::read::GzDecoder::new(bytes).take(LIMIT as u64 + 1).read_to_end(&mut plain);
        limited.map_err(|e| Problem::new(format!("broken gzip: {e}"), place, "compress it again, or not at all"))?;
        &plain
    } else {
        bytes
    };
    if bytes.len() > LIMIT {
        return Err(too_large());
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(e) => Err(Problem::new(format!("not UTF-8 at byte {}", e.valid_up_to()), place, "save it as UTF-8")),
    }
}

/// The line of our section, for problems with what is not in it.
pub fn section_line(seed: &Seed) -> u64 {
    let root = decode(&seed.user_data, &seed.place).and_then(|text| tree::parse(&text, &seed.place));
    let key = |root: &Node| root.entries().iter().find(|(key, _)| key.name == "pgkiln").map(|(key, _)| key.line);
    root.ok().as_ref().and_then(key).unwrap_or(1)
}

fn header(text: &str, place: &str) -> Result<(), Problem> {
    let first = text.lines().next().unwrap_or_default().trim_end();
    let at = format!("{place}:1");
    let refused = |what: &str| Err(Problem::new(what, &at, "pass one `#cloud-config` document"));
    let lower = first.to_ascii_lowercase();
    match first {
        "#cloud-config" => Ok(()),
        _ if lower.starts_with("#!") => refused("scripts are refused: nothing in user-data is executed"),
        _ if lower.starts_with("#include") => refused("`#include` is refused: it would fetch unverified documents"),
        _ if lower.starts_with("## template:") => refused("templates (jinja) are refused"),
        _ if lower.starts_with("#cloud-boothook") || lower.starts_with("#part-handler") => {
            refused("boothooks and part handlers are refused: nothing in user-data is executed")
        }
        _ if lower.starts_with("#cloud-config-") => refused("archives and JSON patches are refused"),
        _ if lower.starts_with("content-type:") || lower.starts_with("mime-version:") => {
            refused("MIME documents are not read by this version")
        }
        _ if first.starts_with('\u{feff}') => refused("the document begins with a byte order mark"),
        _ => refused("the document does not begin with `#cloud-config`"),
    }
}

fn cloud_config(r: &mut Reader<'_>, root: &Node) -> (CloudConfig, Vec<IgnoredKey>) {
    let mut config = CloudConfig::default();
    let mut ignored = Vec::new();
    for (key, value) in root.entries() {
        match key.name.as_str() {
            "pgkiln" => {}
            "hostname" => config.hostname = name(r, value, "hostname"),
            "fqdn" => config.fqdn = name(r, value, "fqdn"),
            "timezone" => config.timezone = r.text(value, "timezone"),
            "ssh_authorized_keys" => {
                let keys = r.list(value, "ssh_authorized_keys").iter();
                config.ssh_authorized_keys = keys.filter_map(|key| ssh_key(r, key)).collect();
            }
            "ntp" => config.ntp = Some(ntp(r, value, &mut ignored)),
            other => ignored.push(IgnoredKey { key: other.to_owned(), line: key.line }),
        }
    }
    if let Some(zone) = config.timezone.as_deref()
        && (zone.starts_with('/') || zone.split('/').any(|part| part.is_empty() || part.starts_with('.')))
    {
        let line = root.get("timezone").map_or(1, |n| n.line);
        r.problem(line, format!("`{zone}` is not a time zone"), "write it like `Europe/Berlin`");
    }
    (config, ignored)
}

fn name(r: &mut Reader<'_>, node: &Node, path: &str) -> Option<String> {
    let text = r.text(node, path)?;
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        r.problem(node.line, format!("`{text}` is not a host name"), "use letters, digits, hyphens and dots");
        return None;
    }
    Some(text)
}

fn ssh_key(r: &mut Reader<'_>, node: &Node) -> Option<String> {
    let key = r.text(node, "ssh_authorized_keys")?;
    let kinds = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    if key.contains('\n') || !kinds.iter().any(|kind| key.starts_with(kind)) || key.split_whitespace().count() < 2 {
        r.problem(node.line, "not an SSH public key", "paste one line of a `.pub` file; options are not accepted");
        return None;
    }
    Some(key)
}

fn ntp(r: &mut Reader<'_>, node: &Node, ignored: &mut Vec<IgnoredKey>) -> Ntp {
    let mut ntp = Ntp { enabled: true, ..Ntp::default() };
    for (key, value) in node.entries() {
        let path = format!("ntp.{}", key.name);
        match key.name.as_str() {
            "enabled" => ntp.enabled = r.boolean(value, &path).unwrap_or(true),
            "servers" | "pools" => {
                let names = r.list(value, &path).iter().filter_map(|n| name(r, n, &path)).collect();
                if key.name == "servers" { ntp.servers = names } else { ntp.pools = names }
            }
            _ => ignored.push(IgnoredKey { key: path, line: key.line }),
        }
    }
    ntp
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(head: &str) -> String {
        let section = include_str!("spec/testdata/node.yaml");
        let indented: String = section.lines().map(|line| format!("  {line}\n")).collect();
        format!("{head}pgkiln:\n{indented}")
    }

    #[test]
    fn honoured_and_ignored_keys() {
        let text = document(concat!(
            "#cloud-config\nhostname: pg-1\nruncmd: [reboot]\ntimezone: Europe/Berlin\n",
            "ssh_authorized_keys: [ssh-ed25519 AAAA dba@example]\nntp: {servers: [10.0.0.1], config: {}}\n",
        ));
        let data = read(text.as_bytes(), "user-data").unwrap();
        assert_eq!(data.config.hostname.as_deref(), Some("pg-1"));
        assert_eq!(data.config.ntp.unwrap().servers, ["10.0.0.1"]);
        let ignored: Vec<_> = data.ignored.iter().map(|i| (i.key.as_str(), i.line)).collect();
        assert_eq!(ignored, [("runcmd", 3), ("ntp.config", 6)]);
        assert_eq!(data.spec.slot, "pg-1");
    }

    #[test]
    fn gzip_once_and_limits() {
        use std::io::Write;
        let pack = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        assert!(read(&pack(document("#cloud-config\n").as_bytes()), "user-data").is_ok());
        let bomb = read(&pack(&vec![b' '; 64 << 20]), "user-data").unwrap_err();
        assert!(bomb[0].what.contains("larger than 1 MiB"), "{bomb:?}");
    }

    #[test]
    fn whatever_executes_is_refused_by_name() {
        for (head, expected) in [
            ("#!/bin/sh\n", "scripts"),
            ("#include\n", "#include"),
            ("## template: jinja\n#cloud-config\n", "jinja"),
            ("#cloud-boothook\n", "boothooks"),
            ("#cloud-config-archive\n", "archives"),
            ("Content-Type: multipart/mixed\n", "MIME"),
            ("hostname: x\n", "does not begin"),
        ] {
            let problems = read(document(head).as_bytes(), "user-data").unwrap_err();
            assert_eq!(problems[0].place, "user-data:1");
            assert!(problems[0].what.contains(expected), "{problems:?}");
        }
    }
}
