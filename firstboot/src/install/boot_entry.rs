//! The firmware is told to start the disk first: otherwise a machine whose firmware prefers the network or the installer's CD would
//! come back to the installer, which then refuses the disk, and wait there.
//!
//! UEFI specification 2.10: variables in section 3.3, load options in 3.1.3, device paths in 10.3.5; the kernel's
//! `Documentation/filesystems/efivarfs.rst`. Firmware that refuses is no reason to fail: it finds the disk's boot loader at
//! its usual place, too.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::layout::Layout;
use crate::update::gpt::Partition;

const VARIABLES: &str = "/sys/firmware/efi/efivars";
/// Of variables the specification defines.
const VENDOR: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Kept when switched off, seen by boot loaders and by systems.
const ATTRIBUTES: u32 = 7;
/// What the firmware's menu shows.
const NAME: &str = "pgkiln";
/// Of a load option: to be used.
const ACTIVE: u32 = 1;

/// Makes an entry for the boot loader on `esp` the first one; an earlier one of ours is replaced.
pub fn put_first(layout: &Layout, esp: &Partition, sector: u64) -> Result<()> {
    let dir = layout.at(VARIABLES);
    let mut names: Vec<String> =
        fs::read_dir(&dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let numbered = |name: &String| {
        let digits = name.strip_prefix("Boot")?.strip_suffix(VENDOR)?.strip_suffix('-')?;
        Some(digits).filter(|digits| digits.len() == 4).and_then(|digits| u16::from_str_radix(digits, 16).ok())
    };
    let taken: Vec<u16> = names.iter().filter_map(numbered).collect();
    let ours = taken.iter().find(|number| is_ours(&variable(&dir, &format!("Boot{number:04X}"))));
    let number = ours.copied().or_else(|| (0..=u16::MAX).find(|number| !taken.contains(number)));
    let number = number.context("the firmware has no free boot entry")?;
    write(&variable(&dir, &format!("Boot{number:04X}")), &option(esp, sector)?)?;
    let order = variable(&dir, "BootOrder");
    let before = fs::read(&order).ok().map(|bytes| bytes.get(4..).unwrap_or_default().to_vec()).unwrap_or_default();
    let number = number.to_le_bytes();
    let rest = before.chunks_exact(2).filter(|one| **one != number).flatten().copied();
    write(&order, &number.into_iter().chain(rest).collect::<Vec<u8>>())
}

fn variable(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}-{VENDOR}"))
}

/// Whether an entry is one this program made.
fn is_ours(entry: &Path) -> bool {
    // Attributes of the variable and of the option, length of the path, then the name.
    fs::read(entry).is_ok_and(|bytes| bytes.get(10..).is_some_and(|rest| rest.starts_with(&utf16(NAME))))
}

/// In one call, attributes first: that is how efivarfs wants it.
fn write(path: &Path, value: &[u8]) -> Result<()> {
    let bytes = [&ATTRIBUTES.to_le_bytes(), value].concat();
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    Ok(file.write_all(&bytes)?)
}

/// `EFI_LOAD_OPTION`.
fn option(esp: &Partition, sector: u64) -> Result<Vec<u8>> {
    let name = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "aa64",
        other => anyhow::bail!("no boot loader is known for {other}"),
    };
    let mut disk = u32::try_from(esp.number)?.to_le_bytes().to_vec();
    disk.extend((esp.at / sector).to_le_bytes());
    disk.extend((esp.bytes / sector).to_le_bytes());
    disk.extend(esp.uuid.to_bytes_le());
    // A partition table of this kind, and an identifier of this kind.
    disk.extend([2, 2]);
    let file = utf16(&format!("\\EFI\\systemd\\systemd-boot{name}.efi"));
    let path = [node(4, 1, &disk)?, node(4, 4, &file)?, node(0x7f, 0xff, &[])?].concat();
    let length = u16::try_from(path.len())?.to_le_bytes();
    Ok([&ACTIVE.to_le_bytes()[..], &length, &utf16(NAME), &path].concat())
}

/// One element of a device path.
fn node(kind: u8, subkind: u8, data: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(data.len() + 4)?.to_le_bytes();
    Ok([&[kind, subkind][..], &length, data].concat())
}

/// With its end.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::update::gpt::Kind;

    #[test]
    fn the_disk_comes_first_and_an_earlier_entry_of_ours_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let dir = layout.at(VARIABLES);
        fs::create_dir_all(&dir).unwrap();
        let other = [&7u32.to_le_bytes()[..], &1u32.to_le_bytes(), &[4, 0], &utf16("UiApp")].concat();
        fs::write(variable(&dir, "Boot0000"), &other).unwrap();
        fs::write(variable(&dir, "BootOrder"), [7, 0, 0, 0, 0, 0]).unwrap();
        fs::write(variable(&dir, "BootCurrent"), [7, 0, 0, 0, 0, 0]).unwrap();
        let uuid = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let mut esp =
            Partition { number: 1, kind: Kind::Other, uuid, label: "esp".into(), at: 1 << 20, bytes: 512 << 20 };
        for _ in 0..2 {
            put_first(&layout, &esp, 512).unwrap();
            assert_eq!(fs::read(variable(&dir, "BootOrder")).unwrap(), [7, 0, 0, 0, 1, 0, 0, 0]);
            assert_eq!(fs::read(variable(&dir, "Boot0000")).unwrap(), other);
            let entry = fs::read(variable(&dir, "Boot0001")).unwrap();
            assert_eq!(entry[4..10], [1, 0, 0, 0, (entry.len() - 4 - 6 - 14) as u8, 0]);
            let path = &entry[24..];
            assert_eq!(path[..16], [4, 1, 42, 0, 1, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0]);
            assert_eq!(path[16..24], (esp.bytes / 512).to_le_bytes());
            assert_eq!((path[24], path[40], path[41], path[42], path[43]), (esp.uuid.to_bytes_le()[0], 2, 2, 4, 4));
            assert!(path.ends_with(&[0x7f, 0xff, 4, 0]));
            esp.uuid = Uuid::from_u128(9);
        }
    }
}
