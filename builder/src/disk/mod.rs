//! The bootable disk: hash tree, initrd, unified kernel image (UKI), partitions.
//!
//! `root image -> hash tree -> UKI (command line has the root hash) -> EFI system partition -> GPT`: each is decided by the one
//! before it, so the root hash in the UKI stands for every byte of the root, and a signature of the UKI for all of them. The
//! identifiers of the partitions follow from the root hash (systemd's rule), all others from the image's version, and what
//! writes bytes is a program of the tool tree or code of ours; so the same inputs give the same disk.
//!
//! The disk as it is shipped has slot A only. Slot B and `/var` are made at first boot from `/usr/lib/repart.d` of the image.

use std::path::{Path, PathBuf};

use anyhow::Context;
use secure_boot::Keys;
use uuid::Uuid;

use crate::assemble::agent::Programs;
use crate::cache::Cache;
use crate::digest::Sha256;
use crate::image::Image;
use crate::outputs::{self, Format};
use crate::sandbox::Sandbox;

pub mod boot;
pub(crate) mod cpio;
mod esp;
pub mod gpt;
pub mod head;
mod initrd;
mod installer;
mod kernel;
mod modules;
pub mod partitions;
pub mod secure_boot;
mod uki;
pub mod verity;

/// The code that decides a disk's bytes. With the definitions of its partitions it is part of an image's version: two builders that make another disk of the same
/// packages must not call both the same, or a node would take the other one for what it already has.
const CODE: [&str; 14] = [
    include_str!("boot.rs"),
    include_str!("cpio.rs"),
    include_str!("esp.rs"),
    include_str!("gpt.rs"),
    include_str!("head.rs"),
    include_str!("initrd.rs"),
    include_str!("installer.rs"),
    include_str!("kernel.rs"),
    include_str!("mod.rs"),
    include_str!("modules.rs"),
    include_str!("partitions.rs"),
    include_str!("uki.rs"),
    include_str!("verity.rs"),
    include_str!("../sparse.rs"),
];

/// Digest of what decides an image's disk beside its content.
pub fn code(image: &Image) -> anyhow::Result<Sha256> {
    let code = CODE.map(|part| Sha256::of(part).to_string()).join("\n");
    Ok(Sha256::of(format!("{code}\n{}", partitions::digest(image)?)))
}

/// What a disk is made of.
pub struct Inputs<'a> {
    /// The recipe.
    pub image: &'a Image,
    /// Version of the image.
    pub version: &'a str,
    /// The read-only root image.
    pub root: &'a Path,
    /// The tree with the kernel, its modules and `os-release`.
    pub tree: &'a Path,
    /// The tool tree.
    pub tools: &'a Path,
    /// Who signs for Secure Boot, if anybody.
    pub keys: Option<&'a Keys>,
    /// An empty directory on the file system of the outputs.
    pub dir: &'a Path,
    /// Where what took long is kept.
    pub cache: &'a Cache,
    /// Nothing that was made before is used.
    pub fresh: bool,
}

impl<'a> Inputs<'a> {
    /// What the outputs are made from, once there is a disk (or none is needed).
    pub fn outputs(&self, epoch: u64, disk: Option<&'a Disk>, dir: &'a Path) -> outputs::Inputs<'a> {
        let (name, version) = (self.image.full_name(), self.version);
        outputs::Inputs { name, version, epoch, root: self.root, disk, tools: self.tools, dir }
    }
}

/// A bake of a disk.
struct Work<'a> {
    inputs: &'a Inputs<'a>,
    epoch: u64,
    /// PID 1 of the initramfs.
    program: &'a Path,
}

impl<'a> std::ops::Deref for Work<'a> {
    type Target = Inputs<'a>;

    fn deref(&self) -> &Self::Target {
        self.inputs
    }
}

impl Disk {
    /// Kernel command line of a machine whose root is the image file: the head is pinned too.
    pub fn image_file_line(&self) -> String {
        format!("{} {}={}", self.command_line, head::WORD, self.head.sha256)
    }
}

