//! Debian's packages of one release, which stand in for others: locked and fetched by pgkiln itself, so they are what Debian
//! signed.

use anyhow::Context;
use pgkiln::cache::Cache;
use pgkiln::cli::lock::show;
use pgkiln::fetch;
use pgkiln::lock::resolve;
use pgkiln::lock::{Lock, Locked, Recipe};
use pgkiln::progress::Ui;

use crate::workspace;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Material {
    /// Its codename.
    pub suite: &'static str,
    /// Whose packages and keys it starts from.
    image: &'static str,
    /// Packages beyond that image's.
    more: &'static [&'static str],
    /// Major version of its PostgreSQL.
    major: u8,
    /// Packages of the image that the release has under another name.
    instead: &'static [(&'static str, &'static str)],
}

/// What `percona-patroni`, its siblings and the extensions need beyond Debian's own recipes.
const FOR_PERCONA: &[&str] = &[
    "pipexec",
    "python3-cdiff",
    "python3-kazoo",
    "python3-pysyncobj",
    "python3-requests",
    "python3-six",
    "python3-systemd",
];

/// Debian 13.
pub static TRIXIE: Material =
    Material { suite: "trixie", image: "debian-13", more: FOR_PERCONA, major: 17, instead: &[] };
/// Debian 12, whose package set is near Ubuntu 22.04's.
pub static BOOKWORM: Material =
    Material { suite: "bookworm", image: "debian-12", more: FOR_PERCONA, major: 15, instead: &[] };
/// Debian's next release: the one with PostgreSQL 18.
pub static FORKY: Material = Material {
    suite: "forky",
    image: "debian-13",
    more: FOR_PERCONA,
    major: 18,
    instead: &[("postgresql-17", "postgresql-18")],
};

/// Its packages, all of them in the cache: those of an earlier run if they can still be had, else today's.
pub fn material(of: &Material, cache: &Cache, ui: &Ui) -> anyhow::Result<Recipe<Locked>> {
    let name = format!("material-{}", of.suite);
    let work = tempfile::tempdir()?;
    let dir = work.path().join(&name);
    fs_err::create_dir_all(&dir)?;
    fs_err::write(dir.join("image.toml"), recipe(of, &name)?)?;
    let kept = cache.relock_path(&name);
    let step = ui.step(format!("Debian {}, the material", of.suite));
    let report = |event: fetch::Event<'_>| show(&step, &event);
    let earlier = Lock::load(&kept)?.and_then(|lock| Recipe::load(&dir).ok()?.with(lock).ok());
    if let Some(recipe) = earlier.filter(|recipe| fetch::fetch(&recipe.items(), cache, &report).is_ok()) {
        step.done_with(format!("{} packages", recipe.lock().packages.len()));
        return Ok(recipe);
    }
    let recipe = Recipe::load(&dir)?;
    let lock = resolve::resolve(recipe.image(), None, &[], cache, &report)?.lock;
    lock.write_if_changed(&kept)?;
    let recipe = recipe.with(lock)?;
    fetch::fetch(&recipe.items(), cache, &report)?;
    step.done_with(format!("{} packages, locked anew", recipe.lock().packages.len()));
    Ok(recipe)
}

/// The image's recipe under another name, with more packages; nothing of it is baked.
fn recipe(of: &Material, name: &str) -> anyhow::Result<String> {
    let text = fs_err::read_to_string(workspace::image(of.image).join("image.toml"))?;
    let mut recipe: toml::Table = text.parse()?;
    let base = recipe.get("suite").and_then(toml::Value::as_str).context("a recipe has a suite")?.to_owned();
    recipe.insert("name".into(), name.into());
    recipe.insert("suite".into(), of.suite.into());
    recipe.remove("trees");
    recipe.remove("extensions");
    let packages = recipe.get_mut("packages").and_then(toml::Value::as_array_mut).context("a recipe has packages")?;
    let extensions = ["pgaudit", "repack", "wal2json"].map(|name| format!("postgresql-{}-{name}", of.major));
    for package in of.more.iter().map(|name| (*name).to_owned()).chain(extensions) {
        if !packages.iter().any(|found| found.as_str() == Some(&package)) {
            packages.push(package.into());
        }
    }
    let archives = recipe.get_mut("archives").and_then(toml::Value::as_table_mut).context("a recipe has archives")?;
    if base != of.suite {
        // A release that is not out has neither updates nor security of its own worth the name.
        archives.retain(|id, _| id == "debian");
        for (_, archive) in archives.iter_mut() {
            archive.as_table_mut().context("an archive is a table")?.insert("suites".into(), vec![of.suite].into());
        }
    }
    let mut text = toml::to_string(&recipe)?;
    for (from, to) in of.instead {
        text = text.replace(&format!("\"{from}\""), &format!("\"{to}\""));
    }
    Ok(text)
}

/// The same with these packages only.
pub fn only(of: &Recipe<Locked>, names: &[&str]) -> anyhow::Result<Recipe<Locked>> {
    let mut lock = of.lock().clone();
    lock.packages.retain(|package| names.contains(&package.name.as_str()));
    of.clone().unlock().with(lock)
}
