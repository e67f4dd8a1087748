//! `ds=nocloud;s=URL`: whoever starts a machine says where its metadata is, on the kernel's command line or as the serial
//! number of its firmware (cloud-init's documented forms). A machine started over the network has no other way to be told.

use std::collections::BTreeMap;

use fs_err as fs;
use reqwest::Url;

use crate::layout::Layout;
use crate::problem::Problem;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Where documents are: `%s` stands for their name, else the name is added at the end.
    url: String,
    /// Metadata given with it, under the names that `meta-data` has for them.
    pub(super) given: BTreeMap<String, String>,
}

impl Asked {
    /// Address of one document.
    pub(super) fn document(&self, name: &str) -> String {
        match self.url.contains("%s") {
            true => self.url.replace("%s", name),
            false => format!("{}{name}", self.url),
        }
    }

    /// Whether the server must be looked up first.
    pub(super) fn by_name(&self) -> bool {
        Url::parse(&self.document("user-data")).is_ok_and(|url| url.domain().is_some())
    }

    /// For people: without what a query may hide.
    pub(super) fn name(&self) -> &str {
        self.url.split('?').next().unwrap_or_default().trim_end_matches('/')
    }
}

const COMMAND_LINE: &str = "kernel command line";
const SERIAL: &str = "serial number of the firmware";

/// What this machine was told; nothing in a container, whose command line and firmware are its host's.
pub(super) fn read(layout: &Layout) -> Result<Option<Asked>, Problem> {
    if layout.at("/run/systemd/container").exists() {
        return Ok(None);
    }
    let text = |path: &str| fs::read_to_string(layout.at(path)).unwrap_or_default();
    let mut words = words(&text("/proc/cmdline"), COMMAND_LINE);
    words.extend(self::words(&text("/sys/class/dmi/id/product_serial"), SERIAL));
    let Some((first, place)) = words.first().cloned() else { return Ok(None) };
    if let Some((other, where_)) = words.iter().find(|(word, _)| *word != first) {
        // cloud-init itself takes the first in one place and the last in another.
        let what = format!("two datasources are named: `{first}` ({place}) and `{other}` ({where_})");
        return Err(Problem::new(what, place, "leave one of them"));
    }
    parse(&first, place)
}

/// Words that name this datasource. The kernel takes quotes off a word, `/proc/cmdline` still has them.
fn words(text: &str, place: &'static str) -> Vec<(String, &'static str)> {
    let words = text.split_whitespace().map(|word| word.trim_matches('"'));
    let ours = words.filter(|word| matches!(word.split(';').next(), Some("ds=nocloud" | "ds=nocloud-net")));
    ours.map(|word| (word.to_owned(), place)).collect()
}

fn parse(word: &str, place: &str) -> Result<Option<Asked>, Problem> {
    let (mut url, mut given) = (None, BTreeMap::new());
    for (key, value) in word.split(';').skip(1).filter_map(|pair| pair.split_once('=')) {
        match key {
            "s" | "seedfrom" => url = Some(value.to_owned()),
            "i" | "instance-id" => drop(given.insert("instance-id".to_owned(), value.to_owned())),
            "h" | "local-hostname" => drop(given.insert("local-hostname".to_owned(), value.to_owned())),
            other => tracing::warn!("`{other}` of `{word}` has no effect"),
        }
    }
    // Without an address: the metadata is on a volume or in a directory.
    let Some(url) = url else { return Ok(None) };
    check(&url).map_err(|(what, remedy)| Problem::new(format!("`{url}`: {what}"), place, remedy))?;
    let whole = url.contains("%s") || url.contains('?') || url.ends_with('/');
    Ok(Some(Asked { url: if whole { url } else { url + "/" }, given }))
}

fn check(url: &str) -> Result<(), (String, &'static str)> {
    const FORM: &str = "write it like `ds=nocloud;s=http://10.0.0.5:8080/seed/`";
    if url.contains("__dmi.") {
        return Err(("names of the firmware (`__dmi.…`) are not replaced by this version".to_owned(), FORM));
    }
    let parsed = Url::parse(&url.replace("%s", "user-data")).map_err(|error| (error.to_string(), FORM))?;
    if !["http", "https"].contains(&parsed.scheme()) {
        let remedy = "serve the seed over HTTP, or attach it as a volume labelled `cidata`";
        return Err((format!("`{}` is not read by this version", parsed.scheme()), remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(cmdline: &str, serial: &str) -> Result<Option<Asked>, Problem> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [("proc/cmdline", cmdline), ("sys/class/dmi/id/product_serial", serial)] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        read(&Layout::new(root.path()))
    }

    #[test]
    fn the_documented_forms() {
        for (word, document) in [
            ("ds=nocloud;s=http://10.0.0.5:8080/seed/a/", "http://10.0.0.5:8080/seed/a/user-data"),
            ("ds=nocloud-net;s=http://10.0.0.5/a", "http://10.0.0.5/a/user-data"),
            ("\"ds=nocloud;seedfrom=https://[fd00::5]/a/\"", "https://[fd00::5]/a/user-data"),
            ("ds=nocloud;s=http://10.0.0.5/x?mac=1&doc=", "http://10.0.0.5/x?mac=1&doc=user-data"),
            ("ds=nocloud;s=http://10.0.0.5/%s/a", "http://10.0.0.5/user-data/a"),
            ("ds=nocloud;s=http://seeds.example:8080/a/", "http://seeds.example:8080/a/user-data"),
        ] {
            for asked in [told(&format!("ro {word} quiet\n"), "S1\n"), told("ro\n", &word.replace('"', ""))] {
                let asked = asked.unwrap().unwrap();
                assert_eq!(asked.document("user-data"), document, "{word}");
                assert_eq!(asked.by_name(), word.contains("example"), "{word}");
            }
        }
        let asked = told("ds=nocloud;i=i-7;h=pg-7;s=http://10.0.0.5/?t=secret", "").unwrap().unwrap();
        let given = [("instance-id", "i-7"), ("local-hostname", "pg-7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(asked.given, given.into());
        assert_eq!(asked.name(), "http://10.0.0.5");
        for none in ["ro", "ds=nocloud", "ds=nocloud;i=x", "ds=ec2", "ds=nocloudy;s=http://10.0.0.5/"] {
            assert_eq!(told(none, "").unwrap(), None, "{none}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_and_two_are_one_too_many() {
        for (word, why) in [
            ("ds=nocloud;s=ftp://10.0.0.5/", "`ftp` is not read"),
            ("ds=nocloud;s=/mnt/seed", "relative URL"),
            ("ds=nocloud;s=http://10.0.0.5/__dmi.system-uuid__/", "__dmi."),
        ] {
            let refused = told(word, "").unwrap_err();
            assert!(refused.what.contains(why) && refused.place == COMMAND_LINE, "{refused}");
        }
        let (a, b) = ("ds=nocloud;s=http://10.0.0.5/", "ds=nocloud;s=http://10.0.0.6/");
        assert!(told(&format!("{a} {b}"), "").unwrap_err().what.contains("two datasources"));
        assert!(told(a, b).unwrap_err().what.contains(SERIAL));
        assert!(told(&format!("{a} {a}"), a).unwrap().is_some());
    }

    #[test]
    fn a_container_is_not_told_what_its_host_was() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::create_dir_all(root.path().join("run/systemd")).unwrap();
        fs::write(root.path().join("proc/cmdline"), "ds=nocloud;s=http://10.0.0.5/").unwrap();
        fs::write(root.path().join("run/systemd/container"), "systemd-nspawn").unwrap();
        assert_eq!(read(&Layout::new(root.path())).unwrap(), None);
    }
}
