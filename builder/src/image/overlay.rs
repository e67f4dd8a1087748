//! `--overlay FILE`: other addresses and keys for a recipe's archives, and nothing else. For an internal mirror, a mirror signed
//! with keys of one's own, or an archive made for a test: the recipe stays as it was reviewed.
//!
//! ```toml
//! schema = 1
//!
//! [archives.ubuntu]
//! snapshot-service = "https://mirror.example/ubuntu-snapshots"   # the recipe's time and a slash follow
//! [archives.percona]
//! url = "https://mirror.example/ppg-17.11/apt"
//! key = "our-key.gpg"                                            # beside this file, or an https address
//! fingerprints = ["…40 hexadecimal digits…"]
//! origin = "Our mirror"
//! ```

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use anyhow::Context;
use toml::de::DeTable;

use super::document::Table;
use super::parse_archive::{fingerprint, named_key};
use super::{Archive, Image, Located, Url, parse};
use crate::problem::{Problem, Problems};
use crate::strict::{Reader, suggestion};

/// What the command line says beside the recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Other addresses and keys for the recipe's archives.
    pub overlay: Option<PathBuf>,
    /// The lock, instead of `image.lock` beside the recipe.
    pub lock: Option<PathBuf>,
    /// Another variant than the recipe's own.
    pub variant: Option<String>,
    /// Another architecture than the recipe's own.
    pub architecture: Option<String>,
}

/// What an overlay says about one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlaid {
    /// Where the archive is instead.
    pub place: Option<Place>,
    /// `overlay.toml:7`, if it brings the key.
    pub key_at: Option<String>,
    /// Whether other keys than the recipe's are believed.
    pub other_keys: bool,
}

/// Where an overlay says that an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The archive itself, the part before `/dists`.
    Archive(String),
    /// A snapshot service: a slash and the recipe's time follow.
    Snapshots(String),
}

impl Image {
    /// Reads a recipe as the command line wants it: with another lock, and archives changed by an overlay.
    pub fn load_with(path: &Path, overrides: &Overrides) -> anyhow::Result<Self> {
        let mut image = Self::load(path)?;
        image.overrides = overrides.clone();
        image.choose_architecture()?;
        image.choose_variant()?;
        if let Some(file) = &overrides.overlay {
            let text = fs_err::read_to_string(file).context("reading the overlay")?;
            image.overlay(&text, file)?;
        }
        Ok(image)
    }

    /// Changes the archives as the text of an overlay says; `file` is what messages call it.
    pub fn overlay(&mut self, text: &str, file: &Path) -> Result<(), Problems> {
        let name = file.display().to_string();
        let mut reader = Reader::new(&name, text);
        let root = reader.document()?;
        let reader = RefCell::new(reader);
        self.read(&reader, root.get_ref(), file);
        reader.borrow_mut().finish()
    }

    /// Archives that are believed by other keys than the recipe's.
    pub fn other_keys(&self) -> Vec<&str> {
        let other = |archive: &&Archive| archive.overlaid.as_ref().is_some_and(|overlaid| overlaid.other_keys);
        self.archives.iter().filter(other).map(|archive| archive.id.as_str()).collect()
    }

    /// What a command line names this image by: `images/x --overlay FILE --lock FILE`.
    pub fn arguments(&self) -> String {
        let mut arguments = self.dir().display().to_string();
        let Overrides { overlay, lock, variant, architecture } = &self.overrides;
        for (option, chosen) in [("--variant", variant), ("--arch", architecture)] {
            if let Some(chosen) = chosen {
                arguments.push_str(&format!(" {option} {chosen}"));
            }
        }
        for (option, file) in [("--overlay", overlay), ("--lock", lock)] {
            if let Some(file) = file {
                arguments.push_str(&format!(" {option} {}", file.display()));
            }
        }
        arguments
    }

    fn read<'i>(&mut self, reader: &RefCell<Reader<'i>>, root: &DeTable<'i>, file: &Path) {
        let top = Table::top(reader, root);
        parse::check_schema(&top);
        let tables = top.table("archives").map_or(Vec::new(), |table| table.named_tables());
        if tables.is_empty() {
            top.problem(
                1,
                "the overlay changes no archive",
                "add a section [archives.…] called like one of the recipe's",
            );
        }
        for (id, table) in tables {
            let known: Vec<&str> = self.archives.iter().map(|archive| archive.id.as_str()).collect();
            match self.archives.iter().position(|archive| archive.id == id) {
                Some(found) => overlay_archive(&mut self.archives[found], table, file),
                None => {
                    let what = format!("the recipe has no archive `{id}`");
                    top.problem(table.line, what, suggestion(&id, &known, "archive"));
                }
            }
        }
        top.finish();
    }
}

