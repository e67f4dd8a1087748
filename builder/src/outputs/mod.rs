//! The files a bake leaves behind: one module per format, all of them from the same disk.
//!
//! To add a format: a variant of [`Format`], its name in [`Format::name`], a module, a line in [`make`], and its name in the list of
//! what recipes may say (`image/parse.rs`).

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::digest::Sha256;
use crate::disk::Disk;
use crate::manifest::Output;

mod raw;

/// A kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// The root image alone, for the lab; always made.
    Tree,
    /// A whole disk, byte for byte, sparse.
    Raw,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Tree, Self::Raw];

    /// As recipes and the manifest call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Raw => "raw",
        }
    }

    /// Whether it takes a bootable disk.
    pub fn needs_disk(self) -> bool {
        self != Self::Tree
    }

    /// Reads a recipe's `outputs`; the recipe's check has refused unknown ones, what is left is not built yet.
    pub fn of_recipe(names: &[String]) -> anyhow::Result<Vec<Self>> {
        let find = |name: &String| Self::ALL.into_iter().find(|format| format.name() == name);
        names
            .iter()
            .map(|name| find(name).with_context(|| format!("output `{name}` is not built by this pgkiln")))
            .collect()
    }
}

/// What the outputs are made from.
pub struct Inputs<'a> {
    /// Name of the image: file names begin with it.
    pub name: &'a str,
    /// The root image, already in [`Inputs::dir`].
    pub root: &'a Path,
    /// The disk, if a format needs one.
    pub disk: Option<&'a Disk>,
    /// Where the files go.
    pub dir: &'a Path,
}

impl Inputs<'_> {
    /// Path of an output.
    fn path(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }
}

/// Makes the formats and describes every file, the root image first.
pub fn make(formats: &[Format], inputs: &Inputs<'_>) -> anyhow::Result<Vec<Output>> {
    let mut outputs = vec![describe(inputs.root, "squashfs")?];
    let mut formats = formats.to_vec();
    formats.sort();
    formats.dedup();
    for format in formats.into_iter().filter(|format| format.needs_disk()) {
        let disk = inputs.disk.context("a format that needs a disk has one")?;
        let files = match format {
            Format::Tree => Vec::new(),
            Format::Raw => raw::make(inputs, disk)?,
        };
        for file in files {
            outputs.push(describe(&file, format.name())?);
        }
    }
    Ok(outputs)
}

/// Name, size and digest of an output.
fn describe(path: &Path, format: &'static str) -> anyhow::Result<Output> {
    let (sha256, bytes) = Sha256::of_file(path)?;
    let name = path.file_name().context("output without a name")?.to_string_lossy().into_owned();
    Ok(Output { name, format, bytes, sha256 })
}
