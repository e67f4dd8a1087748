//! The Ubuntu recipes against stand-ins for their archives (`tests/src/standin/`, which says what that proves and what not):
//! all are locked; one is baked and boots to a cluster; with `PGKILN_TEST_RECIPES=all` the others are baked too.
//!
//! Run by `cargo selftest`; alone: `PGKILN_TEST_IMAGE=… cargo test -p pgkiln-tests --test standins`. The variable only says
//! that this is a machine for such tests: the image is baked here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use pgkiln::bake::{self, extensions};
use pgkiln::cache::Cache;
use pgkiln::image::{Image, Located, Overrides};
use pgkiln::lock::{Lock, resolve};
use pgkiln::progress::Ui;
use pgkiln::sandbox::Sandbox;
use pgkiln_tests::binary;
use pgkiln_tests::cluster::TestCluster;
use pgkiln_tests::standin::material::material;
use pgkiln_tests::standin::{RECIPES, Recipe, STATEMENT, Served};
use pgkiln_tests::workspace;

/// The one that is booted.
const BOOTED: &str = "ubuntu-24.04-percona-17";
/// `all`: bake every recipe, some minutes more.
const VARIABLE: &str = "PGKILN_TEST_RECIPES";

struct Place {
    ui: Ui,
    cache: Cache,
    work: tempfile::TempDir,
}

impl Place {
    fn new() -> anyhow::Result<Self> {
        let ui = Ui::new(false, pgkiln::cli::default_cache_dir());
        let cache = Cache::open(ui.cache_dir())?;
        Ok(Self { ui, cache, work: tempfile::Builder::new().prefix("pgkiln-test-").tempdir_in("/var/tmp")? })
    }

    /// Locks a recipe as it is in the tree, beside nothing of it.
    fn lock(&self, recipe: &Recipe, served: &Served) -> anyhow::Result<(Overrides, Lock)> {
        let lock = self.work.path().join(format!("{}.lock", recipe.name));
        let overrides =
            Overrides { overlay: Some(served.overlay.clone()), lock: Some(lock.clone()), ..Overrides::default() };
        let image = Image::load_with(&workspace::image(recipe.name), &overrides)?;
        let resolved = resolve::resolve(&image, None, &[], &self.cache, &|_| ())?.lock;
        resolved.write_if_changed(&lock)?;
        Ok((overrides, resolved))
    }

    fn bake(&self, recipe: &Recipe, overrides: Overrides) -> anyhow::Result<bake::Baked> {
        let out = self.work.path().join(recipe.name);
        let options = bake::Options { overrides, ..bake::Options::new(workspace::image(recipe.name), out) };
        bake::bake(&options, &self.ui)
    }
}

