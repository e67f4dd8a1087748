//! Disks that hold something, as files with the signatures that real programs leave: each is refused with what it holds, and not a
//! byte of it changes.

use std::path::Path;

use super::choose::{Examined, decide};
use super::contents::Contents;
use super::disks::Disk;
use super::signatures::{ext4, luks, lvm, mdraid, swap, table, unknown, xfs};
use super::wanted::{Overwrite, Selector, Wanted};

const SIZE: u64 = 16 << 20;
const NEEDED: u64 = 8 << 20;

type Fill = fn(&mut [u8]);

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
    let cases: [(&str, bool, Fill); 8] = [
        ("type ext4", false, ext4),
        ("type xfs", false, xfs),
        ("a physical volume of LVM", false, lvm),
        ("a member of an mdraid array `host:0`", false, mdraid),
        ("swap space", true, swap),
        ("an encrypted volume (LUKS)", false, luks),
        ("a partition table (dos)", true, table),
        ("data of a kind nobody knows", true, unknown),
    ];
    for (n, (expected, seen, fill)) in cases.into_iter().enumerate() {
        let path = dir.path().join(n.to_string());
        let disk = disk(&path, fill);
        let before = fs_err::read(&path).unwrap();
        let told = decided(std::slice::from_ref(&disk), &nothing, NEEDED).unwrap_err();
        assert!(told.contains("no disk is blank") && told.contains(expected), "no `{expected}` in: {told}");
        let by_path = Wanted { disk: Some(Selector::Path(path.clone())), ..Wanted::default() };
        let told = decided(std::slice::from_ref(&disk), &by_path, NEEDED).unwrap_err();
        assert!(told.contains("is not blank") && told.contains(&format!("pgkiln.disk=serial:{n}")), "{told}");
        // Named by what only it has, it is chosen; still nothing is written.
        let mut by_serial = Wanted { disk: Some(Selector::Serial(n.to_string())), ..Wanted::default() };
        if !seen {
            // No file system behind the signature can be mounted, so nobody knows what is lost.
            let told = decided(std::slice::from_ref(&disk), &by_serial, NEEDED).unwrap_err();
            assert!(told.contains("may be a database") && told.contains("pgkiln.overwrite=unseen"), "{told}");
            by_serial.overwrite = Overwrite { unseen: true, ..Overwrite::default() };
        }
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