fn overlay_archive(archive: &mut Archive, table: Table<'_, '_>, file: &Path) {
    let place = place(archive, &table);
    let key = named_key(&table, file);
    let fingerprints = table.texts("fingerprints");
    let first = fingerprints.first().map_or(table.line, |found| found.line);
    let fingerprints: Vec<String> = fingerprints.into_iter().filter_map(|found| fingerprint(&table, found)).collect();
    if table.has("fingerprints") && key.is_none() && !table.has("key") {
        let remedy = "add key = \"…\": the file or https address that has the key of this fingerprint";
        table.problem(
            first,
            format!("`archives.{}` pins another key and does not say where it is", archive.id),
            remedy,
        );
    }
    let origin = table.text("origin");
    if place.is_none() && key.is_none() && fingerprints.is_empty() && origin.is_none() {
        let what = format!("`archives.{}` changes nothing", archive.id);
        table.problem(table.line, what, "give it a `url`, a `snapshot-service`, or a `key` with its `fingerprints`");
    }
    table.finish();
    let key_at = key.as_ref().map(|key| format!("{}:{}", file.display(), key.line));
    if let Some(key) = key {
        archive.key = key;
    }
    let other_keys = !fingerprints.is_empty() && fingerprints != archive.fingerprints;
    if !fingerprints.is_empty() {
        archive.fingerprints = fingerprints;
    }
    if let Some(origin) = origin {
        archive.origin = Some(origin.value);
    }
    archive.overlaid = Some(Overlaid { place, key_at, other_keys });
}

fn place(archive: &Archive, table: &Table<'_, '_>) -> Option<Place> {
    let address = |key| {
        let found = table.text(key)?;
        if !found.value.starts_with("http://") && !found.value.starts_with("https://") {
            table.problem(found.line, format!("`{}` is not an http(s) URL", found.value), "write the whole address");
        }
        Some(Located { value: found.value.trim_end_matches('/').to_owned(), line: found.line })
    };
    let (url, service) = (address("url"), address("snapshot-service"));
    let Some(service) = service else { return url.map(|url| Place::Archive(url.value)) };
    if !matches!(archive.url, Url::Snapshot(_)) {
        let what = format!("the recipe's archive `{}` is no snapshot", archive.id);
        table.problem(service.line, what, "give its `url`, the part before /dists");
    }
    if let Some(url) = url {
        table.problem(url.line, "`url` and `snapshot-service` exclude each other", "remove one of them");
    }
    Some(Place::Snapshots(service.value))
}