#[test]
fn the_ubuntu_recipes_against_stand_ins() {
    if pgkiln_tests::image::baked().is_none() {
        return;
    }
    eprintln!("{STATEMENT}");
    let place = Place::new().unwrap_or_else(|error| panic!("{error:#}"));
    let all = std::env::var(VARIABLE).is_ok_and(|value| value == "all");
    let failed: Vec<String> = RECIPES
        .iter()
        .filter_map(|recipe| {
            let started = Instant::now();
            let done = prove(&place, recipe, all);
            eprintln!("{}: {:.1}s", recipe.name, started.elapsed().as_secs_f64());
            done.err().map(|error| format!("{}: {error:#}", recipe.name))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

fn prove(place: &Place, recipe: &Recipe, all: bool) -> anyhow::Result<()> {
    match material(recipe.material, &place.cache, &place.ui) {
        // Only a Debian that is not out yet has this version; not every mirror has that.
        Err(error) if recipe.major == 18 => {
            eprintln!("{} left out: {error:#}", recipe.name);
            return Ok(());
        }
        there => drop(there?),
    }
    let served = Served::start(recipe, &place.cache, &place.ui)?;
    let (overrides, lock) = place.lock(recipe, &served).context("locking")?;
    check_lock(recipe, &lock).context("looking at the lock")?;
    let dir = workspace::image(recipe.name);
    ensure!(!dir.join("image.lock").exists(), "a lock of stand-ins is beside the recipe");
    check_refusals(recipe, &dir, &served, place.work.path())?;
    if !all && recipe.name != BOOTED {
        return Ok(());
    }
    let baked = place.bake(recipe, overrides).context("baking")?;
    ensure!(!baked.other_keys.is_empty(), "nobody was told that other keys were believed");
    eprintln!("{}: baked in {:.1}s", recipe.name, baked.elapsed.as_secs_f64());
    check_extensions(&baked, recipe, &lock)?;
    if recipe.name == BOOTED { boot(recipe, &lock, baked.root).context("booting") } else { Ok(()) }
}

/// Who must have won where two archives build the same.
fn check_lock(recipe: &Recipe, lock: &Lock) -> anyhow::Result<()> {
    let image = Image::load(&workspace::image(recipe.name))?;
    let vendor = &image.archives[2].id;
    for component in image.components.values() {
        let package = lock.package(&component.package.value).context("a component is not locked")?;
        let pin = component.pin.as_ref().map(|pin| pin.value.as_str());
        ensure!(pin.is_none_or(|pin| pin == package.version), "{} {} is not the pin", package.name, package.version);
    }
    let of_vendor = |name: &str| lock.package(name).is_some_and(|package| package.archive == *vendor);
    for name in ["libpq5", "postgresql-common", "postgresql-client-common"] {
        ensure!(of_vendor(name), "{name} is not the vendor's: {:?}", lock.package(name));
    }
    if vendor == "percona" {
        ensure!(of_vendor("etcd-server") && of_vendor("etcd-client"), "etcd is Ubuntu's");
        for name in ["haproxy", "patroni", "pgbackrest", "pgbouncer", "etcd"] {
            ensure!(lock.package(name).is_none(), "{name} came beside Percona's");
        }
        let telemetry = lock.packages.iter().find(|package| package.name.contains("telemetry"));
        ensure!(telemetry.is_none(), "{telemetry:?} sends data home");
    }
    for package in image.extensions.values() {
        ensure!(of_vendor(&package.value), "{} is not the vendor's", package.value);
    }
    let python_etcd = lock.package("python3-etcd").context("Patroni cannot talk to etcd")?;
    ensure!(python_etcd.path.starts_with("pool/universe/"), "python3-etcd is in {}", python_etcd.path);
    Ok(())
}

/// The bake tried the recipe's extensions; this tries one that nobody has.
fn check_extensions(baked: &bake::Baked, recipe: &Recipe, lock: &Lock) -> anyhow::Result<()> {
    let mut image = Image::load(&workspace::image(recipe.name))?;
    image.extensions.insert("absent".to_owned(), Located { value: "less".to_owned(), line: 7 });
    let sandbox = Sandbox::new(&baked.tree, lock.source_date_epoch);
    let told = extensions::check(&image, &sandbox).err().context("an absent extension passed")?.to_string();
    ensure!(told.contains("image.toml:7: the server cannot load the extension `absent`"), "{told}");
    ensure!(told.contains("not available") && !told.contains("pgaudit"), "{told}");
    Ok(())
}

/// What a user may do with the overlay by mistake.
fn check_refusals(recipe: &Recipe, dir: &Path, served: &Served, work: &Path) -> anyhow::Result<()> {
    let overlay = served.overlay.to_str().context("a path of ours")?;
    let image = dir.to_str().context("a path of ours")?;
    let beside = dir.join("image.lock");
    let beside = beside.to_str().context("a path of ours")?;
    let lock = work.join("none.lock");
    let lock = lock.to_str().context("a path of ours")?;
    let refused = |args: &[&str], told: &str| {
        let said = binary::run(binary::pgkiln().args(args.iter().copied()));
        ensure!(said.code == Some(1) && said.stderr.contains(told), "{args:?}: {:?} {}", said.code, said.stderr);
        ensure!(said.stderr.contains("hint: "), "no remedy: {}", said.stderr);
        Ok(())
    };
    refused(&["lock", image, "--overlay", overlay], "is not the recipe's own")?;
    refused(&["lock", image, "--overlay", overlay, "--lock", beside], "other keys than the recipe's")?;
    refused(&["bake", image, "--overlay", overlay, "--lock", lock], "there is no lock yet")?;
    ensure!(!Path::new(beside).exists(), "{} has a lock", recipe.name);
    Ok(())
}

fn boot(recipe: &Recipe, lock: &Lock, root: PathBuf) -> anyhow::Result<()> {
    let cluster = TestCluster::builder().named("standins").image(root).up()?;
    cluster.wait_healthy(Duration::from_secs(120))?;
    eprintln!("{}: healthy {:.1}s after the first node's start", recipe.name, cluster.started.elapsed().as_secs_f64());
    let leader = cluster.leader()?;
    let streaming = cluster.streaming_from(&leader)?;
    ensure!(streaming.len() == 2 && !streaming.contains(&leader), "streaming from {leader}: {streaming:?}");
    let through = &cluster.others(&leader)[0];
    ensure!(cluster.ask(through, 5000, "SELECT pg_is_in_recovery()::text")? == "false", "5000 leads to a replica");
    cluster.session(through, 5000, async |session| {
        session
            .client
            .batch_execute("CREATE TABLE proof (n int); INSERT INTO proof SELECT generate_series(1, 1000)")
            .await?;
        Ok(())
    })?;
    for slot in &cluster.slots {
        cluster.wait_for("the rows on every node", Duration::from_secs(20), || {
            let rows = cluster.psql_in(slot, "orders", "SELECT count(*) FROM proof")?;
            ensure!(rows == "1000", "{slot} has {rows} rows");
            Ok(())
        })?;
    }
    let image = Image::load(&workspace::image(recipe.name))?;
    let said: serde_json::Value =
        serde_json::from_str(&cluster.output(&leader, &["cat", "/usr/lib/pgkiln/image.json"])?)?;
    let versions: BTreeMap<&str, Option<&str>> = (image.components.iter())
        .map(|(name, component)| {
            (name.as_str(), lock.package(&component.package.value).map(|one| one.version.as_str()))
        })
        .collect();
    for (name, version) in versions {
        let found = said["components"][name]["version"].as_str();
        ensure!(found == version, "image.json has {name} {found:?}, the lock {version:?}");
    }
    let release = cluster.output(&leader, &["sh", "-c", ". /etc/os-release && echo $ID $VERSION_CODENAME"])?;
    ensure!(release == format!("ubuntu {}", recipe.codename), "os-release: {release}");
    let etcd = cluster.output(&leader, &["systemctl", "show", "--property=ExecStart", "--value", "etcd"])?;
    ensure!(!etcd.contains("--config-file"), "etcd is deaf to its environment: {etcd}");
    Ok(())
}
