//! From text to [`Image`]: every rule of the recipe's format, each problem with its line and a way out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::distribution::{DISTRIBUTIONS, Distribution};
use super::document::{Document, Table, suggestion};
use super::{Archive, Component, Image, Located, Url};
use crate::problem::Problems;

/// The version of the format.
const SCHEMA: i64 = 1;
const ARCHITECTURES: &[&str] = &["amd64", "arm64"];
const VARIANTS: &[&str] = &["cloud", "metal"];
const OUTPUTS: &[&str] = &["tree", "raw", "qcow2", "vhd", "vmdk", "ova", "gce", "pxe", "iso", "update"];
/// What the agent knows how to run.
const COMPONENTS: &[&str] = &[
    "postgresql",
    "patroni",
    "etcd",
    "haproxy",
    "keepalived",
    "pgbackrest",
    "pgbouncer",
    "pgpool",
    "pgagroal",
    "chrony",
    "ssh",
];

pub(super) fn parse(text: &str, file: &Path) -> Result<Image, Problems> {
    let document = Document::new(file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = document.line(error.span().map_or(0, |span| span.start));
        document.problem(line, format!("not TOML: {}", error.message()), "see https://toml.io for the format");
    }
    let image = if errors.is_empty() { read(&document, root.get_ref(), file) } else { None };
    match image {
        Some(image) if !document.has_problems() => Ok(image),
        _ => Err(document.problems()),
    }
}

fn read(document: &Document<'_>, root: &DeTable<'_>, file: &Path) -> Option<Image> {
    let top = Table::new(document, "", root, 1);
    match top.integer("schema") {
        Some(schema) if schema.value != SCHEMA => {
            let what = format!("`schema` is {}, this pgkiln reads {SCHEMA}", schema.value);
            document.problem(schema.line, what, "use the pgkiln this recipe was written for");
        }
        Some(_) => {}
        None if root.iter().all(|(key, _)| key.get_ref() != "schema") => top.missing("schema", "1"),
        None => {}
    }
    let name = top.required("name", "\"debian-13\"");
    if let (Some(name), Some(dir)) = (&name, directory_name(file))
        && name.value != dir
    {
        let what = format!("`name` is `{}`, the directory is `{dir}`", name.value);
        document.problem(name.line, what, "make them equal: locks and outputs are found by this name");
    }
    let distribution = top.required("distribution", "\"debian\"").and_then(|id| find_distribution(document, &id));
    let suite = top.required("suite", "\"trixie\"");
    let architecture =
        top.required("architecture", "\"amd64\"").filter(|a| one_of(document, "architecture", a, ARCHITECTURES));
    let variant = top.text("variant").filter(|variant| one_of(document, "variant", variant, VARIANTS));
    let outputs = top.texts("outputs");
    for output in &outputs {
        one_of(document, "output", output, OUTPUTS);
    }
    let packages = top.texts("packages");
    packages.iter().for_each(|package| check_package(document, package));
    check_duplicates(document, &packages);
    let kernel = top.table("kernel").and_then(|table| {
        let package = table.required("package", "\"linux-image-cloud-amd64\"");
        package.iter().for_each(|package| check_package(document, package));
        table.finish();
        package
    });
    let path_excludes = patterns(document, "path-excludes", top.texts("path-excludes"));
    let path_includes = patterns(document, "path-includes", top.texts("path-includes"));
    let archives = archives(document, &top, distribution, file);
    let components = components(document, &top);
    let top_line = top.line;
    top.finish();

    let (name, distribution, suite, architecture) = (name?, distribution?, suite?, architecture?);
    if archives.is_empty() && !document.has_problems() {
        document.problem(top_line, "no archive to take packages from", "add a section [archives.debian]");
    }
    if !archives.is_empty() && !archives.iter().any(|archive| archive.suites.contains(&suite.value)) {
        let what = format!("no archive has the suite `{}`", suite.value);
        document.problem(suite.line, what, "name it in the `suites` of an archive");
    }
    Some(Image {
        file: file.to_owned(),
        name: name.value,
        distribution,
        suite: suite.value,
        architecture: architecture.value,
        variant: variant.map(|variant| variant.value),
        archives,
        components,
        packages,
        kernel,
        path_excludes,
        path_includes,
        outputs: outputs.into_iter().map(|output| output.value).collect(),
    })
}

