//! Disks that hold something, as files with the signatures that real programs leave: each is refused with what it holds, and not a
//! byte of it changes. The layouts are libblkid's (`libblkid/src/superblocks` of util-linux), which checks more than the magic.

use std::path::Path;

use super::choose::{Examined, decide};
use super::contents::Contents;
use super::disks::Disk;
use super::wanted::{Selector, Wanted};

const SIZE: u64 = 16 << 20;
const NEEDED: u64 = 8 << 20;

type Fill = fn(&mut [u8]);

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn ext4(bytes: &mut [u8]) {
    put(bytes, 1024 + 56, &[0x53, 0xef]);
    // Revision 1, and extents, which ext3 has not.
    put(bytes, 1024 + 76, &[1]);
    put(bytes, 1024 + 96, &[0x40]);
}

fn xfs(bytes: &mut [u8]) {
    put(bytes, 0, b"XFSB");
    put(bytes, 4, &4096u32.to_be_bytes());
    put(bytes, 8, &(SIZE / 4096).to_be_bytes());
    // Real-time extents of one block; one allocation group.
    put(bytes, 80, &1u32.to_be_bytes());
    put(bytes, 84, &((SIZE / 4096) as u32).to_be_bytes());
    put(bytes, 88, &1u32.to_be_bytes());
    put(bytes, 100, &4u16.to_be_bytes());
    put(bytes, 102, &512u16.to_be_bytes());
    put(bytes, 104, &512u16.to_be_bytes());
    put(bytes, 106, &8u16.to_be_bytes());
    // Logarithms of block, sector, inode, inodes in a block, blocks of a group.
    put(bytes, 120, &[12, 9, 9, 3, 12]);
}

fn lvm(bytes: &mut [u8]) {
    let label = &mut bytes[512..1024];
    put(label, 0, b"LABELONE");
    put(label, 8, &1u64.to_le_bytes());
    put(label, 20, &32u32.to_le_bytes());
    put(label, 24, b"LVM2 001");
    put(label, 32, b"abcdefghijklmnopqrstuvwxyz012345");
    let mut sum = 0xf597_a6cf_u32;
    for byte in &label[20..] {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    put(label, 16, &sum.to_le_bytes());
}

fn mdraid(bytes: &mut [u8]) {
    let block = &mut bytes[4096..8192];
    put(block, 0, &0xa92b_4efc_u32.to_le_bytes());
    put(block, 4, &1u32.to_le_bytes());
    put(block, 16, &[7; 16]);
    put(block, 32, b"host:0");
    put(block, 92, &2u32.to_le_bytes());
    put(block, 144, &8u64.to_le_bytes());
    let words = block[..256].chunks(4).map(|word| u64::from(u32::from_le_bytes(std::array::from_fn(|n| word[n]))));
    let sum: u64 = words.sum();
    put(block, 216, &(((sum & 0xffff_ffff) + (sum >> 32)) as u32).to_le_bytes());
}

fn swap(bytes: &mut [u8]) {
    put(bytes, 1024, &1u32.to_le_bytes());
    put(bytes, 1028, &((SIZE / 4096) as u32 - 1).to_le_bytes());
    put(bytes, 4086, b"SWAPSPACE2");
}

fn luks(bytes: &mut [u8]) {
    put(bytes, 0, b"LUKS\xba\xbe\0\x01");
}

fn table(bytes: &mut [u8]) {
    // One partition of type Linux, from sector 2048 on.
    put(bytes, 446, &[0, 0, 2, 0, 0x83, 0, 2, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    put(bytes, 510, &[0x55, 0xaa]);
}

/// Of a database without any file system that is known, at the other end.
fn unknown(bytes: &mut [u8]) {
    put(bytes, SIZE as usize - 4096, b"whose?");
}

fn disk(path: &Path, fill: Fill) -> Disk {
    let mut bytes = vec![0; SIZE as usize];
    fill(&mut bytes);
    fs_err::write(path, bytes).unwrap();
    let serial = path.file_name().unwrap().to_str().unwrap();
    Disk::of(path, SIZE, serial)
}

fn decided(disks: &[Disk], wanted: &Wanted, needed: u64) -> Result<Examined, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let decision = runtime.block_on(decide(disks.to_vec(), wanted, needed, scratch.path()));
    decision.map_err(|error| format!("{error:#}"))
}

#[test]
fn what_holds_something_is_refused_by_name_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = Wanted::default();
    let cases: [(&str, Fill); 8] = [
        ("type ext4", ext4),
        ("type xfs", xfs),
        ("a physical volume of LVM", lvm),
        ("a member of an mdraid array `host:0`", mdraid),
        ("swap space", swap),
        ("an encrypted volume (LUKS)", luks),
        ("a partition table (dos)", table),
        ("data of a kind nobody knows", unknown),
    ];
    for (n, (expected, fill)) in cases.into_iter().enumerate() {
        let path = dir.path().join(n.to_string());
        let disk = disk(&path, fill);
        let before = fs_err::read(&path).unwrap();
        let told = decided(std::slice::from_ref(&disk), &nothing, NEEDED).unwrap_err();
        assert!(told.contains("no disk is blank") && told.contains(expected), "no `{expected}` in: {told}");
        let by_path = Wanted { disk: Some(Selector::Path(path.clone())), overwrite: None };
        let told = decided(std::slice::from_ref(&disk), &by_path, NEEDED).unwrap_err();
        assert!(told.contains("is not blank") && told.contains(&format!("pgkiln.disk=serial:{n}")), "{told}");
        // Named by what only it has, it is chosen; still nothing is written.
        let by_serial = Wanted { disk: Some(Selector::Serial(n.to_string())), overwrite: None };
        let chosen = decided(&[disk], &by_serial, NEEDED).unwrap();
        assert!(matches!(chosen.contents, Contents::Holds { .. }));
        assert!(fs_err::read(&path).unwrap() == before, "`{expected}` was written to");
    }
}

#[test]
fn two_blank_disks_and_a_small_one_are_refused_and_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let disks = ["A", "B"].map(|name| disk(&dir.path().join(name), |_| ()));
    let nothing = Wanted::default();
    let told = decided(&disks, &nothing, NEEDED).unwrap_err();
    assert!(told.contains("2 disks are blank") && told.contains("serial B"), "{told}");
    let told = decided(&disks[..1], &nothing, SIZE + 1).unwrap_err();
    assert!(told.contains("is too small"), "{told}");
    for name in ["A", "B"] {
        assert!(fs_err::read(dir.path().join(name)).unwrap().iter().all(|byte| *byte == 0), "{name} was written to");
    }
    assert_eq!(decided(&disks[..1], &nothing, NEEDED).unwrap().contents, Contents::Blank);
}
