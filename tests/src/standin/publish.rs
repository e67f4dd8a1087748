//! Stand-ins as archives: pools, indexes, `Release` files and their signatures, laid out as the recipe's archives are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use pgkiln::cache::Cache;
use pgkiln::digest::Sha256;
use pgkiln::image::{Archive, Image};
use pgkiln::lock::{Locked, Package};
use pgkiln::unpack::deb::Deb;

use super::deb::{self, Fields};
use super::plan::{Place, Recipe, Standin, Vendor};
use super::relation::{self, Target};
use crate::keys::Keys;

/// Relations that must follow new names and versions.
const RELATIONS: [&str; 4] = ["Depends", "Pre-Depends", "Breaks", "Conflicts"];

/// What is served.
pub(super) struct Archives<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) image: &'a Image,
    pub(super) cache: &'a Cache,
    /// The directory that is served.
    pub(super) root: &'a Path,
    standins: Vec<Standin>,
    entries: BTreeMap<Place, String>,
}

/// How many packages of which kind were published.
#[derive(Debug, Default, Clone, serde::Serialize, serde::Deserialize)]
pub struct Count {
    /// As Debian has them.
    pub unchanged: usize,
    /// Under another name or version, or with other relations.
    pub relabelled: usize,
    /// Made of relations alone.
    pub empty: usize,
}

/// Where an archive lies below the served directory.
pub(super) fn place(recipe: &Recipe, archive: &Archive) -> PathBuf {
    match (archive.url.snapshot(), recipe.vendor) {
        (Some(time), _) => Path::new("ubuntu").join(time),
        (None, Vendor::Percona(repository)) => Path::new(repository).join("apt"),
        (None, Vendor::Pgdg) => "pub/repos/apt".into(),
    }
}

impl<'a> Archives<'a> {
    pub(super) fn new(recipe: &'a Recipe, image: &'a Image, cache: &'a Cache, root: &'a Path) -> Self {
        Self { recipe, image, cache, root, standins: recipe.standins(), entries: BTreeMap::new() }
    }

    /// Fills pools and writes signed indexes.
    pub(super) fn publish(mut self, material: &[&pgkiln::lock::Recipe<Locked>], keys: &Keys) -> anyhow::Result<Count> {
        let mut packages: BTreeMap<&str, &Package> = BTreeMap::new();
        // The first one wins: what is nearer was put in front.
        for package in material.iter().flat_map(|recipe| &recipe.lock().packages) {
            packages.entry(&package.name).or_insert(package);
        }
        let mut count = Count::default();
        let used: BTreeSet<String> = self.standins.iter().filter_map(|standin| standin.of.clone()).collect();
        for (name, package) in &packages {
            if !used.contains(*name) {
                self.unchanged(package, &packages, &mut count)?;
            }
        }
        let missing = |standin: &Standin| standin.of.as_ref().is_some_and(|of| !packages.contains_key(of.as_str()));
        self.standins.retain(|standin| !(standin.if_there && missing(standin)));
        for standin in self.standins.clone() {
            self.standin(&standin, &packages, &mut count)?;
        }
        for archive in &self.image.archives {
            for suite in &archive.suites {
                self.suite(archive, suite, keys)?;
            }
        }
        ensure!(self.entries.is_empty(), "no suite of the recipe has {:?}", self.entries.keys());
        Ok(count)
    }

    /// What a relation on `name` means for a package of this archive.
    fn target(&self, name: &str, archive: &str, packages: &BTreeMap<&str, &Package>) -> Option<Target> {
        let all = || self.standins.iter().filter(|standin| standin.of.as_deref() == Some(name));
        let standin = all().find(|standin| standin.place.archive == archive).or_else(|| all().next())?;
        let was = packages.get(name)?.version.clone();
        Some(Target { name: standin.name.clone(), version: standin.version.clone().unwrap_or(was.clone()), was })
    }

    fn follow(&self, fields: &mut Fields, archive: &str, packages: &BTreeMap<&str, &Package>) -> bool {
        let mut changed = false;
        for field in RELATIONS {
            let old = deb::get(fields, field).to_owned();
            let target = |name: &str| self.target(name, archive, packages);
            let new = match field {
                "Breaks" | "Conflicts" => relation::forgive(&old, &target),
                _ => relation::rewrite(&old, &target),
            };
            // Spaces do not count.
            if new.replace(' ', "") != old.replace(' ', "") {
                deb::set(fields, field, &new);
                changed = true;
            }
        }
        changed
    }

    fn unchanged(
        &mut self,
        package: &Package,
        packages: &BTreeMap<&str, &Package>,
        count: &mut Count,
    ) -> anyhow::Result<()> {
        let path = self.cache.cas_path(&package.sha256);
        let deb = Deb::open(&path, &package.sha256)?;
        let mut fields = deb::fields(&deb)?;
        let changed = self.follow(&mut fields, "ubuntu", packages);
        for place in self.recipe.unchanged(&package.name, package.archive.ends_with("security")) {
            if changed {
                let bytes = deb::relabel(&fs_err::read(&path)?, &deb, &fields, &deb::Change::default())?;
                self.enter(&place, &fields, |to| Ok(fs_err::write(to, &bytes)?))?;
            } else {
                self.enter(&place, &fields, |to| link(&path, to))?;
            }
        }
        *(if changed { &mut count.relabelled } else { &mut count.unchanged }) += 1;
        Ok(())
    }

