//! A baked `pxe` set: the files, opened and checked once, so that what is served is what was baked even if the directory
//! changes meanwhile.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use crate::digest::Sha256;
use crate::problem::Problem;

const BAKE: &str = "make it with `pgkiln bake IMAGE --format pxe`";

/// Kernel, initrd and root of one version.
#[derive(Debug, Clone)]
pub struct Set {
    /// Image and version, as in the names of the files: the id in all addresses.
    pub id: String,
    /// In the order of the script: the kernel first.
    pub files: Vec<Content>,
    /// Command line of the kernel, without what iPXE adds.
    pub command_line: String,
}

/// One file.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its name.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256, from SHA256SUMS.
    pub sha256: String,
    /// The file.
    pub file: Arc<File>,
}

impl Set {
    /// All sets in a directory, each checked against `SHA256SUMS`.
    pub fn all(dir: &Path) -> anyhow::Result<Vec<Self>> {
        let place = || dir.display().to_string();
        let sums = fs_err::read_to_string(dir.join("SHA256SUMS"));
        let sums = sums.map_err(|error| Problem::new(format!("no SHA256SUMS: {}", error.kind()), place(), BAKE))?;
        // By the sums, not by what lies there: an earlier bake into the same directory leaves files that nothing vouches for.
        let scripts = sums.lines().filter_map(|line| line.split_once("  ")?.1.strip_suffix(".ipxe"));
        let mut names: Vec<&str> = scripts.filter(|name| !name.contains('/')).collect();
        names.sort_unstable();
        if names.is_empty() {
            return Err(Problem::new("there is no set to boot over the network here", place(), BAKE).into());
        }
        names.iter().map(|id| Self::read(dir, id, &sums)).collect()
    }

    fn read(dir: &Path, id: &str, sums: &str) -> anyhow::Result<Self> {
        let script = Content::open(dir, id, &format!("{id}.ipxe"), sums)?;
        let place = || dir.join(&script.name).display().to_string();
        let (files, command_line) = parse(&fs_err::read_to_string(dir.join(&script.name))?)
            .ok_or_else(|| Problem::new("not a script that this version reads", place(), BAKE))?;
        let files = files.iter().map(|name| Content::open(dir, id, name, sums)).collect::<anyhow::Result<_>>()?;
        Ok(Self { id: id.to_owned(), files, command_line })
    }
}

/// Names of kernel and initrds, and the command line, of the script that was baked.
fn parse(script: &str) -> Option<(Vec<String>, String)> {
    let mut words = script.lines().find_map(|line| line.strip_prefix("kernel "))?.split_whitespace();
    let mut files = vec![words.next()?.to_owned()];
    let line: Vec<&str> = words.filter(|word| !word.starts_with("initrd=") && !word.starts_with("${")).collect();
    files.extend(script.lines().filter_map(|line| Some(line.strip_prefix("initrd ")?.trim().to_owned())));
    (files.len() > 1).then(|| (files, line.join(" ")))
}

impl Content {
    fn open(dir: &Path, id: &str, name: &str, sums: &str) -> anyhow::Result<Self> {
        let path = dir.join(name);
        let wrong = |what: String, remedy: &str| Problem::new(what, path.display().to_string(), remedy);
        // One version id in everything: a set that was half copied over another must not be mixed.
        if !name.strip_prefix(id).is_some_and(|rest| rest.starts_with('.')) || name.contains('/') {
            return Err(wrong(format!("the file does not belong to `{id}`"), BAKE).into());
        }
        let listed = sums.lines().find_map(|line| line.split_once("  ").filter(|(_, listed)| *listed == name));
        let Some((sha256, _)) = listed else {
            return Err(wrong("SHA256SUMS does not list the file".to_owned(), BAKE).into());
        };
        let mut file = fs_err::File::open(&path)?.into_parts().0;
        let (found, bytes) = Sha256::of_reader(&mut file).with_context(|| format!("reading {}", path.display()))?;
        if found.to_string() != sha256 {
            let what = format!("the file has SHA-256 {found}, SHA256SUMS says {sha256}");
            return Err(wrong(what, "the set is damaged or half copied: copy it again").into());
        }
        Ok(Self { name: name.to_owned(), bytes, sha256: sha256.to_owned(), file: Arc::new(file) })
    }
}
