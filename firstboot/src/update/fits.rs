//! Whether the data here fits an image: PostgreSQL's major and catalog version, and the collations its indexes are sorted by.
//!
//! The data marker beside PostgreSQL's directories says what the data was last used with. It is written when the node is
//! good, and compared twice: before another image is written to the other slot, and at every boot before anything is started.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::image_info::{ImageInfo, upstream};
use crate::layout::Layout;
use crate::problem::Problem;
use crate::roll::Wish;
use crate::sql;

/// A question to the server here.
const ASK: Duration = Duration::from_secs(10);
/// Indexes that are named in a refusal.
const NAMED: usize = 20;

/// What PostgreSQL's data was last used with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Version of the format.
    pub schema: u32,
    /// PostgreSQL's major version.
    pub postgresql: u32,
    /// PostgreSQL's catalog version, as in `pg_control`.
    pub catalog: Option<u32>,
    /// Upstream version of the C library: its collations may change with it.
    pub glibc: Option<String>,
    /// Upstream version of ICU likewise.
    pub icu: Option<String>,
    /// Versions that an operator has accepted beside these (`firstboot update --allow-collation-change`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepted: Vec<Acceptance>,
}

/// What an operator has accepted, and for which version of the image: a later one is another question, because by then there
/// may be indexes that were not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    /// What sorts in it.
    #[serde(flatten)]
    pub collations: Collations,
    /// Version of the image. `None`: written by an agent that did not record it, for the image it then wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl Acceptance {
    fn is_for(&self, image: &ImageInfo) -> bool {
        self.version.as_ref().is_none_or(|version| *version == image.version)
    }
}

/// Versions of what sorts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collations {
    /// Of the C library.
    pub glibc: Option<String>,
    /// Of ICU.
    pub icu: Option<String>,
}

impl Collations {
    /// Of an image. Corrections within one upstream version never touch collations.
    pub fn of(image: &ImageInfo) -> Self {
        let text = |version: &Option<String>| {
            let (major, minor, _) = upstream(version.as_ref()?);
            Some(format!("{major}.{minor}"))
        };
        Self { glibc: text(&image.glibc), icu: text(&image.icu) }
    }
}

/// Where the marker is: with the data, which may be on a disk of its own.
pub fn marker(layout: &Layout) -> PathBuf {
    layout.at("/var/lib/postgresql/pgkiln-data.json")
}

/// Writes the marker if it says something else: this image serves this data.
pub fn record(layout: &Layout, image: &ImageInfo) -> Result<()> {
    let postgresql = image.postgresql_major()?;
    let Some(catalog) = catalog(&layout.pgdata(postgresql)) else { return Ok(()) };
    let Collations { glibc, icu } = Collations::of(image);
    let now = Marker { schema: 1, postgresql, catalog: Some(catalog), glibc, icu, accepted: Vec::new() };
    match durable::read_json::<Marker>(&marker(layout))? {
        Some(before) if Marker { accepted: Vec::new(), ..before.clone() } == now => Ok(()),
        _ => durable::write_json(&marker(layout), &now, 0o644),
    }
}

/// Remembers that an operator accepts the image's collations for this data, until data was used with other ones.
pub fn accept(layout: &Layout, image: &ImageInfo) -> Result<()> {
    let Some(mut present) = durable::read_json::<Marker>(&marker(layout))? else { return Ok(()) };
    let new = Acceptance { collations: Collations::of(image), version: Some(image.version.clone()) };
    if !present.accepted.contains(&new) {
        present.accepted.push(new);
        durable::write_json(&marker(layout), &present, 0o644)?;
    }
    Ok(())
}

/// Catalog version of a data directory: bytes 12 to 15 of `global/pg_control`.
pub fn catalog(pgdata: &Path) -> Option<u32> {
    let bytes = fs::read(pgdata.join("global/pg_control")).ok()?;
    Some(u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?))
}

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// The server could not read the data.
    Server(Problem),
    /// Indexes may be sorted differently from now on.
    Collation(Problem),
}

impl From<Misfit> for Problem {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Server(problem) | Misfit::Collation(problem) => problem,
        }
    }
}

/// Compares the data here with the image that runs; what was accepted for it, counts.
pub fn check(layout: &Layout, image: &ImageInfo, catalog_version: Option<u32>) -> Result<Result<(), Misfit>> {
    compare(layout, image, catalog_version, |accepted| accepted.is_for(image))
}

