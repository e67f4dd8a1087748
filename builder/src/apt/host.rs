//! Which mirrors this host uses: `url = "host"` in a recipe takes them when the distribution matches, so that a bake uses
//! the same near (or only reachable) mirror as the host's own apt. The suite need not match: a mirror has them all.

use std::path::Path;

use super::deb822;
use crate::image::distribution::{Distribution, OfficialArchive};

/// One mirror named in the host's sources.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
}

/// Base URLs of the host's mirrors of this archive, best first; empty if the host is of another distribution or has none.
/// `root` stands in for `/`.
pub fn mirrors(root: &Path, distribution: &Distribution, archive: &OfficialArchive) -> Vec<String> {
    let release = fs_err::read_to_string(root.join("etc/os-release")).unwrap_or_default();
    if os_release(&release, "ID") != Some(distribution.id) {
        return Vec::new();
    }
    let mut codenames = vec!["stable", "oldstable", "testing", "unstable", "sid"];
    codenames.extend(os_release(&release, "VERSION_CODENAME"));
    let is_mirror = |source: &Source| {
        source.suites.iter().any(|suite| {
            archive
                .suite_suffixes
                .iter()
                .any(|suffix| suite.strip_suffix(suffix).is_some_and(|codename| codenames.contains(&codename)))
        })
    };
    let mut found: Vec<String> = sources(root).into_iter().filter(is_mirror).map(|source| source.uri).collect();
    // A third party's archive may use the codename as its suite too; a mirror's path ends with the archive's name.
    let conventional = |uri: &String| uri.rsplit('/').next() == Some(archive.id);
    found.sort_by_key(|uri| !conventional(uri));
    let mut unique = Vec::new();
    found.into_iter().for_each(|uri| {
        if !unique.contains(&uri) {
            unique.push(uri)
        }
    });
    unique
}

fn os_release<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']))
}

/// Everything in `sources.list` and `sources.list.d` that apt would read.
fn sources(root: &Path) -> Vec<Source> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(entries) = fs_err::read_dir(apt.join("sources.list.d")) {
        let mut parts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut all = Vec::new();
    for file in files {
        let Ok(text) = fs_err::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => all.extend(text.lines().filter_map(one_line)),
            Some("sources") => all.extend(blocks(&text)),
            _ => {}
        }
    }
    all
}

/// `deb [options] uri suite component…`
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim().strip_prefix("deb")?;
    let mut rest = line.strip_prefix([' ', '\t'])?.trim_start();
    if let Some(options) = rest.strip_prefix('[') {
        rest = options.split_once(']')?.1.trim_start();
    }
    let mut words = rest.split_whitespace();
    let (uri, suite) = (base(words.next()?)?, words.next()?);
    words.any(|component| component == "main").then(|| Source { uri, suites: vec![suite.to_owned()] })
}

/// The paragraphs of a deb822 `.sources` file.
fn blocks(text: &str) -> Vec<Source> {
    let text: String = text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let mut all = Vec::new();
    for block in deb822::paragraphs(&text) {
        let words =
            |field| block.get(field).unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let disabled = block.get("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if disabled || !words("Types").contains(&"deb".to_owned()) || !words("Components").contains(&"main".to_owned())
        {
            continue;
        }
        let uris = words("URIs");
        all.extend(uris.iter().filter_map(|uri| base(uri)).map(|uri| Source { uri, suites: words("Suites") }));
    }
    all
}

/// Only what can be fetched over HTTP counts; `cdrom:`, `file:` and `mirror+…:` are the host's own affair.
fn base(uri: &str) -> Option<String> {
    let http = uri.starts_with("http://") || uri.starts_with("https://");
    http.then(|| uri.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(release: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(root.path().join("etc/apt/sources.list.d")).unwrap();
        fs_err::write(root.path().join("etc/os-release"), release).unwrap();
        for (name, text) in files {
            fs_err::write(root.path().join("etc/apt").join(name), text).unwrap();
        }
        root
    }

    fn found(root: &tempfile::TempDir, archive: &str) -> Vec<String> {
        let debian = Distribution::find("debian").unwrap();
        mirrors(root.path(), debian, debian.archive(archive).unwrap())
    }

    const BOOKWORM: &str = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n";

    #[test]
    fn both_formats_are_read_and_security_is_told_apart() {
        let list = "# deb http://commented.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://one.example/debian/ bookworm main contrib\n\
                    deb-src http://source.example/debian bookworm main\n\
                    deb http://one.example/debian-security bookworm-security main\n";
        let block = "Types: deb\n# a remark\nURIs: http://two.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                     Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n";
        let root = host(BOOKWORM, &[("sources.list", list), ("sources.list.d/debian.sources", block)]);
        assert_eq!(found(&root, "debian"), ["http://one.example/debian", "http://two.example/debian"]);
        assert_eq!(found(&root, "debian-security"), ["http://one.example/debian-security"]);
    }

    #[test]
    fn third_parties_come_after_mirrors_or_not_at_all() {
        let list = "deb https://vendor.example/apt bookworm main\ndeb https://node.example/x nodistro main\n\
                    deb https://docker.example/linux/debian bookworm stable\ndeb http://m.example/debian bookworm main\n";
        let root = host(BOOKWORM, &[("sources.list", list)]);
        assert_eq!(found(&root, "debian"), ["http://m.example/debian", "https://vendor.example/apt"]);
    }

    #[test]
    fn another_distribution_s_mirrors_do_not_count() {
        let list = "deb http://m.example/debian noble main\n";
        let root = host("ID=ubuntu\nVERSION_CODENAME=noble\n", &[("sources.list", list)]);
        assert!(found(&root, "debian").is_empty());
    }
}