    fn standin(
        &mut self,
        standin: &Standin,
        packages: &BTreeMap<&str, &Package>,
        count: &mut Count,
    ) -> anyhow::Result<()> {
        let Some(of) = &standin.of else {
            let version = standin.version.clone().unwrap_or_default();
            let mut fields: Fields = [
                ("Package", standin.name.as_str()),
                ("Version", &version),
                ("Architecture", "all"),
                ("Maintainer", "Tests <tests@example.org>"),
                ("Description", "stand-in without content"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
            change(&mut fields, standin);
            let bytes = deb::empty(&fields)?;
            count.empty += 1;
            return self.enter(&standin.place, &fields, |to| Ok(fs_err::write(to, &bytes)?));
        };
        let package = packages.get(of.as_str()).with_context(|| format!("Debian's `{of}` is not in the material"))?;
        let path = self.cache.cas_path(&package.sha256);
        let deb = Deb::open(&path, &package.sha256)?;
        let mut fields = deb::fields(&deb)?;
        self.follow(&mut fields, standin.place.archive, packages);
        // A changed name needs a source to be found by, and says where it is from.
        if deb::get(&fields, "Source").is_empty() {
            deb::set(&mut fields, "Source", of);
        }
        deb::set(&mut fields, "Package", &standin.name);
        if let Some(version) = &standin.version {
            deb::set(&mut fields, "Version", version);
        }
        change(&mut fields, standin);
        let bytes = deb::relabel(&fs_err::read(&path)?, &deb, &fields, &standin.change)?;
        count.relabelled += 1;
        self.enter(&standin.place, &fields, |to| Ok(fs_err::write(to, &bytes)?))
    }

    /// Puts a package into the pool and into its index.
    fn enter(
        &mut self,
        place: &Place,
        fields: &Fields,
        write: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let archive = self.image.archive(place.archive).with_context(|| format!("no archive `{}`", place.archive))?;
        let (name, version) = (deb::get(fields, "Package"), deb::get(fields, "Version"));
        let source = match deb::get(fields, "Source") {
            "" => name,
            source => source.split(' ').next().unwrap_or(name),
        };
        let prefix = if source.starts_with("lib") { &source[..source.len().min(4)] } else { &source[..1] };
        let plain = version.split_once(':').map_or(version, |(_, version)| version);
        let file = format!("{name}_{plain}_{}.deb", deb::get(fields, "Architecture"));
        let path = format!("pool/{}/{prefix}/{source}/{file}", place.component);
        let to = self.root.join(self::place(self.recipe, archive)).join(&path);
        fs_err::create_dir_all(to.parent().context("a pool has directories")?)?;
        if !to.exists() {
            write(&to)?;
        }
        let (sha256, size) = Sha256::of_file(&to)?;
        let index = self.entries.entry(place.clone()).or_default();
        writeln!(index, "{}Filename: {path}\nSize: {size}\nSHA256: {sha256}\n", deb::text(fields))?;
        Ok(())
    }

    fn suite(&mut self, archive: &Archive, suite: &str, keys: &Keys) -> anyhow::Result<()> {
        let dists = self.root.join(place(self.recipe, archive)).join("dists").join(suite);
        let (origin, label, key) = match (archive.url.snapshot(), self.recipe.vendor) {
            (Some(_), _) => ("Ubuntu", "Ubuntu", "ubuntu"),
            (None, Vendor::Percona(_)) => ("Percona Development Team", "percona", "vendor"),
            (None, Vendor::Pgdg) => ("apt.postgresql.org", "PostgreSQL for Debian/Ubuntu repository", "vendor"),
        };
        let codename = if key == "ubuntu" { self.recipe.codename } else { suite };
        let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S UTC");
        let components = archive.components.join(" ");
        let mut release = format!("Origin: {origin}\nLabel: {label}\nSuite: {suite}\n");
        write!(release, "Codename: {codename}\nDate: {date}\nArchitectures: amd64\nComponents: {components}\n")?;
        if key == "ubuntu" {
            write!(release, "Version: {}\nAcquire-By-Hash: yes\n", self.recipe.release)?;
        }
        release.push_str("SHA256:\n");
        for component in &archive.components {
            let of = self
                .entries
                .keys()
                .find(|place| place.archive == archive.id && place.suite == suite && place.component == component);
            let index = of.cloned().and_then(|place| self.entries.remove(&place)).unwrap_or_default().into_bytes();
            let mut packed = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
            packed.write_all(&index)?;
            let packed = packed.finish()?;
            for (name, content) in [("Packages", index), ("Packages.gz", packed)] {
                let dir = dists.join(component).join("binary-amd64");
                let sha256 = Sha256::of(&content);
                writeln!(release, " {sha256} {} {component}/binary-amd64/{name}", content.len())?;
                fs_err::create_dir_all(dir.join("by-hash/SHA256"))?;
                fs_err::write(dir.join("by-hash/SHA256").join(sha256.to_string()), &content)?;
                fs_err::write(dir.join(name), content)?;
            }
        }
        Ok(fs_err::write(dists.join("InRelease"), keys.clearsign(release, &[key], &[])?)?)
    }
}

/// Sets the stand-in's own fields; a name with `+` in front lengthens the field.
fn change(fields: &mut Fields, standin: &Standin) {
    for (name, value) in &standin.change.fields {
        match name.strip_prefix('+') {
            Some(name) => {
                let longer = format!("{}, {value}", deb::get(fields, name));
                deb::set(fields, name, &longer);
            }
            None => deb::set(fields, name, value),
        }
    }
}

/// The same file again, without its bytes where the file system allows.
fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    if fs_err::hard_link(from, to).is_err() {
        fs_err::copy(from, to)?;
    }
    Ok(())
}
