//! Locking and fetching against a signed archive on loopback: what must work, and everything that must be refused.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use jiff::SignedDuration;
use pgkiln::cache::Cache;
use pgkiln::digest::Sha256;
use pgkiln::fetch;
use pgkiln::lock::relock::fetch_or_relock;
use pgkiln::lock::{Lock, Locked, Recipe, resolve};
use pgkiln::problem::{Problem, Problems};
use pgkiln_tests::archive::{Archive, Deb, Publication};
use pgkiln_tests::archive_server::{Fault, Server};

type Result<T = ()> = anyhow::Result<T>;

/// An archive with a few related packages, its server, a cache and a recipe.
struct Fixture {
    archive: Archive,
    server: Server,
    work: tempfile::TempDir,
    cache: Cache,
    image: PathBuf,
}

impl Fixture {
    fn new(packages: &[&str]) -> Result<Self> {
        let mut archive = Archive::new("stable")?;
        archive.add(&Deb::new("base", "1").essential())?;
        archive.add(&Deb::new("lib", "1.0").file("usr/lib/lib.so", "x".repeat(4000)))?;
        archive.add(&Deb::new("lib", "1.1~rc1").file("usr/lib/lib.so", "y"))?;
        archive.add(&Deb::new("extra", "1"))?;
        archive.add(&Deb::new("app", "1:2.0-1").depends("lib (>= 1.0)").field("Recommends", "extra"))?;
        archive.add(&Deb::new("broken", "1").depends("nowhere"))?;
        archive.publish(&Publication::default())?;
        let server = Server::start(archive.dir())?;
        let work = tempfile::tempdir()?;
        let cache = Cache::open(work.path().join("cache"))?;
        let image = archive.recipe(work.path(), &server.url(), packages)?;
        Ok(Self { archive, server, work, cache, image })
    }

    fn resolve(&self) -> Result<Lock> {
        Ok(resolve::resolve(Recipe::load(&self.image)?.image(), None, &[], &self.cache, &|_| ())?.lock)
    }

    fn lock(&self) -> Result<Recipe<Locked>> {
        let lock = self.resolve()?;
        lock.write_if_changed(&self.image.join("image.lock"))?;
        Recipe::load(&self.image)?.locked()
    }

    fn fetch(&self, recipe: &Recipe<Locked>) -> Result<fetch::Fetched> {
        fetch::fetch(&recipe.items(), &self.cache, &|_| ())
    }

    fn edit_recipe(&self, from: &str, to: &str) -> Result {
        let file = self.image.join("image.toml");
        let text = fs_err::read_to_string(&file)?;
        assert!(text.contains(from), "{from} is not in the recipe");
        Ok(fs_err::write(file, text.replace(from, to))?)
    }

    /// Every file in the store, after checking that it is what its name says.
    fn stored(&self) -> Result<Vec<Sha256>> {
        let mut stored = Vec::new();
        for shard in fs_err::read_dir(self.cache.root().join("cas/sha256"))? {
            for file in fs_err::read_dir(shard?.path())? {
                let file = file?;
                let digest: Sha256 = file.file_name().to_string_lossy().parse()?;
                assert_eq!(Sha256::of_file(&file.path())?.0, digest, "a bad file was left in the store");
                stored.push(digest);
            }
        }
        Ok(stored)
    }
}

fn problems(error: &anyhow::Error) -> Vec<Problem> {
    let one = |cause: &(dyn std::error::Error + 'static)| {
        (cause.downcast_ref::<Problem>().map(|problem| vec![problem.clone()]))
            .or_else(|| cause.downcast_ref::<Problems>().map(|problems| problems.0.clone()))
    };
    error.chain().find_map(one).unwrap_or_else(|| panic!("not a problem with a remedy: {error:?}"))
}

#[track_caller]
fn refused<T>(result: Result<T>, what: &str) -> Problem {
    let error = result.err().unwrap_or_else(|| panic!("not refused, expected: {what}"));
    let problem = problems(&error).remove(0);
    assert!(problem.what.contains(what), "expected `{what}` in: {problem}");
    assert!(!problem.remedy.is_empty() && !problem.place.is_empty(), "no place or remedy: {problem}");
    problem
}

