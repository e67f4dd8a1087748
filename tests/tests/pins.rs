//! Pins that survive: what a store keeps, what is said when a pin moved, and how one component moves alone.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use pgkiln::cache::Cache;
use pgkiln::digest::Sha256;
use pgkiln::lock::{Lock, Recipe};
use pgkiln::problem::Problem;
use pgkiln::store::Store;
use pgkiln_tests::archive::{Archive, Deb, Publication};
use pgkiln_tests::archive_server::Server;
use pgkiln_tests::binary::{self, Said};

type Result<T = ()> = anyhow::Result<T>;

/// `app` needs `lib`; locked. Commands run as a user runs them.
struct Place {
    archive: Archive,
    server: Server,
    work: tempfile::TempDir,
    image: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let mut archive = Archive::new("stable")?;
        archive.add(&Deb::new("base", "1").essential())?;
        archive.add(&Deb::new("lib", "1.0"))?;
        archive.add(&Deb::new("app", "1:2.0-1").depends("lib (>= 1.0)"))?;
        archive.publish(&Publication::default())?;
        let server = Server::start(archive.dir())?;
        let work = tempfile::tempdir()?;
        let image = archive.recipe(work.path(), &server.url(), &[])?;
        let recipe = image.join("image.toml");
        let text = fs_err::read_to_string(&recipe)?;
        fs_err::write(&recipe, text + "\n[components.etcd]\npackage = \"app\"\nversion = \"locked\"\n")?;
        let place = Self { archive, server, work, image };
        let said = place.pgkiln("one", &["lock"], &[]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn lock(&self) -> Result<Lock> {
        Ok(Lock::load(&self.image.join("image.lock"))?.expect("there is a lock"))
    }

    /// A version of a package in the lock.
    fn version(&self, name: &str) -> Result<String> {
        Ok(self.lock()?.package(name).map(|package| package.version.clone()).unwrap_or_default())
    }

    /// `pgkiln <before> IMAGE <after> --json` with this cache.
    fn pgkiln(&self, cache: &str, before: &[&str], after: &[&str]) -> Said {
        let cmd = binary::pgkiln().args(before).arg(&self.image).args(after).arg("--json");
        binary::run(cmd.arg("--cache").arg(self.path(cache)))
    }

    /// Fills the store of this name.
    fn fetch_to(&self, cache: &str, store: &str) -> Said {
        let (store, tools) = (self.path(store).display().to_string(), self.image.display().to_string());
        self.pgkiln(cache, &["fetch"], &["--to", &store, "--tools", &tools])
    }

    /// Publishes what the archive has by now.
    fn publish(&self) -> Result {
        let made = jiff::SignedDuration::from_secs(5);
        self.archive.publish(&Publication { made, ..Publication::default() })
    }
}

#[track_caller]
fn result(said: &Said) -> serde_json::Value {
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    serde_json::from_str(&said.stdout).expect("one object")
}

/// The problems of a refusal.
#[track_caller]
fn problems(said: &Said) -> Vec<Problem> {
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    let object: serde_json::Value = serde_json::from_str(&said.stdout).expect("one object");
    let all = object.get("errors").cloned().unwrap_or_else(|| serde_json::json!([object["error"]]));
    let all: Vec<Problem> = serde_json::from_value(all).expect("problems");
    assert!(all.iter().all(|problem| !problem.place.is_empty() && !problem.remedy.is_empty()), "{all:?}");
    all
}

fn flip_a_byte(path: &Path) -> Result {
    let mut bytes = fs_err::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs_err::write(path, bytes)?)
}

#[test]
fn a_store_has_everything_and_outlives_the_archive() -> Result {
    let place = Place::new()?;
    let filled = result(&place.fetch_to("one", "store"));
    assert_eq!(filled["store"]["chain_checked"], serde_json::json!(["fixture stable"]), "{filled}");
    assert_eq!(filled["store"]["added"], 3, "{filled}");
    let store = Store::open(&place.path("store"))?;
    let lock = place.lock()?;
    assert!(store.path(&lock.suites[0].inrelease_sha256).is_file() && store.key_path(&lock.suites[0].signer).is_file());
    assert_eq!(fs_err::read_to_string(store.lock_path("fixture"))?, lock.render());
    assert_eq!(result(&place.fetch_to("one", "store"))["store"]["added"], 0, "nothing twice");

    let items = Recipe::load(&place.image)?.locked()?.items();
    let app = &lock.package("app").expect("app").sha256;
    let before = place.server.requests("").len();
    store.fetch(&items, &Cache::open(place.path("two"))?)?;
    assert_eq!(place.server.requests("").len(), before, "the network was used");

    // Whoever damages the store is told so, and the cache does not get the damage.
    let cache = Cache::open(place.path("three"))?;
    flip_a_byte(&store.path(app))?;
    let error = format!("{:#}", store.fetch(&items, &cache).expect_err("damaged"));
    assert!(error.contains("1 of 3 files are damaged in the store: app 1:2.0-1"), "{error}");
    assert!(!cache.has(app, items[0].size));
    fs_err::remove_file(store.path(app))?;
    let error = format!("{:#}", store.fetch(&items, &cache).expect_err("missing"));
    assert!(error.contains("1 of 3 files are not in the store: app 1:2.0-1"), "{error}");
    assert!(error.contains("pgkiln fetch IMAGE --to"), "{error}");
    assert_eq!(result(&place.fetch_to("one", "store"))["store"]["added"], 1, "mended");
    Ok(())
}

