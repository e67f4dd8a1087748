//! Which drivers the initrd carries, from what the kernel's own package says of them (`modules.dep`, `modules.alias`).
//!
//! Controllers of disks, by directory: everything in there that some device asks for, with what it needs. To add a kind of
//! controller, add its directory to [`CONTROLLERS`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use anyhow::Context;

use crate::problem::Problem;

/// Where controllers of disks live in a kernel's tree: directories, or beginnings of file names. What a kernel does not have, or
/// has built in, is left out by itself.
const CONTROLLERS: [&str; 13] = [
    "kernel/drivers/ata/",
    "kernel/drivers/block/",
    "kernel/drivers/scsi/",
    "kernel/drivers/nvme/host/",
    "kernel/drivers/virtio/virtio_pci",
    "kernel/drivers/virtio/virtio_mmio",
    "kernel/drivers/hv/hv_vmbus",
    "kernel/drivers/message/fusion/",
    "kernel/drivers/mmc/",
    "kernel/drivers/pci/controller/",
    "kernel/drivers/usb/host/xhci",
    "kernel/drivers/usb/storage/usb-storage",
    "kernel/drivers/usb/storage/uas",
];

/// Loaded on every machine.
const REQUIRED: [&str; 3] = ["dm_verity", "squashfs", "overlay"];

/// Tried on every machine: processors' own instructions for what verification computes.
const TRIED: [&str; 3] = ["sha256_ssse3", "sha256_arm64", "sha2_ce"];

/// For a root that is a file in memory (`pxe`).
const FILE: [&str; 1] = ["loop"];

/// A module of the initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// As the kernel calls it.
    pub(super) name: String,
    /// Below the directory of modules.
    pub(super) path: String,
    /// What is loaded before it, in order.
    needs: Vec<String>,
    /// Devices it is for; `+` for every machine, `?` to be tried on every machine, `@` if the root is a file.
    aliases: Vec<String>,
}

/// The modules of the kernel in `dir` that the initrd needs, sorted by name.
pub(super) fn select(dir: &Path) -> anyhow::Result<Vec<Module>> {
    let read = |name: &str| fs_err::read_to_string(dir.join(name));
    choose(&read("modules.dep")?, &read("modules.alias")?, &read("modules.builtin")?)
}

fn choose(dependencies: &str, aliases: &str, builtin: &str) -> anyhow::Result<Vec<Module>> {
    // name -> (path, names of what it needs, in the order of loading)
    let mut known: BTreeMap<String, (&str, Vec<String>)> = BTreeMap::new();
    for line in dependencies.lines() {
        let (path, needs) = line.split_once(':').context("a line of modules.dep without `:`")?;
        // depmod writes what is needed last first.
        known.insert(name_of(path), (path, needs.split_whitespace().rev().map(name_of).collect()));
    }
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in aliases.lines() {
        let mut words = line.split_whitespace();
        if let (Some("alias"), Some(pattern), Some(name)) = (words.next(), words.next(), words.next())
            && pattern.contains(':')
            && !pattern.starts_with("devname:")
        {
            by_name.entry(name).or_default().push(pattern.to_owned());
        }
    }
    let builtin: BTreeSet<String> = builtin.lines().map(name_of).collect();
    let mut chosen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in REQUIRED.iter().filter(|name| !builtin.contains(**name)) {
        if !known.contains_key(*name) {
            let what = format!("the kernel has no module `{name}`, which the verified root needs");
            return Err(
                Problem::new(what, "modules.dep", "use another kernel package; Debian's and Ubuntu's have it").into()
            );
        }
        chosen.insert((*name).to_owned(), vec!["+".to_owned()]);
    }
    for name in TRIED.iter().filter(|name| known.contains_key(**name)) {
        chosen.insert((*name).to_owned(), vec!["?".to_owned()]);
    }
    for name in FILE.iter().filter(|name| known.contains_key(**name)) {
        chosen.insert((*name).to_owned(), vec!["@".to_owned()]);
    }
    for (name, (path, _)) in &known {
        if let Some(aliases) =
            by_name.get(name.as_str()).filter(|_| CONTROLLERS.iter().any(|dir| path.starts_with(dir)))
        {
            chosen.insert(name.clone(), aliases.clone());
        }
    }
    let needed: BTreeSet<String> =
        chosen.keys().filter_map(|name| known.get(name)).flat_map(|one| one.1.clone()).collect();
    for name in needed {
        chosen.entry(name).or_default();
    }
    let module = |(name, aliases): (String, Vec<String>)| {
        let (path, needs) =
            known.get(&name).with_context(|| format!("modules.dep names `{name}` but does not have it"))?;
        Ok(Module { name, path: (*path).to_owned(), needs: needs.clone(), aliases })
    };
    chosen.into_iter().map(module).collect()
}

/// The list the initrd reads: `name needs aliases…`, a line each.
pub(super) fn list(modules: &[Module]) -> String {
    let line = |module: &Module| {
        let needs = if module.needs.is_empty() { "-".to_owned() } else { module.needs.join(",") };
        format!("{} {needs} {}", module.name, module.aliases.join(" ")).trim_end().to_owned() + "\n"
    };
    modules.iter().map(line).collect()
}

/// The module itself, without the compression of its package: the whole initrd is compressed, better and quicker.
pub(super) fn content(dir: &Path, module: &Module) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(&module.path);
    let file = fs_err::File::open(&path)?;
    let mut reader: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(file)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(file)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(file)),
        _ => Box::new(file),
    };
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).with_context(|| format!("decompressing {}", path.display()))?;
    Ok(bytes)
}

/// `kernel/drivers/md/dm-verity.ko.xz` is `dm_verity`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-bufio.ko.xz kernel/drivers/md/dm-mod.ko.xz\n\
        kernel/drivers/md/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz\nkernel/drivers/md/dm-mod.ko.xz:\n\
        kernel/fs/overlayfs/overlay.ko.xz:\nkernel/drivers/scsi/scsi_debug.ko: kernel/drivers/scsi/scsi_mod.ko\n\
        kernel/drivers/scsi/scsi_mod.ko:\nkernel/drivers/block/virtio_blk.ko.zst:\nkernel/net/x.ko:\n\
        kernel/arch/x86/crypto/sha256-ssse3.ko:\nkernel/drivers/block/loop.ko:\n";
    const ALIAS: &str = "# Aliases\nalias virtio:d00000002v* virtio_blk\nalias devname:loop-control virtio_blk\nalias fs-x x\n\
        alias pci:v1* x\n";

    #[test]
    fn controllers_that_devices_ask_for_and_what_the_root_needs() {
        let modules = choose(DEP, ALIAS, "kernel/fs/squashfs/squashfs.ko\n").unwrap();
        let expected = "dm_bufio dm_mod\ndm_mod -\ndm_verity dm_mod,dm_bufio +\nloop - @\noverlay - +\nsha256_ssse3 - ?\n\
                        virtio_blk - virtio:d00000002v*\n";
        assert_eq!(list(&modules), expected);
        let told = choose(DEP, ALIAS, "").unwrap_err().to_string();
        assert!(told.contains("no module `squashfs`"), "{told}");
    }
}