#[test]
fn a_lock_has_exactly_the_closure_and_fetch_gets_it() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    let packages = recipe.lock().packages.iter();
    let names: Vec<String> = packages.map(|p| format!("{} {} {}", p.name, p.version, p.arch)).collect();
    assert_eq!(names, ["app 1:2.0-1 all", "base 1 all", "lib 1.1~rc1 all"], "dependencies, no recommended packages");
    assert_eq!(recipe.lock().suites[0].signer, fixture.archive.fingerprint(0));
    assert_eq!(recipe.lock().source_date_epoch, u64::try_from(recipe.lock().suites[0].date.as_second())?);
    assert!(!recipe.lock().render().contains("127.0.0.1"), "a lock does not depend on a mirror");

    let file = fixture.image.join("image.lock");
    assert!(!fixture.resolve()?.write_if_changed(&file)?, "unchanged: not written");
    assert_eq!(Lock::load(&file)?.as_ref(), Some(recipe.lock()));

    assert_eq!(fixture.fetch(&recipe)?.files, 3);
    let stored = fixture.stored()?;
    assert!(recipe.lock().packages.iter().all(|package| stored.contains(&package.sha256)));
    assert_eq!(fixture.fetch(&recipe)?.files, 0, "cached");
    Ok(())
}

#[test]
fn indexes_are_asked_for_by_digest_where_the_archive_offers_it() -> Result {
    let fixture = Fixture::new(&["app"])?;
    fixture.archive.publish(&Publication { by_hash: true, ..Publication::default() })?;
    fixture.resolve()?;
    assert!(fixture.server.requests("Packages.gz").is_empty());
    assert_eq!(fixture.server.requests("InRelease").len(), 1);
    Ok(())
}

#[test]
fn a_pinned_version_is_taken_and_a_pin_that_does_not_exist_names_those_that_do() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.image.join("image.toml");
    let text = fs_err::read_to_string(&recipe)?;
    let pinned = |version: &str| format!("{text}\n[components.etcd]\npackage = \"lib\"\nversion = \"{version}\"\n");
    fs_err::write(&recipe, pinned("1.0"))?;
    assert_eq!(fixture.resolve()?.package("lib").map(|package| package.version.as_str()), Some("1.0"));
    fs_err::write(&recipe, pinned("9"))?;
    let problem = refused(fixture.resolve(), "package `lib` has no version `9`");
    assert!(problem.remedy.contains("1.0, 1.1~rc1"), "{problem}");
    Ok(())
}

#[test]
fn priority_decides_between_archives() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let mut vendor = Archive::new("vendor")?;
    vendor.add(&Deb::new("lib", "0.9"))?;
    vendor.add(&Deb::new("app", "1:1.0").depends("lib"))?;
    vendor.publish(&Publication::default())?;
    let server = Server::start(vendor.dir())?;
    let recipe = fixture.image.join("image.toml");
    let text = fs_err::read_to_string(&recipe)?;
    let section = |priority: &str| {
        let (url, key, fingerprint) = (server.url(), vendor.keyring(), vendor.fingerprint(0));
        format!(
            "{text}\n[archives.vendor]\nurl = \"{url}\"\nsuites = [\"vendor\"]\ncomponents = [\"main\"]\nkey = {key:?}\n\
             fingerprints = [\"{fingerprint}\"]\n{priority}\n"
        )
    };
    let lib = |lock: &Lock| lock.package("lib").map(|p| (p.version.clone(), p.archive.clone()));
    fs_err::write(&recipe, section(""))?;
    assert_eq!(lib(&fixture.resolve()?), Some(("1.1~rc1".into(), "fixture".into())));
    fs_err::write(&recipe, section("priority = 1001"))?;
    assert_eq!(lib(&fixture.resolve()?), Some(("0.9".into(), "vendor".into())));
    Ok(())
}