/// Compares the data here with an image that is to run, whose PostgreSQL has `catalog_version`, if that is known. Nothing that was
/// accepted counts: an update that came to nothing may be long ago.
pub fn check_anew(layout: &Layout, image: &ImageInfo, catalog_version: Option<u32>) -> Result<Result<(), Misfit>> {
    compare(layout, image, catalog_version, |_| false)
}

fn compare(
    layout: &Layout,
    image: &ImageInfo,
    catalog_version: Option<u32>,
    counts: impl Fn(&Acceptance) -> bool,
) -> Result<Result<(), Misfit>> {
    let place = marker(layout).display().to_string();
    let wanted = image.postgresql_major()?;
    let keep = "nothing was changed. Keep the present image; another major version takes a new cluster, filled by logical \
                replication or from a dump";
    let server = |what: String, place: &str| Ok(Err(Misfit::Server(Problem::new(what, place, keep))));
    for major in majors(layout) {
        let dir = layout.pgdata(major);
        if major != wanted {
            let what = format!("the data here is PostgreSQL {major}'s, the image has PostgreSQL {wanted}");
            return server(what, &dir.display().to_string());
        }
        let (data, image) = (catalog(&dir), catalog_version);
        if let (Some(data), Some(image)) = (data, image)
            && data != image
        {
            let what = format!("the data here has PostgreSQL's catalog version {data}, the image's server {image}");
            return server(what, &dir.display().to_string());
        }
    }
    let Some(marker) = durable::read_json::<Marker>(&marker(layout))? else { return Ok(Ok(())) };
    let new = Collations::of(image);
    let used = Collations { glibc: marker.glibc, icu: marker.icu };
    let accepted = marker.accepted.iter().filter(|accepted| counts(accepted)).map(|accepted| &accepted.collations);
    let mut known = std::iter::once(&used).chain(accepted);
    if catalog(&layout.pgdata(marker.postgresql)).is_none() || known.any(|known| known.covers(&new)) {
        return Ok(Ok(()));
    }
    let what = format!("collations may change under the data here: it was used with {used}, the image has {new}");
    let remedy = "with `firstboot update --allow-collation-change` it is taken all the same; afterwards rebuild the indexes that \
                  depend on them, on the primary, and run ALTER DATABASE … REFRESH COLLATION VERSION";
    Ok(Err(Misfit::Collation(Problem::new(what, place, remedy))))
}

/// What this node's entry in the registry says of its data.
pub fn published(image: &ImageInfo) -> Option<Collations> {
    Some(Collations::of(image)).filter(|known| known.glibc.is_some() || known.icu.is_some())
}

/// Whether the cluster's data, which Patroni is about to copy to this node, was sorted as this image sorts. `nodes`: what others
/// publish, by slot; `leader`: the one that leads, whose data is copied. Without a leader it may be anybody's.
pub fn check_copy(
    image: &ImageInfo,
    nodes: &BTreeMap<String, Collations>,
    leader: Option<&str>,
    wish: Option<&Wish>,
) -> Result<(), Misfit> {
    let new = Collations::of(image);
    let copied = |slot: &String| leader.is_none_or(|leader| leader == slot);
    let other = nodes.iter().find(|(slot, theirs)| copied(slot) && !theirs.covers(&new));
    let Some((slot, theirs)) = other else { return Ok(()) };
    // The operator has said of this version that it may sort differently.
    if wish.is_some_and(|wish| wish.collations && wish.version == image.version) {
        return Ok(());
    }
    let what = format!(
        "collations would change under the data that this node is to copy: {slot} uses it with {theirs}, the image here has {new}"
    );
    let remedy = "PostgreSQL was not started here. Give this node an image with those versions, or give the whole cluster this \
                  one: `firstboot update SET --cluster --allow-collation-change` on a node that runs; afterwards rebuild the \
                  indexes that depend on them";
    Err(Misfit::Collation(Problem::new(what, slot.clone(), remedy)))
}

/// `glibc 2.41 and ICU 76.1`.
impl fmt::Display for Collations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
        write!(f, "glibc {} and ICU {}", or_none(&self.glibc), or_none(&self.icu))
    }
}