#[test]
fn a_store_filled_late_says_which_chain_it_lacks() -> Result {
    let mut place = Place::new()?;
    place.archive.add(&Deb::new("later", "1"))?;
    place.publish()?;
    let filled = place.fetch_to("fresh", "store");
    assert_eq!(result(&filled)["store"]["chain_lost"], serde_json::json!(["fixture stable"]));
    assert!(
        filled.stderr.contains("no longer serves the index of fixture stable that was locked"),
        "{}",
        filled.stderr
    );
    // The cache in which it was locked still has it.
    assert_eq!(result(&place.fetch_to("one", "store"))["store"]["chain_lost"], serde_json::json!([]));
    Ok(())
}

#[test]
fn a_lock_that_its_chain_does_not_bear_out_is_refused() -> Result {
    let place = Place::new()?;
    let evil = place.path("evil.deb");
    Deb::new("app", "1:2.0-1").depends("lib").file("usr/bin/evil", "").build(&evil)?;
    let (sha256, size) = Sha256::of_file(&evil)?;
    let mut lock = place.lock()?;
    let app = lock.packages.iter_mut().find(|package| package.name == "app").expect("app");
    (app.sha256, app.size) = (sha256, size);
    lock.write_if_changed(&place.image.join("image.lock"))?;
    fs_err::copy(&evil, place.archive.pool_path("app")?)?;
    let told = problems(&place.fetch_to("one", "store"));
    assert!(told[0].what.contains("app 1:2.0-1 is not in the index that the lock names"), "{told:?}");
    Ok(())
}

#[test]
fn a_pinned_version_that_is_gone_names_those_that_exist() -> Result {
    let mut place = Place::new()?;
    place.archive.remove("app")?;
    place.archive.add(&Deb::new("app", "1:2.0-2").depends("lib"))?;
    place.archive.add(&Deb::new("app", "1:2.1-1").depends("lib"))?;
    place.publish()?;
    let told = problems(&place.pgkiln("fresh", &["fetch"], &[]));
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].what, "app 1:2.0-1 is gone: `fixture` has 1:2.0-2, 1:2.1-1");
    for way_out in ["pgkiln lock --update", "`snapshot`", "--from DIR"] {
        assert!(told[0].remedy.contains(way_out), "{told:?}");
    }
    Ok(())
}

#[test]
fn a_version_released_again_names_both_contents_and_the_store() -> Result {
    let mut place = Place::new()?;
    let locked = place.lock()?.package("app").expect("app").sha256;
    place.archive.remove("app")?;
    place.archive.add(&Deb::new("app", "1:2.0-1").depends("lib").file("usr/share/app/more", "rebuilt\n"))?;
    place.publish()?;
    let now = Sha256::of_file(&place.archive.pool_path("app")?)?.0;
    let told = problems(&place.pgkiln("fresh", &["fetch"], &[]));
    assert_eq!(told.len(), 1, "{told:?}");
    let expected = format!("app 1:2.0-1 was released again with other content: locked {locked}, now {now}");
    assert_eq!(told[0].what, expected);
    assert!(told[0].remedy.contains("pgkiln fetch --to DIR") && told[0].remedy.contains("--from DIR"), "{told:?}");
    Ok(())
}