/// Refuses to write a lock where it could be taken for the recipe's own.
pub fn check_lock_place(image: &Image) -> Result<(), Problem> {
    let Overrides { overlay: Some(overlay), lock, .. } = &image.overrides else { return Ok(()) };
    let overlay = overlay.display().to_string();
    let Some(lock) = lock else {
        return Err(Problem::new(
            "a lock made with an overlay is not the recipe's own",
            overlay,
            format!("say where it goes: `pgkiln lock {} --lock FILE`", image.arguments()),
        ));
    };
    let beside_a_recipe = lock.with_file_name("image.toml").exists();
    let others = image.other_keys();
    if beside_a_recipe && !others.is_empty() {
        return Err(Problem::new(
            format!(
                "this lock would rest on other keys than the recipe's for {}, and be taken for its own",
                others.join(", ")
            ),
            lock.display().to_string(),
            "write it outside the recipes' directories; only a lock signed by the recipe's own keys belongs there",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "schema = 1\nname = 'x'\ndistribution = 'ubuntu'\nsuite = 'noble'\narchitecture = 'amd64'\n\
        [archives.ubuntu]\nsnapshot = '20261115T000000Z'\nsuites = ['noble']\ncomponents = ['main']\n\
        fingerprints = ['F6ECB3762474EDA9D21B7022871920D1991BC93C']\n\
        [archives.vendor]\nurl = 'https://vendor.example/apt'\nsuites = ['noble']\ncomponents = ['main']\nkey = 'v.gpg'\n\
        fingerprints = ['4D1BB29D63D98E422B2113B19334A25F8507EFA5']\n";

    fn overlaid(text: &str) -> Result<Image, Problems> {
        let mut image = Image::parse(RECIPE, Path::new("x/image.toml")).unwrap();
        image.overlay(text, Path::new("o/overlay.toml"))?;
        Ok(image)
    }

    #[test]
    fn addresses_alone_leave_the_lock_the_recipe_s_own() {
        let text = "schema = 1\n[archives.ubuntu]\nsnapshot-service = 'http://m.example/snap/'\n\
                    [archives.vendor]\nurl = 'http://m.example/vendor/'\n";
        let (plain, image) = (Image::parse(RECIPE, Path::new("x/image.toml")).unwrap(), overlaid(text).unwrap());
        let bases = |n: usize| crate::apt::bases(&image, &image.archives[n]).urls;
        assert_eq!(bases(0), ["http://m.example/snap/20261115T000000Z"]);
        assert_eq!(bases(1), ["http://m.example/vendor"]);
        assert_eq!(image.resolution_digest(), plain.resolution_digest());
        assert!(image.other_keys().is_empty());
        let mirror = overlaid("schema = 1\n[archives.ubuntu]\nurl = 'http://m.example/frozen'\n").unwrap();
        assert_eq!(crate::apt::bases(&mirror, &mirror.archives[0]).urls, ["http://m.example/frozen"]);
        assert_eq!(mirror.archives[0].url.snapshot(), Some("20261115T000000Z"), "what is meant stays");
    }

    #[test]
    fn other_keys_make_another_lock() {
        let text = "schema = 1\n[archives.vendor]\nkey = 'k.gpg'\norigin = 'Mine'\n\
                    fingerprints = ['AAAA B29D 63D9 8E42 2B21  13B1 9334 A25F 8507 EFA5']\n";
        let (plain, image) = (Image::parse(RECIPE, Path::new("x/image.toml")).unwrap(), overlaid(text).unwrap());
        assert_ne!(image.resolution_digest(), plain.resolution_digest());
        assert_eq!(image.other_keys(), ["vendor"]);
        assert_eq!(image.archives[1].key.value.to_string(), "o/k.gpg", "beside the overlay");
        assert_eq!(image.archives[1].origin.as_deref(), Some("Mine"));
    }

    #[test]
    fn every_problem_at_once_and_nothing_else_can_be_changed() {
        let text = "schema = 1\nsuite = 'jammy'\n[archives.ubunut]\nurl = 'http://m.example'\n\
                    [archives.ubuntu]\nsuites = ['jammy']\n\
                    [archives.vendor]\nsnapshot-service = 'm.example'\nurl = 'http://m.example'\nkey = 'http://m.example/k'\n\
                    fingerprints = ['8507EFA5']\n";
        insta::assert_snapshot!(overlaid(text).unwrap_err().to_string(), @r"
        o/overlay.toml:2: unknown key `suite`
          hint: known keys: schema, archives
        o/overlay.toml:3: the recipe has no archive `ubunut`
          hint: did you mean `ubuntu`?
        o/overlay.toml:5: `archives.ubuntu` changes nothing
          hint: give it a `url`, a `snapshot-service`, or a `key` with its `fingerprints`
        o/overlay.toml:6: unknown key `suites` in `archives.ubuntu`
          hint: known keys: url, snapshot-service, key, fingerprints, origin
        o/overlay.toml:8: `m.example` is not an http(s) URL
          hint: write the whole address
        o/overlay.toml:8: the recipe's archive `vendor` is no snapshot
          hint: give its `url`, the part before /dists
        o/overlay.toml:9: `url` and `snapshot-service` exclude each other
          hint: remove one of them
        o/overlay.toml:10: the key would come over an unprotected connection: `http://m.example/k`
          hint: give an https URL, or the path of a file
        o/overlay.toml:11: `8507EFA5` is not a full fingerprint
          hint: give all 40 hexadecimal digits: a short key id can be forged
        ");
        let told = overlaid("schema = 1\n").unwrap_err().to_string();
        assert!(told.contains("changes no archive"), "{told}");
        let told =
            overlaid("schema = 1\n[archives.vendor]\nfingerprints = ['4D1BB29D63D98E422B2113B19334A25F8507EFA5']\n");
        assert!(told.unwrap_err().to_string().contains("does not say where it is"));
    }
}