#[test]
fn an_altered_release_file_is_refused() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let file = fixture.archive.dir().join("dists/stable/InRelease");
    let text = fs_err::read_to_string(&file)?;
    fs_err::write(&file, text.replace("Origin: Fixture", "Origin: Someone"))?;
    refused(fixture.resolve(), "the signature does not match the content");
    fs_err::write(&file, "Origin: Fixture\nSHA256:\n")?;
    refused(fixture.resolve(), "not signed");
    assert!(fixture.stored()?.is_empty());
    Ok(())
}

#[test]
fn only_a_pinned_key_counts_even_if_others_are_in_the_keyring() -> Result {
    let fixture = Fixture::new(&["app"])?;
    fixture.archive.publish(&Publication { second_key: true, ..Publication::default() })?;
    let problem = refused(fixture.resolve(), &format!("signed by {}", fixture.archive.fingerprint(1)));
    assert!(problem.what.contains(fixture.archive.fingerprint(0)), "names the pinned key: {problem}");

    let (both, first) = (fixture.archive.keyring(), fixture.archive.first_keyring());
    fixture.edit_recipe(&both.display().to_string(), &first.display().to_string())?;
    refused(fixture.resolve(), "signed by a key that is not in the keyring");
    assert!(fixture.stored()?.is_empty());
    Ok(())
}

#[test]
fn an_expired_release_is_refused() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let valid_for = Some(SignedDuration::from_hours(-1));
    fixture.archive.publish(&Publication { valid_for, ..Publication::default() })?;
    let problem = refused(fixture.resolve(), "the mirror is out of date");
    assert!(problem.place.ends_with("dists/stable/InRelease"), "{problem}");
    Ok(())
}

#[test]
fn an_altered_index_is_refused() -> Result {
    let fixture = Fixture::new(&["app"])?;
    fixture.server.fail("Packages.gz", Fault::Corrupt, usize::MAX);
    let problem = refused(fixture.resolve(), "index main/binary-amd64/Packages.gz is altered");
    assert!(problem.remedy.contains("not used"), "{problem}");
    assert!(fixture.stored()?.is_empty());
    Ok(())
}

#[test]
fn an_altered_package_is_refused_and_nothing_of_it_stays() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    fixture.server.fail("app_2.0-1_all.deb", Fault::Corrupt, usize::MAX);
    refused(fixture.fetch(&recipe), "app 1:2.0-1 is altered: its SHA-256 is");
    let app = recipe.lock().package("app").map(|package| package.sha256);
    assert!(!fixture.stored()?.contains(&app.unwrap_or_else(|| Sha256::of(""))));

    fixture.server.reset();
    fixture.fetch(&recipe)?;
    fixture.stored().map(drop)
}

#[test]
fn a_package_that_was_altered_only_on_its_way_is_fetched_again() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    fixture.server.fail("app_2.0-1_all.deb", Fault::Corrupt, 1);
    fixture.fetch(&recipe)?;
    fixture.stored().map(drop)
}

#[test]
fn a_truncated_package_is_refused() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    fixture.server.fail("app_2.0-1_all.deb", Fault::Truncate(100), usize::MAX);
    refused(fixture.fetch(&recipe), "app 1:2.0-1 has the wrong size");
    fixture.stored().map(drop)
}

#[test]
fn a_broken_connection_is_resumed_where_it_stopped() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    let file = "app_2.0-1_all.deb";
    fixture.server.fail(file, Fault::Break(100), 1);
    fixture.server.fail(file, Fault::ServerError, 1);
    fixture.fetch(&recipe)?;
    let asked: Vec<Option<usize>> = fixture.server.requests(file).iter().map(|request| request.from).collect();
    assert_eq!(asked, [None, Some(100), Some(100)]);
    fixture.stored().map(drop)
}

#[test]
fn a_server_that_cannot_resume_sends_the_whole_file_again() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    fixture.server.fail("app_2.0-1_all.deb", Fault::Break(100), 1);
    fixture.server.fail("app_2.0-1_all.deb", Fault::NoRange, 1);
    fixture.fetch(&recipe)?;
    fixture.stored().map(drop)
}

