//! Everything one recipe needs, served on loopback, with the overlay that leads to it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgkiln::cache::Cache;
use pgkiln::digest::Sha256;
use pgkiln::image::Image;
use pgkiln::progress::Ui;

use super::material::{self, material};
use super::plan::Recipe;
use super::publish::{self, Archives, Count};
use crate::archive_server::Server;
use crate::keys::Keys;
use crate::workspace;

/// What whoever sees them must know.
pub const STATEMENT: &str = "\
These archives are stand-ins: Debian's packages under the names, versions and relations that Ubuntu, Percona and PGDG document,
signed by keys made for this test. They prove that the recipe and pgkiln fit together and that the result boots. They do not
prove that the real archives have these versions or these keys, nor how those packages behave: the programs are Debian's.";

/// The code that makes the archives: other code makes other ones.
const CODE: [&str; 8] = [
    include_str!("deb.rs"),
    include_str!("percona.rs"),
    include_str!("pgdg.rs"),
    include_str!("plan.rs"),
    include_str!("publish.rs"),
    include_str!("relation.rs"),
    include_str!("served.rs"),
    include_str!("ubuntu.rs"),
];

/// Stand-in archives of one recipe; they are served as long as this lives.
#[derive(Debug)]
pub struct Served {
    /// The overlay for `pgkiln lock|bake --overlay`.
    pub overlay: PathBuf,
    /// How many packages there are.
    pub count: Count,
    /// The server.
    pub server: Server,
    _work: tempfile::TempDir,
}

/// What is kept beside the archives.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Made {
    ubuntu: String,
    vendor: String,
    count: Count,
}

impl Served {
    /// Makes the archives of a recipe, or takes those of an earlier run, and serves them.
    pub fn start(recipe: &Recipe, cache: &Cache, ui: &Ui) -> anyhow::Result<Self> {
        let image = Image::load(&workspace::image(recipe.name))?;
        let nearer = recipe.nearer.map(|(of, _)| material(of, cache, ui)).transpose()?;
        let debian = material(recipe.material, cache, ui)?;
        let step = ui.step(format!("stand-ins for {}", recipe.name));
        let mut parts = vec![debian.lock().digest().to_string(), image.resolution_digest().to_string()];
        parts.extend(nearer.iter().map(|nearer| nearer.lock().digest().to_string()));
        parts.extend(CODE.map(|code| Sha256::of(code).to_string()));
        let kept = cache.root().join("standins").join(recipe.name);
        let place = kept.join(Sha256::of(parts.join("\n")).to_string());
        if !place.join("made.json").exists() {
            // Those of other code or other material are of no use any more.
            if kept.exists() {
                fs_err::remove_dir_all(&kept)?;
            }
            fs_err::create_dir_all(&kept)?;
            let making = tempfile::Builder::new().prefix(".making-").tempdir_in(&kept)?;
            let mut keys = Keys::new()?;
            for name in ["ubuntu", "vendor"] {
                keys.make(name, "ed25519", "never", &[])?;
                let exported = keys.export(&format!("{name}.gpg"), &[name])?;
                fs_err::copy(exported, making.path().join(format!("{name}.gpg")))?;
            }
            let root = making.path().join("served");
            let picked = nearer.as_ref().zip(recipe.nearer).map(|(from, (_, names))| material::only(from, names));
            let picked = picked.transpose()?;
            let sources: Vec<_> = picked.iter().chain([&debian]).collect();
            let count = Archives::new(recipe, &image, cache, &root).publish(&sources, &keys)?;
            let [ubuntu, vendor] = ["ubuntu", "vendor"].map(|name| keys.fingerprint(name).to_owned());
            fs_err::write(making.path().join("made.json"), serde_json::to_vec(&Made { ubuntu, vendor, count })?)?;
            fs_err::rename(making.keep(), &place)?;
        }
        let made: Made = serde_json::from_slice(&fs_err::read(place.join("made.json"))?)?;
        let server = Server::start(&place.join("served"))?;
        let work = tempfile::tempdir()?;
        let overlay = work.path().join("overlay.toml");
        fs_err::write(&overlay, overlay_text(recipe, &image, &made, &place, &server.url())?)?;
        let Count { unchanged, relabelled, empty } = made.count;
        step.done_with(format!(
            "{unchanged} packages as they are, {relabelled} under other labels, {empty} without content"
        ));
        Ok(Self { overlay, count: made.count, server, _work: work })
    }

    /// A directory that lives as long as the archives.
    pub fn work(&self) -> &Path {
        self._work.path()
    }
}

fn overlay_text(recipe: &Recipe, image: &Image, made: &Made, place: &Path, url: &str) -> anyhow::Result<String> {
    let mut text = format!("# {}\n\nschema = 1\n", STATEMENT.replace('\n', "\n# "));
    for archive in &image.archives {
        let at = publish::place(recipe, archive);
        let (key, fingerprint) = match archive.url.snapshot() {
            Some(_) => ("ubuntu", &made.ubuntu),
            None => ("vendor", &made.vendor),
        };
        let address = match archive.url.snapshot() {
            Some(_) => format!("snapshot-service = \"{url}/{}\"", at.parent().context("a place")?.display()),
            None => format!("url = \"{url}/{}\"", at.display()),
        };
        let key = place.join(format!("{key}.gpg"));
        writeln!(text, "\n[archives.{}]\n{address}", archive.id)?;
        writeln!(text, "key = \"{}\"\nfingerprints = [\"{fingerprint}\"]", key.display())?;
    }
    Ok(text)
}
