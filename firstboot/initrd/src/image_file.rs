//! The root as one file: root and hash tree, one after the other (`pgkiln bake --format pxe`).
//!
//! A boot loader that fetches over the network hands it to the kernel as one more archive of the initramfs, so that it lies in
//! memory. The command line's root hash decides whether it is the right one, and checks every block that is read.
//!
//! Behind it in the archive is the head of the image's disk, which only an installer needs: it finds all parts by their names
//! in [`PARTS`].

use fs_err::{self as fs, File, os::unix::fs::FileExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::console::say;
use crate::disk::Found;
use crate::fail::Failed;
use crate::verity::BLOCK;
use crate::{attach, modules};

/// Where the archive puts it.
const FILE: &str = "/pgkiln/root.img";
/// And the head of the disk.
const HEAD: &str = "/pgkiln/head.img";
/// Where the agent looks for `root` (verified), `image` (root and hash tree) and `head` (`firstboot/src/install/source.rs`).
const PARTS: &str = "/run/pgkiln-image";
/// Unpacking takes three times the image: as the boot loader left it, and as a file that may have half of what is free then.
/// Measured in QEMU with Debian 13 (root of 232 MiB, and 15 MiB of the head that need not fit): with 784 MiB it does not fit, with
/// 800 MiB it does; without the head 784 MiB were enough, and the machine became a good node, a third of a GiB free. So a machine that can unpack has enough for the rest, and this is for kernel, firmware and some margin.
const BESIDE_MIB: u64 = 128;

/// Makes the file a device.
pub(crate) fn open(modules: &mut modules::List) -> Result<Found, Failed> {
    modules.load_for_file()?;
    let file = Path::new(FILE);
    let meta = file.symlink_metadata().map_err(|_| {
        let remedy = "let the boot loader load both, initrd and root archive; with far too little memory the kernel drops the \
                      second without a word";
        Failed::new(format!("the boot loader gave no image file ({FILE} in the initramfs)"), remedy)
    })?;
    // All of the archive counts, also what this machine then does without.
    let beside = Path::new(HEAD).symlink_metadata().map_or(0, |head| head.len());
    whole(&meta, beside)?;
    let hashes_at = data_bytes(file)?;
    let device = attach::loop_device(file)?;
    say(&format!("the image file in memory is {}", device.display()));
    Ok(Found { disk: None, root: device.clone(), hashes: device, hashes_at, var: None })
}

/// A live machine has better use for the memory of what it does not need.
pub(crate) fn forget_head() {
    let _ = fs::remove_file(HEAD);
}

/// Gives the installer what it writes: the files of the initramfs cannot be reached any more once the root is in front of them.
pub(crate) fn offer(found: &Found, verified: &Path) -> Result<(), Failed> {
    let head = Path::new(HEAD);
    let meta = head.symlink_metadata().map_err(|_| {
        let remedy = "give the machine more memory: what does not fit is dropped by the kernel; or, if it has enough, take kernel, \
                      initrd and root archive of one version: their names have it";
        Failed::new(format!("the boot loader gave nothing to install from ({HEAD} in the initramfs)"), remedy)
    })?;
    whole(&meta, Path::new(FILE).symlink_metadata().map_or(0, |root| root.len()))?;
    let head = attach::loop_device(head)?;
    let failed = |error| Failed::call("naming the parts of the image", error);
    fs::create_dir_all(PARTS).map_err(failed)?;
    let parts = [("root", verified), ("image", &found.root), ("head", &head)];
    parts
        .iter()
        .try_for_each(|(name, device)| fs::os::unix::fs::symlink(device, Path::new(PARTS).join(name)).map_err(failed))
}

/// Whether the kernel could unpack all of a file: what did not fit is a hole. `beside`: bytes of the other one.
fn whole(meta: &std::fs::Metadata, beside: u64) -> Result<(), Failed> {
    let here = meta.blocks() * 512;
    if here >= meta.len() {
        return Ok(());
    }
    let what = format!(
        "too little memory: only {} of the image's {} MiB fitted into it; this machine has {} MiB",
        here >> 20,
        meta.len() >> 20,
        memory_mib()
    );
    let needed = 3 * ((meta.len() + beside) >> 20) + BESIDE_MIB;
    Err(Failed::new(what, format!("give it {needed} MiB or more, or boot from a disk")))
}

/// `MemTotal`: without what firmware and kernel keep for themselves.
fn memory_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

/// Where the root ends and its hash tree begins: the length a squashfs states (`bytes_used`, at byte 40), in whole blocks.
fn data_bytes(file: &Path) -> Result<u64, Failed> {
    let mut head = [0; 48];
    let read = File::open(file).and_then(|file| file.read_exact_at(&mut head, 0));
    if read.is_err() || !head.starts_with(b"hsqs") {
        let remedy = "take kernel, initrd and root archive of one version: their names have it";
        return Err(Failed::new("the image file in memory does not begin with a root: it was altered", remedy));
    }
    Ok(u64::from_le_bytes(std::array::from_fn(|n| head[40 + n])).next_multiple_of(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tree_begins_where_the_root_says_it_ends() {
        let path = std::env::temp_dir().join(format!("pgkiln-image-file-{}", std::process::id()));
        let mut bytes = vec![0; 96];
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[40..48].copy_from_slice(&5000u64.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        assert_eq!(data_bytes(&path).unwrap(), 8192);
        bytes[0] = b'x';
        fs::write(&path, &bytes).unwrap();
        assert!(format!("{:?}", data_bytes(&path).unwrap_err()).contains("one version"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_with_holes_did_not_fit() {
        let path = std::env::temp_dir().join(format!("pgkiln-holes-{}", std::process::id()));
        fs::write(&path, vec![1; 8192]).unwrap();
        whole(&path.metadata().unwrap(), 0).unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();
        let told = format!("{:?}", whole(&path.metadata().unwrap(), 16 << 20).unwrap_err());
        assert!(told.contains("only 0 of the image's 64 MiB") && told.contains("give it 368 MiB"), "{told}");
        fs::remove_file(&path).unwrap();
    }
}