#[test]
fn what_an_interrupted_run_left_is_used_by_the_next() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    let app = recipe.lock().package("app").map(|package| package.sha256).unwrap_or_else(|| Sha256::of(""));
    let half = fs_err::read(fixture.archive.pool_path("app")?)?[..200].to_vec();
    fs_err::write(fixture.cache.root().join("partial").join(app.to_string()), half)?;
    fixture.fetch(&recipe)?;
    assert_eq!(fixture.server.requests("app_2.0-1_all.deb").first().and_then(|request| request.from), Some(200));
    // Left-overs that are wrong cost one more download, not a wrong file.
    fixture.cache.discard(&app)?;
    fs_err::write(fixture.cache.root().join("partial").join(app.to_string()), [7; 200])?;
    fixture.fetch(&recipe)?;
    fixture.stored().map(drop)
}

#[test]
fn an_altered_cached_file_is_noticed_when_read_and_replaced() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    fixture.fetch(&recipe)?;
    let item = recipe.items().into_iter().find(|item| item.name.starts_with("app ")).expect("app is locked");
    let path = fixture.cache.cas_path(&item.sha256);
    let good = fs_err::read(&path)?;
    let mut bad = good.clone();
    bad[10] ^= 1;
    fs_err::write(&path, bad)?;
    assert_eq!(fetch::read(&item, &fixture.cache, &|_| ())?, good);
    fs_err::write(&path, "short")?;
    assert_eq!(fixture.fetch(&recipe)?.files, 1, "only the altered one");
    fixture.stored().map(drop)
}

#[test]
fn an_unreachable_mirror_is_told_as_such() -> Result {
    let fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    fixture.edit_recipe(&fixture.server.url(), &format!("http://{nobody}"))?;
    let moved = Recipe::load(&fixture.image)?.with(recipe.lock().clone())?;
    refused(fixture.fetch(&moved), "the mirror cannot be reached");
    let problem = refused(fixture.resolve(), "the mirror cannot be reached");
    assert!(problem.place.contains(&nobody.to_string()), "{problem}");
    Ok(())
}

#[test]
fn unknown_names_are_told_together_with_line_and_suggestion() -> Result {
    let fixture = Fixture::new(&["app", "extrra", "no-such-thing"])?;
    let error = fixture.resolve().expect_err("unknown packages are refused");
    let found = problems(&error);
    assert_eq!(found.len(), 2, "{error:#}");
    assert!(found[0].what.contains("unknown package `extrra`") && found[0].remedy.contains("did you mean `extra`?"));
    assert!(found.iter().all(|problem| problem.place.ends_with("fixture/image.toml:6")), "{error:#}");
    Ok(())
}

#[test]
fn a_suite_that_does_not_exist_and_dependencies_that_cannot_be_met() -> Result {
    let fixture = Fixture::new(&["broken"])?;
    let problem = refused(fixture.resolve(), "apt finds no set of packages");
    assert!(problem.what.contains("broken : Depends: nowhere"), "{problem}");
    fixture.edit_recipe("\"stable\"", "\"stabel\"")?;
    let problem = refused(fixture.resolve(), "archive `fixture` has no suite `stabel`");
    assert!(problem.place.contains("image.toml:"), "{problem}");
    Ok(())
}

#[test]
fn a_stale_lock_names_its_reasons() -> Result {
    let fixture = Fixture::new(&["app"])?;
    fixture.lock()?;
    fixture.edit_recipe("packages = [\"app\"]", "packages = [\"extra\"]")?;
    let problem = refused(Recipe::load(&fixture.image)?.locked(), "package `extra` was added in line 6");
    assert!(problem.what.contains("package `app` was removed"), "{problem}");
    assert!(problem.remedy.contains("pgkiln lock --update"), "{problem}");
    Ok(())
}