impl Work<'_> {
    /// Runs a program of the tool tree, with [`Inputs::dir`] at `/srv`.
    fn run(&self, argv: &[&str]) -> anyhow::Result<std::process::Output> {
        self.sandbox().run(argv)
    }

    fn sandbox(&self) -> Sandbox {
        sandbox(self.tools, self.dir, self.epoch)
    }

    /// An identifier that follows from the image's version.
    fn uuid(&self, what: &str) -> Uuid {
        Uuid::new_v5(
            &Uuid::NAMESPACE_URL,
            format!("pgkiln:{}:{}:{what}", self.image.full_name(), self.version).as_bytes(),
        )
    }

    /// The same, as bytes for where more are wanted.
    fn digest(&self, what: &str) -> Sha256 {
        Sha256::of(format!("pgkiln:{}:{}:{what}", self.image.full_name(), self.version))
    }
}

/// A finished disk and what it is made of.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The root image.
    pub root: PathBuf,
    /// The root's hash tree.
    pub hashes: PathBuf,
    /// Its top: 64 hexadecimal digits.
    pub root_hash: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Kernel command line.
    pub command_line: String,
    /// Kernel, initramfs and command line as one EFI program.
    pub uki: PathBuf,
    /// The whole disk, sparse.
    pub raw: PathBuf,
    /// The same for drives with sectors of 4096 bytes, if somebody wants it.
    pub raw_4k: Option<PathBuf>,
    /// Its first bytes, for an installer.
    pub head: head::Head,
    /// The installer's medium, if somebody wants it.
    pub installer: Option<PathBuf>,
    /// Digest of the program that is PID 1 of the initramfs.
    pub program_sha256: Sha256,
}

/// Makes the disk in [`Inputs::dir`], if one of the formats needs one.
pub fn make_for(
    formats: &[Format],
    inputs: &Inputs<'_>,
    epoch: u64,
    programs: &Programs,
) -> anyhow::Result<Option<Disk>> {
    if !formats.iter().any(|format| format.needs_disk()) {
        return Ok(None);
    }
    let (program, program_sha256) = programs.initrd(inputs.image.dir())?;
    make(&Work { inputs, epoch, program }, program_sha256, formats).map(Some)
}

/// Where programs of the tool tree run, with `dir` at `/srv`.
fn sandbox(tools: &Path, dir: &Path, epoch: u64) -> Sandbox {
    // A tool tree has no /var/tmp.
    Sandbox::new(tools, epoch).bind(dir, "srv", false).env("TMPDIR", "/tmp")
}

/// The program, signed if somebody signs.
fn signed(work: &Work<'_>, program: PathBuf, name: &str) -> anyhow::Result<PathBuf> {
    let Some(keys) = work.keys else { return Ok(program) };
    secure_boot::sign(work.tools, work.dir, work.epoch, keys, name).with_context(|| format!("signing {name}"))
}

fn make(work: &Work<'_>, program_sha256: Sha256, formats: &[Format]) -> anyhow::Result<Disk> {
    let kernel = kernel::Kernel::find(work.image, work.tree)?;
    let (hashes, root_hash) = verity::format(work).context("making the hash tree of the root")?;
    let initrd = initrd::make(work, &kernel).context("making the initrd")?;
    let command_line = boot::command_line(&root_hash);
    let uki =
        uki::make(work, &kernel, &[&initrd], &command_line, "uki.efi").context("making the unified kernel image")?;
    let uki = signed(work, uki, "uki.efi")?;
    let esp = boot::system_partition(work, &uki).context("filling the EFI system partition")?;
    let plan = partitions::plan(work, &esp, &hashes, &root_hash).context("planning the disk")?;
    let raw = plan.write(work, 512, "disk.raw").context("making the disk")?;
    let raw_4k = formats.contains(&Format::Raw4k).then(|| plan.write(work, 4096, "disk.4k.raw")).transpose();
    let raw_4k = raw_4k.context("making the disk with sectors of 4096 bytes")?;
    let (root, image) = (work.root.to_owned(), kernel.image.clone());
    let head = head::cut(&raw, work.dir.join("disk.head")).context("cutting off the head of the disk")?;
    let mut disk = Disk {
        root,
        hashes,
        root_hash,
        kernel: image,
        initrd,
        command_line,
        uki,
        raw,
        raw_4k,
        head,
        installer: None,
        program_sha256,
    };
    if formats.contains(&Format::Iso) {
        disk.installer = Some(installer::make(work, &kernel, &disk).context("making the installer")?);
    }
    Ok(disk)
}