impl Collations {
    /// What is unknown on either side says nothing.
    fn covers(&self, new: &Self) -> bool {
        let same = |old: &Option<String>, new: &Option<String>| old.is_none() || new.is_none() || old == new;
        same(&self.glibc, &new.glibc) && same(&self.icu, &new.icu)
    }
}

/// Major versions whose data is here.
fn majors(layout: &Layout) -> Vec<u32> {
    let Ok(found) = fs::read_dir(layout.at("/var/lib/postgresql")) else { return Vec::new() };
    let numbers = found.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut majors: Vec<u32> = numbers.filter(|major| catalog(&layout.pgdata(*major)).is_some()).collect();
    majors.sort_unstable();
    majors
}

/// Databases of the server here.
const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1";

/// Indexes of a database that are sorted by a collation of the C library or of ICU, as `REINDEX` statements.
const INDEXES: &str = "SELECT DISTINCT format('REINDEX INDEX CONCURRENTLY %s;', i.indexrelid::regclass) FROM pg_index i \
     CROSS JOIN LATERAL unnest(i.indcollation::oid[]) used(id) JOIN pg_collation c ON c.oid = used.id \
     JOIN pg_database d ON d.datname = current_database() \
     WHERE CASE c.collprovider WHEN 'd' THEN d.datlocprovider IN ('c', 'i') AND \
     (d.datlocprovider = 'i' OR d.datcollate NOT IN ('C', 'POSIX', 'C.UTF-8')) \
     WHEN 'i' THEN true WHEN 'c' THEN c.collname NOT IN ('C', 'POSIX') ELSE false END ORDER BY 1";

/// What must be rebuilt when collations change, by database; an error where the server does not answer.
pub async fn reindex() -> Result<Vec<String>> {
    let mut statements = Vec::new();
    for database in sql::ask(DATABASES, ASK).await?.lines() {
        let found = sql::ask_in(database, INDEXES, ASK).await?;
        if !found.is_empty() {
            statements.push(format!("\\connect {database}"));
            statements.extend(found.lines().map(str::to_owned));
        }
    }
    Ok(statements)
}