#[test]
fn a_new_dependency_names_who_pulls_it() -> Result {
    let mut place = Place::new()?;
    place.archive.remove("app")?;
    place.archive.add(&Deb::new("app", "1:2.0-2").depends("lib, virtual-helper | other"))?;
    place.archive.add(&Deb::new("helper", "3").field("Provides", "virtual-helper"))?;
    place.publish()?;
    let told = problems(&place.pgkiln("fresh", &["fetch"], &[]));
    assert_eq!(told.len(), 2, "{told:?}");
    let expected = "helper 3 would be new in the image: app 1:2.0-2 needs virtual-helper | other";
    assert_eq!(told[1].what, expected);
    assert!(told[1].remedy.contains("review it before `pgkiln lock --update`"), "{told:?}");

    let updated = result(&place.pgkiln("fresh", &["lock", "--update"], &[]));
    let drift = updated["drift"].to_string();
    assert!(drift.contains(r#""pulled_by":["app 1:2.0-2 needs virtual-helper | other"]"#), "{drift}");
    Ok(())
}

#[test]
fn only_the_named_component_moves() -> Result {
    let mut place = Place::new()?;
    place.archive.add(&Deb::new("app", "1:3.0-1").depends("lib (>= 1.0), extra"))?;
    place.archive.add(&Deb::new("extra", "1"))?;
    place.archive.add(&Deb::new("lib", "2.0"))?;
    place.publish()?;
    let updated = result(&place.pgkiln("one", &["lock", "--update"], &["etcd"]));
    assert_eq!(updated["drift"].as_array().map(Vec::len), Some(2), "{updated}");
    assert_eq!([place.version("app")?, place.version("lib")?, place.version("extra")?], ["1:3.0-1", "1.0", "1"]);
    // By package name too; and without names everything moves.
    result(&place.pgkiln("one", &["lock", "--update"], &["base"]));
    assert_eq!(place.version("lib")?, "1.0");
    let updated = result(&place.pgkiln("one", &["lock", "--update"], &[]));
    assert_eq!(updated["drift"], serde_json::json!([{ "package": "lib", "old": "1.0", "new": "2.0" }]));
    Ok(())
}

/// One package from the next release, and everything else as it was.
#[test]
fn a_component_moves_alone_into_a_suite_that_was_added() -> Result {
    let mut place = Place::new()?;
    let before = place.lock()?;
    place.archive.switch_to("next");
    place.archive.add(&Deb::new("app", "1:3.0-1").depends("lib (>= 1.0), extra"))?;
    place.archive.add(&Deb::new("extra", "1"))?;
    place.archive.add(&Deb::new("lib", "2.0"))?;
    place.publish()?;
    let recipe = place.image.join("image.toml");
    let text = fs_err::read_to_string(&recipe)?.replace("suites = [\"stable\"]", "suites = [\"stable\", \"next\"]");
    fs_err::write(&recipe, &text)?;
    result(&place.pgkiln("one", &["lock", "--update"], &["etcd"]));
    assert_eq!([place.version("app")?, place.version("lib")?, place.version("extra")?], ["1:3.0-1", "1.0", "1"]);
    Recipe::load(&place.image)?.locked()?;
    // What else changed in a recipe may take away what is to stay.
    before.write_if_changed(&place.image.join("image.lock"))?;
    fs_err::write(&recipe, text.replace("packages = []", "packages = [\"extra\"]"))?;
    let told = problems(&place.pgkiln("one", &["lock", "--update"], &["etcd"]));
    assert!(told[0].remedy.contains("without components first"), "{told:?}");
    Ok(())
}

/// Of the component, not of what moved beside it.
#[test]
fn a_component_s_changelog_is_shown() -> Result {
    let mut place = Place::new()?;
    let entries = ["1:3.0-1", "1:2.0-2", "1:2.0-1"].map(|version| {
        let trailer = " -- Tests <tests@example.org>  Mon, 02 Nov 2026 10:00:00 +0000";
        format!("app ({version}) unstable; urgency=low\n\n  * Change of {version}.\n\n{trailer}\n\n")
    });
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(entries.concat().as_bytes())?;
    let changelog = packed.finish()?;
    let app = Deb::new("app", "1:3.0-1").depends("lib");
    place.archive.add(&app.file("usr/share/doc/app/changelog.Debian.gz", &changelog))?;
    place.archive.add(&Deb::new("lib", "2.0").file("usr/share/doc/lib/changelog.Debian.gz", &changelog))?;
    place.publish()?;
    let cmd = binary::pgkiln().args(["lock", "--update"]).arg(&place.image).arg("--cache").arg(place.path("told"));
    let told = binary::run(cmd.arg("--lock").arg(place.image.join("image.lock")));
    let expected = "app 1:2.0-1 → 1:3.0-1\n      1:3.0-1\n        * Change of 1:3.0-1.\n      1:2.0-2\n";
    assert!(told.stdout.contains(expected), "{}{}", told.stdout, told.stderr);
    assert!(!told.stdout.contains("Change of 1:2.0-1"), "{}", told.stdout);
    assert_eq!(told.stdout.matches("* Change").count(), 2, "{}", told.stdout);
    Ok(())
}

#[test]
fn what_cannot_stay_is_named() -> Result {
    let mut place = Place::new()?;
    let committed = fs_err::read_to_string(place.image.join("image.lock"))?;
    place.archive.add(&Deb::new("app", "1:3.0-1").depends("lib"))?;
    place.archive.remove("lib")?;
    place.archive.add(&Deb::new("lib", "2.0"))?;
    place.publish()?;
    let told = problems(&place.pgkiln("one", &["lock", "--update"], &["etcd"]));
    assert_eq!(told[0].what, "lib 1.0 cannot stay: the archive has 2.0");
    assert!(told[0].remedy.contains("app lib`"), "{told:?}");
    let told = problems(&place.pgkiln("one", &["lock", "--update"], &["etdc"]));
    assert!(told[0].what.contains("`etdc` is neither a component nor a locked package"), "{told:?}");
    assert!(told[0].remedy.contains("etcd"), "{told:?}");
    assert_eq!(fs_err::read_to_string(place.image.join("image.lock"))?, committed, "the lock was changed");
    assert_eq!(place.pgkiln("one", &["lock"], &["etcd"]).code, Some(2), "components without --update");
    Ok(())
}
