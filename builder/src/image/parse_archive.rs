//! The `[archives.…]` sections of a recipe.

use std::path::Path;

use super::distribution::Distribution;
use super::document::Table;
use super::{Archive, Key, Located, Url};

pub(super) fn archives(all: &Table<'_, '_>, distribution: Option<&'static Distribution>, file: &Path) -> Vec<Archive> {
    let tables = all.named_tables();
    if tables.is_empty() {
        all.problem(all.line, "no archive to take packages from", "add a section [archives.debian]");
    }
    tables.into_iter().filter_map(|(id, table)| archive(id, table, distribution, file)).collect()
}

fn archive(
    id: String,
    table: Table<'_, '_>,
    distribution: Option<&'static Distribution>,
    file: &Path,
) -> Option<Archive> {
    let official = distribution.and_then(|distribution| distribution.archive(&id));
    let url = place(&id, &table, distribution);
    let key = key(&table, official.map(|official| official.keyring), distribution.is_some(), file);
    let list = |key, example| {
        let found = table.texts(key);
        if !table.has(key) {
            table.missing(key, example);
        }
        found
    };
    let plain = |found: Vec<Located<String>>| found.into_iter().map(|item| item.value).collect::<Vec<_>>();
    let suites = plain(list("suites", "[\"trixie\"]"));
    let components = plain(list("components", "[\"main\"]"));
    let fingerprints = list("fingerprints", "[\"…40 hexadecimal digits…\"]");
    let fingerprints = fingerprints.into_iter().filter_map(|found| fingerprint(&table, found)).collect();
    let priority = table.integer("priority").map(|priority| priority.value);
    let [origin, label] = ["origin", "label"].map(|key| table.text(key).map(|found| found.value));
    let line = table.line;
    table.finish();
    Some(Archive {
        id,
        line,
        url: url?,
        suites,
        components,
        key: key?,
        fingerprints,
        origin,
        label,
        priority,
        overlaid: None,
    })
}

/// Either `url` or `snapshot` says where the archive is.
fn place(id: &str, table: &Table<'_, '_>, distribution: Option<&'static Distribution>) -> Option<Url> {
    let (url, snapshot) = (table.text("url"), table.text("snapshot"));
    if let Some(snapshot) = snapshot {
        if !is_snapshot_time(&snapshot.value) {
            let what = format!("`{}` is not a snapshot's time", snapshot.value);
            table.problem(snapshot.line, what, "write it as \"20261122T000000Z\"");
        }
        if let Some(url) = url.filter(|url| url.value != "host") {
            table.problem(url.line, "`url` and `snapshot` exclude each other", "remove one of them");
        }
        must_be_official(id, table, snapshot.line, distribution);
        return Some(Url::Snapshot(snapshot.value));
    }
    let Some(url) = url else {
        if !table.has("url") {
            table.missing("url", "\"host\"");
        }
        return None;
    };
    if url.value == "host" {
        must_be_official(id, table, url.line, distribution);
        return Some(Url::Host);
    }
    if !url.value.starts_with("http://") && !url.value.starts_with("https://") {
        let what = format!("`{}` is neither `host` nor an http(s) URL", url.value);
        table.problem(url.line, what, "give the part before /dists, for instance \"https://…/debian\"");
    }
    Some(Url::Base(url.value.trim_end_matches('/').to_owned()))
}

/// `20261122T000000Z`
fn is_snapshot_time(text: &str) -> bool {
    let digits = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.strip_suffix('Z').and_then(|text| text.split_once('T'));
    parts.is_some_and(|(day, time)| digits(day, 8) && digits(time, 6))
}

/// Only the archives of the table can be looked up.
fn must_be_official(id: &str, table: &Table<'_, '_>, line: usize, distribution: Option<&'static Distribution>) {
    let Some(distribution) = distribution.filter(|distribution| distribution.archive(id).is_none()) else { return };
    let known: Vec<String> = distribution.archives.iter().map(|archive| format!("[archives.{}]", archive.id)).collect();
    let what = format!("`{id}` is not an archive of {}, so its place cannot be looked up", distribution.id);
    table.problem(line, what, format!("give a URL, or call the section {}", known.join(" or ")));
}

/// The key that `file` names; a relative path is beside it.
pub(super) fn named_key(table: &Table<'_, '_>, file: &Path) -> Option<Located<Key>> {
    let Located { value, line } = table.text("key")?;
    if value.contains("://") {
        if !value.starts_with("https://") {
            let what = format!("the key would come over an unprotected connection: `{value}`");
            table.problem(line, what, "give an https URL, or the path of a file");
        }
        return Some(Located { value: Key::Url(value), line });
    }
    let dir = file.parent().unwrap_or(Path::new(""));
    Some(Located { value: Key::File(dir.join(value)), line })
}

/// Where a recipe names no key, the table's keyring is meant.
fn key(table: &Table<'_, '_>, default: Option<&str>, known: bool, file: &Path) -> Option<Located<Key>> {
    if let Some(key) = named_key(table, file) {
        return Some(key);
    }
    // Of an unknown distribution nobody knows the keyring; that was reported.
    if default.is_none() && known && !table.has("key") {
        table.missing("key", "\"/usr/share/keyrings/….gpg\"");
    }
    Some(Located { value: Key::File(default?.into()), line: table.line })
}

pub(super) fn fingerprint(table: &Table<'_, '_>, found: Located<String>) -> Option<String> {
    let plain: String = found.value.split_whitespace().collect::<String>().to_uppercase();
    if matches!(plain.len(), 40 | 64) && plain.chars().all(|c| c.is_ascii_hexdigit()) {
        return Some(plain);
    }
    let what = format!("`{}` is not a full fingerprint", found.value);
    table.problem(found.line, what, "give all 40 hexadecimal digits: a short key id can be forged");
    None
}