#[test]
fn a_package_that_moved_on_is_relocked_into_the_cache_only() -> Result {
    let mut fixture = Fixture::new(&["app"])?;
    let recipe = fixture.lock()?;
    let committed = fs_err::read_to_string(fixture.image.join("image.lock"))?;
    fixture.archive.remove("app")?;
    fixture.archive.add(&Deb::new("app", "1:2.0-2").depends("lib"))?;
    fixture.archive.publish(&Publication::default())?;

    let problem = refused(fixture.fetch(&recipe), "the mirror no longer has app 1:2.0-1");
    assert!(problem.remedy.contains("pgkiln lock --update"), "{problem}");
    let again = fetch_or_relock(recipe, &fixture.cache, &|_| ())?;
    assert!(again.relocked);
    let drift: Vec<String> = again.drift.iter().map(ToString::to_string).collect();
    assert_eq!(drift, ["app 1:2.0-1 → 1:2.0-2"]);
    assert_eq!(fs_err::read_to_string(fixture.image.join("image.lock"))?, committed, "the tree is not edited");
    assert!(fixture.cache.relock_path("fixture").is_file());
    assert!(fixture.fetch(&again.recipe)?.files == 0, "already fetched");
    fixture.stored().map(drop)
}

/// Not where this host keeps it, nor the fixture: only the package has the key. Without it, this host's file is looked for.
#[test]
fn a_keyring_comes_from_its_package_in_the_tool_tree_s_lock() -> Result {
    const KEYRING: &str = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";
    let mut fixture = Fixture::new(&["app"])?;
    let own = fixture_keyring(&fixture.image)?;
    let tools = fixture.image.with_file_name("tools");
    fs_err::create_dir_all(&tools)?;
    let recipe = fs_err::read_to_string(fixture.image.join("image.toml"))?.replace("\"fixture\"", "\"tools\"");
    fs_err::write(tools.join("image.toml"), recipe.replace("\"app\"", "\"ubuntu-keyring\""))?;
    fixture.edit_recipe(&own.display().to_string(), KEYRING)?;
    if !Path::new(KEYRING).exists() {
        let problem = refused(fixture.resolve(), "the keyring `/usr/share/keyrings/ubuntu-archive-keyring.gpg`");
        assert_eq!(problem.remedy, "apt-get install ubuntu-keyring");
    }

    let lock_tools = |fixture: &mut Fixture, version: &str, keys: PathBuf| -> Result {
        let encoded = base64::engine::general_purpose::STANDARD.encode(fs_err::read(keys)?);
        let armour = format!("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{encoded}\n-----END PGP PUBLIC KEY BLOCK-----\n");
        // Debian 13's package has a link by the old name.
        let package = Deb::new("ubuntu-keyring", version).file(&KEYRING.replace(".gpg", ".pgp"), &armour);
        fixture.archive.add(&package.link(KEYRING, "ubuntu-archive-keyring.pgp"))?;
        fixture.archive.publish(&Publication::default())?;
        let lock = resolve::resolve(Recipe::load(&tools)?.image(), None, &[], &fixture.cache, &|_| ())?.lock;
        lock.write_if_changed(&tools.join("image.lock")).map(drop)
    };
    lock_tools(&mut fixture, "1", Archive::new("stable")?.first_keyring())?;
    let problem = refused(fixture.resolve(), "has none of the pinned keys");
    assert_eq!(problem.place, format!("{KEYRING} of ubuntu-keyring 1"));
    lock_tools(&mut fixture, "2", own)?;
    fixture.resolve().map(drop)
}

/// The keyring the fixture's recipe names.
fn fixture_keyring(image: &Path) -> Result<PathBuf> {
    let recipe = fs_err::read_to_string(image.join("image.toml"))?;
    let line = recipe.lines().find_map(|line| line.strip_prefix("key = ")).expect("the recipe names a key");
    Ok(PathBuf::from(line.trim_matches('"')))
}

#[test]
fn concurrent_fetches_share_the_work() -> Result {
    let fixture = Fixture::new(&["app", "extra"])?;
    let recipe = fixture.lock()?;
    fixture.server.reset();
    let results: Vec<Result<_>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| fixture.fetch(&recipe))).collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    results.into_iter().collect::<Result<Vec<_>>>()?;
    for package in &recipe.lock().packages {
        assert_eq!(fixture.server.requests(&package.path).len(), 1, "{} was fetched once", package.name);
    }
    drop(fixture.work);
    Ok(())
}