/// A refusal with the list of what depends on collations; without any such index there is nothing to refuse.
pub async fn with_indexes(problem: Problem) -> Option<Problem> {
    match reindex().await {
        Ok(statements) if statements.is_empty() => None,
        Ok(statements) => {
            let more = statements.len().saturating_sub(NAMED);
            let list: Vec<&str> = statements.iter().take(NAMED).map(String::as_str).collect();
            let more = if more > 0 { format!("\n  … and {more} more") } else { String::new() };
            let remedy = format!("{}:\n  {}{more}", problem.remedy, list.join("\n  "));
            Some(Problem { remedy, ..problem })
        }
        Err(error) => Some(Problem { what: format!("{} (which indexes: {error:#})", problem.what), ..problem }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(catalog: u32) -> (tempfile::TempDir, Layout, ImageInfo) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let global = layout.pgdata(17).join("global");
        fs::create_dir_all(&global).unwrap();
        let control = [&7_u64.to_ne_bytes()[..], &1700_u32.to_ne_bytes(), &catalog.to_ne_bytes()].concat();
        fs::write(global.join("pg_control"), control).unwrap();
        let image: ImageInfo = serde_json::from_str(crate::fixtures::IMAGE).unwrap();
        (dir, layout, image)
    }

    #[test]
    fn data_of_another_server_is_refused_with_and_without_a_marker() {
        let (_dir, layout, image) = node(202406281);
        let mut other = image.clone();
        other.components.get_mut("postgresql").unwrap().version = "18.1-1".into();
        for marked in [false, true] {
            assert_eq!(check(&layout, &image, Some(202406281)).unwrap(), Ok(()), "{marked}");
            assert_eq!(check(&layout, &image, None).unwrap(), Ok(()));
            let Err(Misfit::Server(problem)) = check(&layout, &image, Some(202506281)).unwrap() else { panic!() };
            assert!(problem.what.contains("202406281") && problem.what.contains("202506281"), "{problem}");
            let Err(Misfit::Server(problem)) = check(&layout, &other, None).unwrap() else { panic!() };
            assert!(problem.what.contains("PostgreSQL 17's") && problem.what.contains("PostgreSQL 18"), "{problem}");
            record(&layout, &image).unwrap();
        }
    }

    #[test]
    fn another_glibc_or_icu_is_refused_until_it_is_accepted() {
        let (_dir, layout, mut image) = node(1);
        (image.glibc, image.icu) = (Some("2.41-12".into()), Some("76.1-4".into()));
        record(&layout, &image).unwrap();
        let fits = |glibc: &str, icu: &str| {
            let image = ImageInfo { glibc: Some(glibc.into()), icu: Some(icu.into()), ..image.clone() };
            (check(&layout, &image, None).unwrap(), image)
        };
        assert!(fits("2.41-12+deb13u1", "76.1-4").0.is_ok(), "a correction is none of a collation's");
        for (glibc, icu) in [("2.42-1", "76.1-4"), ("2.41-12", "78.1-1")] {
            let (refused, new) = fits(glibc, icu);
            assert!(matches!(refused, Err(Misfit::Collation(_))), "{refused:?}");
            accept(&layout, &new).unwrap();
            assert!(fits(glibc, icu).0.is_ok());
        }
        // For that version alone, and no update is spared the question.
        let (_, new) = fits("2.42-1", "76.1-4");
        let later = ImageInfo { version: "20270101.00000001".into(), ..new.clone() };
        assert!(check(&layout, &later, None).unwrap().is_err() && check_anew(&layout, &new, None).unwrap().is_err());
        // Used with it, it is what counts from now on.
        let (_, new) = fits("2.42-1", "76.1-4");
        record(&layout, &new).unwrap();
        assert!(fits("2.42-1", "76.1-4").0.is_ok() && fits("2.41-12", "76.1-4").0.is_err());
    }

    #[test]
    fn what_an_older_agent_accepted_lets_the_image_boot_that_it_wrote() {
        let (_dir, layout, mut image) = node(1);
        image.glibc = Some("2.42-1".into());
        let old = r#"{"schema": 1, "postgresql": 17, "catalog": 1, "glibc": "2.41", "icu": null,
                      "accepted": [{"glibc": "2.42", "icu": null}]}"#;
        fs::write(marker(&layout), old).unwrap();
        assert!(check(&layout, &image, None).unwrap().is_ok() && check_anew(&layout, &image, None).unwrap().is_err());
        accept(&layout, &image).unwrap();
        let kept: Marker = durable::read_json(&marker(&layout)).unwrap().unwrap();
        assert_eq!(
            kept.accepted.iter().map(|one| one.version.as_deref()).collect::<Vec<_>>(),
            [None, Some(image.version.as_str())]
        );
    }

    #[test]
    fn data_is_copied_only_to_an_image_that_sorts_like_its_leader() {
        let mut image: ImageInfo = serde_json::from_str(crate::fixtures::IMAGE).unwrap();
        image.glibc = Some("2.42-1".into());
        let of = |glibc: &str| Collations { glibc: Some(glibc.into()), icu: None };
        let nodes = |all: [(&str, &str); 2]| BTreeMap::from(all.map(|(slot, glibc)| (slot.to_owned(), of(glibc))));
        let rolling = nodes([("pg-1", "2.41"), ("pg-2", "2.42")]);
        let check = |leader, wish| check_copy(&image, &rolling, leader, wish);
        let Err(Misfit::Collation(problem)) = check(Some("pg-1"), None) else { panic!() };
        assert!(problem.what.contains("pg-1 uses it with glibc 2.41") && problem.what.contains("2.42"), "{problem}");
        assert!(check(Some("pg-2"), None).is_ok(), "the leader sorts as this image does");
        assert!(check(None, None).is_err(), "anybody's data may be copied");
        assert!(check(Some("pg-3"), None).is_ok(), "an agent that publishes nothing");
        assert!(check_copy(&image, &BTreeMap::new(), None, None).is_ok(), "the first node of all");
        let wish = |version: &str, collations| Wish {
            schema: 1,
            version: version.into(),
            source: "/set".into(),
            sums_sha256: String::new(),
            older: false,
            collations,
            by: "pg-1".into(),
            since: String::new(),
        };
        let (this, another, without) = (wish(&image.version, true), wish("another", true), wish(&image.version, false));
        assert!(check(Some("pg-1"), Some(&this)).is_ok(), "the operator allowed it for this version");
        assert!(check(Some("pg-1"), Some(&another)).is_err() && check(Some("pg-1"), Some(&without)).is_err());
    }
}
