//! What stands in for a container's boot disk: a directory at the node's `/boot`, and the part of the boot loader.
//!
//! A container has no disk, no firmware and no kernel of its own. What its agent does to update it is real down to the boot
//! loader's files (`EFI/Linux/<id>+<tries>.efi`, the very unified kernel images of the set); only the other slot is a file in
//! `slots/` instead of a partition, and the choice systemd-boot would make at power-on, this module makes, in the same order
//! and counting tries the same way. The kernel is the host's, and no hash tree is checked while the node runs: the machines of
//! `--engine qemu` have all of that.

use std::path::{Path, PathBuf};

use firstboot::image_info::ImageInfo;
use firstboot::update::loader::{self, Entry};

/// Beside the loader's files: roots of other versions, `<root hash>.root`.
const SLOTS: &str = "slots";
/// What the lab's own image has instead of a unified kernel image.
const BASE: &str = "the image the lab was started with\n";

/// What a node boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// A version its agent has put into the other slot; none: the lab's image.
    pub(super) other: Option<Other>,
}

/// Another version than the lab's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Other {
    /// Its root image.
    pub(super) root: PathBuf,
    /// Its root hash.
    pub(super) root_hash: String,
    /// Whether its tries are counted: it was never good yet.
    pub(super) counts: bool,
}

/// Makes the directory, with the lab's image as the version that was good.
pub(super) fn prepare(boot: &Path, image: &Path) -> anyhow::Result<()> {
    let files = boot.join("EFI/Linux");
    fs_err::create_dir_all(&files)?;
    fs_err::create_dir_all(boot.join(SLOTS))?;
    let Ok(text) = fs_err::read(image.join("usr/lib/pgkiln/image.json")) else { return Ok(()) };
    let info: ImageInfo = serde_json::from_slice(&text)?;
    for old in loader::entries(boot)?.into_iter().filter(|entry| entry.root_hash.is_none()) {
        fs_err::remove_file(old.path)?;
    }
    Ok(fs_err::write(files.join(format!("{}_{}.efi", info.name, info.version)), BASE)?)
}

/// What systemd-boot would start, its try counted.
pub(super) fn choose(boot: &Path) -> anyhow::Result<Choice> {
    let root = |entry: &Entry| {
        let root_hash = entry.root_hash.clone()?;
        let root = boot.join(SLOTS).join(format!("{root_hash}.root"));
        root.is_file().then_some(Other { root, root_hash, counts: entry.left.is_some() })
    };
    let entries = loader::entries(boot)?;
    let Some(first) = entries.first() else { return Ok(Choice { other: None }) };
    let other = root(first);
    anyhow::ensure!(other.is_some() || first.root_hash.is_none(), "{} has no root", first.path.display());
    loader::count_down(boot, first)?;
    Ok(Choice { other })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uki(root_hash: &str) -> Vec<u8> {
        let line = format!("roothash={root_hash}");
        let mut bytes = vec![0; 1024];
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x86] = 1;
        bytes[0x98..0xa0].copy_from_slice(b".cmdline");
        bytes[0xa0] = u8::try_from(line.len()).unwrap();
        bytes[0xad] = 2;
        bytes[512..512 + line.len()].copy_from_slice(line.as_bytes());
        bytes
    }

    #[test]
    fn a_new_version_is_tried_three_times_and_then_the_labs_image_runs_again() {
        let (boot, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let boot = boot.path();
        fs_err::create_dir_all(image.path().join("usr/lib/pgkiln")).unwrap();
        let json = r#"{"schema":1,"name":"x","version":"1","variant":"cloud","root_hash":null,"components":{}}"#;
        fs_err::write(image.path().join("usr/lib/pgkiln/image.json"), json).unwrap();
        prepare(boot, image.path()).unwrap();
        assert_eq!(choose(boot).unwrap(), Choice { other: None });
        let hash = "ab".repeat(32);
        fs_err::write(boot.join("EFI/Linux/x_2+3.efi"), uki(&hash)).unwrap();
        assert!(choose(boot).is_err(), "a kernel image without its root");
        fs_err::write(boot.join(format!("slots/{hash}.root")), "").unwrap();
        for left in ["+2-1", "+1-2", "+0-3"] {
            let other = choose(boot).unwrap().other.unwrap();
            assert_eq!((other.root_hash.as_str(), other.counts), (hash.as_str(), true));
            assert!(boot.join(format!("EFI/Linux/x_2{left}.efi")).exists(), "{left}");
        }
        assert_eq!(choose(boot).unwrap(), Choice { other: None });
        fs_err::rename(boot.join("EFI/Linux/x_2+0-3.efi"), boot.join("EFI/Linux/x_2.efi")).unwrap();
        assert!(!choose(boot).unwrap().other.unwrap().counts, "good");
    }
}