/// Name of the directory the file is in; `None` where it has none to compare with (`image.toml` alone).
fn directory_name(file: &Path) -> Option<String> {
    Some(file.parent()?.file_name()?.to_str()?.to_owned())
}

fn one_of(document: &Document<'_>, what: &str, found: &Located<String>, known: &[&'static str]) -> bool {
    let ok = known.contains(&found.value.as_str());
    if !ok {
        let what = format!("unknown {what} `{}`", found.value);
        document.problem(found.line, what, suggestion(&found.value, known.iter().copied()));
    }
    ok
}

fn find_distribution(document: &Document<'_>, id: &Located<String>) -> Option<&'static Distribution> {
    let known: Vec<&str> = DISTRIBUTIONS.iter().map(|distribution| distribution.id).collect();
    one_of(document, "distribution", id, &known).then(|| Distribution::find(&id.value))?
}

fn check_package(document: &Document<'_>, package: &Located<String>) {
    let name = &package.value;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    if name.len() < 2 || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(good) {
        let remedy = match name.split_once(['=', ' ', '(', '/']) {
            Some((name, _)) => format!("write \"{name}\"; versions are pinned in [components.…] with `version`"),
            None => "package names consist of a-z, 0-9, +, - and .".to_owned(),
        };
        document.problem(package.line, format!("`{name}` is not a package name"), remedy);
    }
}

fn check_duplicates(document: &Document<'_>, packages: &[Located<String>]) {
    let mut seen = BTreeMap::new();
    for package in packages {
        if let Some(first) = seen.insert(package.value.as_str(), package.line) {
            let what = format!("package `{}` is named twice", package.value);
            document.problem(package.line, what, format!("remove one; the other is in line {first}"));
        }
    }
}

fn patterns(document: &Document<'_>, key: &str, found: Vec<Located<String>>) -> Vec<String> {
    for pattern in found.iter().filter(|pattern| !pattern.value.starts_with('/')) {
        let what = format!("`{}` in `{key}` does not begin with `/`", pattern.value);
        document.problem(pattern.line, what, "patterns match whole paths, as dpkg's path-exclude does");
    }
    found.into_iter().map(|pattern| pattern.value).collect()
}

fn archives(
    document: &Document<'_>,
    top: &Table<'_, '_>,
    distribution: Option<&'static Distribution>,
    file: &Path,
) -> Vec<Archive> {
    let Some(table) = top.table("archives") else { return Vec::new() };
    let tables = table.named_tables();
    tables.into_iter().filter_map(|(id, table)| archive(document, id, table, distribution, file)).collect()
}

fn archive(
    document: &Document<'_>,
    id: String,
    table: Table<'_, '_>,
    distribution: Option<&'static Distribution>,
    file: &Path,
) -> Option<Archive> {
    let line = table.line;
    let official = distribution.and_then(|distribution| distribution.archive(&id));
    let url = table.text("url");
    let snapshot = table.text("snapshot");
    let suites = table.texts("suites");
    let components = table.texts("components");
    let key = table.text("key");
    let fingerprints = table.texts("fingerprints");
    let priority = table.integer("priority");
    for (list, name, example) in [
        (&suites, "suites", "[\"trixie\"]"),
        (&components, "components", "[\"main\"]"),
        (&fingerprints, "fingerprints", "[\"…40 hexadecimal digits…\"]"),
    ] {
        if list.is_empty() {
            table.missing(name, example);
        }
    }
    let url = check_url(document, &table, &id, url, snapshot, official.is_some(), distribution);
    let key = match (key, official) {
        (Some(key), _) => {
            let path = PathBuf::from(&key.value);
            let dir = file.parent().unwrap_or(Path::new(""));
            Some(Located { value: dir.join(path), line: key.line })
        }
        (None, Some(official)) => Some(Located { value: official.keyring.into(), line }),
        (None, None) => {
            table.missing("key", "\"/usr/share/keyrings/….gpg\"");
            None
        }
    };
    let fingerprints = fingerprints.into_iter().filter_map(|found| check_fingerprint(document, found)).collect();
    table.finish();
    Some(Archive {
        id,
        line,
        url: url?,
        suites: suites.into_iter().map(|suite| suite.value).collect(),
        components: components.into_iter().map(|component| component.value).collect(),
        key: key?,
        fingerprints,
        priority: priority.map(|priority| priority.value),
    })
}

fn check_url(
    document: &Document<'_>,
    table: &Table<'_, '_>,
    id: &str,
    url: Option<Located<String>>,
    snapshot: Option<Located<String>>,
    official: bool,
    distribution: Option<&'static Distribution>,
) -> Option<Url> {
    let unknown_host = |line| {
        if let Some(distribution) = distribution {
            let known: Vec<String> =
                distribution.archives.iter().map(|archive| format!("[archives.{}]", archive.id)).collect();
            let what = format!("`{id}` is not an archive of {}, so its place cannot be looked up", distribution.id);
            document.problem(line, what, format!("give a URL, or call the section {}", known.join(" or ")));
        }
    };
    if let Some(snapshot) = snapshot {
        let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        let good = matches!(snapshot.value.strip_suffix('Z').and_then(|t| t.split_once('T')),
            Some((day, time)) if day.len() == 8 && time.len() == 6 && digits(day) && digits(time));
        if !good {
            let what = format!("`{}` is not a snapshot's time", snapshot.value);
            document.problem(snapshot.line, what, "write it as \"20261122T000000Z\"");
        }
        if let Some(url) = url.filter(|url| url.value != "host") {
            document.problem(url.line, "`url` and `snapshot` exclude each other", "remove one of them");
        }
        if !official {
            unknown_host(snapshot.line);
        }
        return Some(Url::Snapshot(snapshot.value));
    }
    let Some(url) = url else {
        table.missing("url", "\"host\"");
        return None;
    };
    if url.value == "host" {
        if !official {
            unknown_host(url.line);
        }
        return Some(Url::Host);
    }
    if !url.value.starts_with("http://") && !url.value.starts_with("https://") {
        let what = format!("`{}` is neither `host` nor an http(s) URL", url.value);
        document.problem(url.line, what, "give the part before /dists, for instance \"https://…/debian\"");
    }
    Some(Url::Base(url.value.trim_end_matches('/').to_owned()))
}

fn check_fingerprint(document: &Document<'_>, found: Located<String>) -> Option<String> {
    let plain: String = found.value.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_uppercase();
    if matches!(plain.len(), 40 | 64) && plain.chars().all(|c| c.is_ascii_hexdigit()) {
        return Some(plain);
    }
    let what = format!("`{}` is not a full fingerprint", found.value);
    document.problem(found.line, what, "give all 40 hexadecimal digits: a short key id can be forged");
    None
}

fn components(document: &Document<'_>, top: &Table<'_, '_>) -> BTreeMap<String, Component> {
    let mut components = BTreeMap::new();
    let mut packages = BTreeSet::new();
    let Some(table) = top.table("components") else { return components };
    for (name, table) in table.named_tables() {
        one_of(document, "component", &Located { value: name.clone(), line: table.line }, COMPONENTS);
        let package = table.required("package", "\"…\"");
        let version = table.required("version", "\"locked\"");
        let unit = table.text("unit");
        let paths = table.table("paths").map_or(Vec::new(), |table| table.named_texts());
        table.finish();
        for (_, path) in paths.iter().filter(|(_, path)| !path.value.starts_with('/')) {
            document.problem(path.line, format!("`{}` is not an absolute path", path.value), "begin it with `/`");
        }
        let Some(package) = package else { continue };
        check_package(document, &package);
        if !packages.insert(package.value.clone()) {
            let what = format!("package `{}` is used by two components", package.value);
            document.problem(package.line, what, "remove one of them");
        }
        let component = Component {
            package,
            pin: version.filter(|version| version.value != "locked"),
            unit: unit.map(|unit| unit.value),
            paths: paths.into_iter().map(|(name, path)| (name, path.value)).collect(),
        };
        if let Some(pin) = &component.pin
            && let Err(error) = crate::apt::version::Version::parse(&pin.value)
        {
            document.problem(
                pin.line,
                format!("`{}` is not a package version: {error}", pin.value),
                "write \"locked\" or the exact version",
            );
        }
        components.insert(name, component);
    }
    components
}
