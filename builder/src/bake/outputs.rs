//! Where a bake's inputs come from and its outputs go.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Options;
use crate::cache::Cache;
use crate::cli::lock::show;
use crate::digest::Sha256;
use crate::fetch;
use crate::lock::{Locked, Recipe};
use crate::lock::{moved, relock};
use crate::manifest::Manifest;
use crate::progress::Step;
use crate::store::Store;
use crate::tool::{Cmd, table};

/// Has all packages of the recipes in the cache: from a store if one is given, else from the archives; with `relock` a lock the
/// archive no longer serves is resolved anew (then the second value is true).
pub(super) fn fetch<const N: usize>(
    recipes: [Recipe<Locked>; N],
    options: &Options,
    cache: &Cache,
    step: &Step<'_>,
) -> anyhow::Result<([Recipe<Locked>; N], bool)> {
    let mut relocked = false;
    let fetch = |recipe: Recipe<Locked>| {
        if let Some(store) = &options.from {
            Store::open(store)?.fetch(&recipe.items(), cache)?;
            return Ok(recipe);
        }
        if options.relock {
            let done = relock::fetch_or_relock(recipe, cache, &|event| show(step, &event))?;
            relocked |= done.relocked;
            return Ok(done.recipe);
        }
        let report = |event: fetch::Event<'_>| show(step, &event);
        fetch::fetch(&recipe.items(), cache, &report)
            .map_err(|error| moved::explain(error, &recipe, cache, &report))?;
        Ok(recipe)
    };
    let done = recipes.into_iter().map(fetch).collect::<anyhow::Result<Vec<_>>>()?;
    let done = done.try_into().map_err(|_| anyhow::anyhow!("as many results as recipes"))?;
    Ok((done, relocked))
}

/// Writes the manifest and moves everything to `out`. `SHA256SUMS` is removed first and comes back last: where it is, the
/// set is complete.
pub(super) fn publish(made: &Path, manifest: &Manifest<'_>, out: &Path) -> anyhow::Result<PathBuf> {
    fs_err::create_dir_all(out)?;
    let sums = out.join("SHA256SUMS");
    match fs_err::remove_file(&sums) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    fs_err::write(made.join("manifest.json"), &json)?;
    let mut text = String::new();
    for output in &manifest.outputs {
        place(&made.join(&output.name), &out.join(&output.name))?;
        let _ = writeln!(text, "{}  {}", output.sha256, output.name);
    }
    place(&made.join("manifest.json"), &out.join("manifest.json"))?;
    let _ = writeln!(text, "{}  manifest.json", Sha256::of(&json));
    fs_err::write(made.join("SHA256SUMS"), text)?;
    place(&made.join("SHA256SUMS"), &sums)?;
    Ok(fs_err::canonicalize(out)?)
}

/// Renames, or copies beside the target and renames where the two lie on different file systems.
fn place(from: &Path, to: &Path) -> anyhow::Result<()> {
    match fs_err::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            let partial = to.with_file_name(format!(".{}.partial", to.file_name().context("path")?.display()));
            // A disk is mostly holes; written out, each would take several times what it has in it.
            Cmd::new(&table::CP).arg("--sparse=always").arg(from).arg(&partial).run()?;
            fs_err::rename(&partial, to)?;
            Ok(())
        }
        other => Ok(other?),
    }
}
