//! The files a bake leaves behind: one module per format, all of them from the same disk.
//!
//! Every format is byte-stable: what a tool stamps with the time or a random number is written by us instead.
//!
//! To add a format: a variant of [`Format`] with its line in [`Format::ALL`] and [`Format::name`], a module, a line in [`make`],
//! and its name in the list of what recipes may say (`image/parse.rs`).

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::digest::Sha256;
use crate::disk::{Disk, partitions};
use crate::manifest::{Output, Partition};
use crate::problem::Problem;
use crate::sandbox::Sandbox;

mod gce;
mod holes;
pub mod image_file;
pub(crate) mod iso;
mod ova;
mod pxe;
mod qemu_img;
mod update;
mod vhd;
mod vmdk;

/// A kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// The root image alone, for the lab; always made.
    Tree,
    /// A whole disk, byte for byte, sparse.
    Raw,
    /// The same for drives that say they have sectors of 4096 bytes ("4Kn").
    Raw4k,
    /// For QEMU, Proxmox, OpenStack.
    Qcow2,
    /// For Azure: fixed size.
    Vhd,
    /// For vSphere: stream-optimised.
    Vmdk,
    /// The same as an appliance.
    Ova,
    /// For Google Compute Engine.
    Gce,
    /// What a running node puts into its other slot: UKI, root, hash tree.
    Update,
    /// To be booted over a network: kernel, initrd, the image as one file, iPXE script.
    Pxe,
    /// Installs the image to a machine's disk: for CD drives and sticks.
    Iso,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::Tree,
        Self::Raw,
        Self::Raw4k,
        Self::Qcow2,
        Self::Vhd,
        Self::Vmdk,
        Self::Ova,
        Self::Gce,
        Self::Update,
        Self::Pxe,
        Self::Iso,
    ];

    /// As recipes, the command line and the manifest call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Raw => "raw",
            Self::Raw4k => "raw-4k",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
            Self::Vmdk => "vmdk",
            Self::Ova => "ova",
            Self::Gce => "gce",
            Self::Update => "update",
            Self::Pxe => "pxe",
            Self::Iso => "iso",
        }
    }

    /// Whether it takes a bootable disk.
    pub fn needs_disk(self) -> bool {
        self != Self::Tree
    }

    /// Reads a recipe's `outputs`; its check has refused unknown ones, what is left is not built yet.
    pub fn of_recipe(names: &[String]) -> Result<Vec<Self>, Problem> {
        let find = |name: &String| {
            let found = Self::ALL.into_iter().find(|format| format.name() == name);
            let known = || Self::ALL.map(Self::name).join(", ");
            found.ok_or_else(|| {
                let what = format!("the output `{name}` is not built by this pgkiln");
                Problem::new(what, "`outputs` of the recipe", format!("leave it out; built are: {}", known()))
            })
        };
        names.iter().map(find).collect()
    }
}

/// What the outputs are made from.
pub struct Inputs<'a> {
    /// Name of the image: file names begin with it.
    pub name: String,
    /// Its version.
    pub version: &'a str,
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: u64,
    /// The root image, already in [`Inputs::dir`].
    pub root: &'a Path,
    /// The disk, if a format needs one.
    pub disk: Option<&'a Disk>,
    /// The tool tree.
    pub tools: &'a Path,
    /// Where the files go.
    pub dir: &'a Path,
}

impl Inputs<'_> {
    /// Path of an output.
    fn path(&self, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", self.name))
    }

    /// Path of an output whose name has the version in it.
    fn versioned(&self, rest: &str) -> PathBuf {
        self.dir.join(format!("{}_{}.{rest}", self.name, self.version))
    }

    /// A digest that follows from the image's version, for identifiers that must not be random.
    fn digest(&self, what: &str) -> Sha256 {
        Sha256::of(format!("pgkiln:{}:{}:{what}", self.name, self.version))
    }

    /// A sandbox of the tool tree with the disk's directory at `/mnt` and the outputs' at `/srv`.
    fn tools(&self, disk: &Disk) -> anyhow::Result<Sandbox> {
        let from = disk.raw.parent().context("path of the disk")?;
        Ok(Sandbox::new(self.tools, self.epoch).bind(from, "mnt", true).bind(self.dir, "srv", false))
    }
}

/// What was made, as the manifest says it.
#[derive(Debug)]
pub struct Made {
    /// Every file, the root image first.
    pub files: Vec<Output>,
    /// What is where on the disk.
    pub partitions: Vec<Partition>,
}

/// Makes the formats and describes what came of it. Most of the time goes into digests, so what is there already is read beside.
pub fn make(formats: &[Format], inputs: &Inputs<'_>) -> anyhow::Result<Made> {
    std::thread::scope(|scope| {
        let given = scope.spawn(|| {
            let root = describe(inputs.root, "squashfs")?;
            let partitions = inputs.disk.map(|disk| partitions::describe(&disk.raw)).transpose()?;
            anyhow::Ok((root, partitions.unwrap_or_default()))
        });
        let made = files(formats, inputs)?;
        let (root, partitions) = given.join().map_err(|_| anyhow::anyhow!("reading the disk broke off"))??;
        Ok(Made { files: std::iter::once(root).chain(made).collect(), partitions })
    })
}

fn files(formats: &[Format], inputs: &Inputs<'_>) -> anyhow::Result<Vec<Output>> {
    let mut outputs = Vec::new();
    let mut formats = formats.to_vec();
    formats.sort();
    formats.dedup();
    for format in formats.into_iter().filter(|format| format.needs_disk()) {
        let disk = inputs.disk.context("a format that needs a disk has one")?;
        let made = match format {
            Format::Tree => Ok(Vec::new()),
            Format::Raw => raw(&disk.raw, inputs.path("raw")),
            Format::Raw4k => raw(disk.raw_4k.as_deref().context("it was made")?, inputs.path("4k.raw")),
            Format::Qcow2 => qemu_img::qcow2(inputs, disk),
            Format::Vhd => vhd::make(inputs, disk),
            Format::Vmdk => vmdk::make(inputs, disk).map(|file| vec![file]),
            Format::Ova => ova::make(inputs, disk),
            Format::Gce => gce::make(inputs, disk),
            Format::Update => update::make(inputs, disk),
            Format::Pxe => pxe::make(inputs, disk),
            Format::Iso => iso::make(inputs, disk),
        };
        for file in made.with_context(|| format!("making the output `{}`", format.name()))? {
            outputs.push(describe(&file, format.name())?);
        }
    }
    Ok(outputs)
}

/// The disk as it is: a second name, because other formats are made from the first.
fn raw(disk: &Path, path: PathBuf) -> anyhow::Result<Vec<PathBuf>> {
    fs_err::hard_link(disk, &path)?;
    Ok(vec![path])
}

/// Name, size and digest of an output.
fn describe(path: &Path, format: &'static str) -> anyhow::Result<Output> {
    let (sha256, bytes) = Sha256::of_file(path)?;
    let name = path.file_name().context("output without a name")?.to_string_lossy().into_owned();
    Ok(Output { name, format, bytes, sha256 })
}
