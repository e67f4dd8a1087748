//! Where a bake's inputs come from and its outputs go.

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
use crate::signature;
use crate::store::Store;
use crate::tool::{Cmd, table};
use crate::verify;

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
/// set is complete. What an earlier version left there goes: beside the new sums it would pass for the new version's.
pub(super) fn publish(made: &Path, manifest: &Manifest<'_>, out: &Path) -> anyhow::Result<PathBuf> {
    fs_err::create_dir_all(out)?;
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    let lines = manifest.outputs.iter().map(|output| format!("{}  {}\n", output.sha256, output.name));
    let text = lines.collect::<String>() + &format!("{}  manifest.json\n", Sha256::of(&json));
    let sums = out.join(verify::SUMS);
    let stale = stale(out, manifest.version);
    // The same bake again is what was signed.
    if fs_err::read_to_string(&sums).ok().as_ref() != Some(&text) {
        remove(&out.join(signature::FILE))?;
    }
    remove(&sums)?;
    for name in stale {
        remove(&out.join(name))?;
    }
    fs_err::write(made.join("manifest.json"), &json)?;
    for output in &manifest.outputs {
        place(&made.join(&output.name), &out.join(&output.name))?;
    }
    place(&made.join("manifest.json"), &out.join("manifest.json"))?;
    fs_err::write(made.join(verify::SUMS), text)?;
    place(&made.join(verify::SUMS), &sums)?;
    Ok(fs_err::canonicalize(out)?)
}

/// Outputs of another version that a bake has left there.
fn stale(out: &Path, version: &str) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Before {
        version: String,
        outputs: Vec<Named>,
    }
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
    }
    let text = fs_err::read(out.join("manifest.json")).unwrap_or_default();
    let before: Option<Before> = serde_json::from_slice(&text).ok();
    let others = before.filter(|before| before.version != version).into_iter().flat_map(|before| before.outputs);
    others.map(|one| one.name).filter(|name| !name.contains('/')).collect()
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_left_is_stale_and_nothing_else() {
        let out = tempfile::tempdir().unwrap();
        assert!(stale(out.path(), "2").is_empty());
        let manifest = r#"{"version": "1", "outputs": [{"name": "x.qcow2"}, {"name": "../x"}]}"#;
        fs_err::write(out.path().join("manifest.json"), manifest).unwrap();
        assert_eq!(stale(out.path(), "2"), ["x.qcow2"]);
        assert!(stale(out.path(), "1").is_empty(), "another format of the same version");
    }
}
