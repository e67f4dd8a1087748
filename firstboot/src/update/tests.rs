//! Updates of a disk in a file: the real table, the real copies, the real hash tree.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use fs_err as fs;
use sha2::{Digest, Sha256};

use super::loader::tests::uki;
use super::set::tests::write;
use super::*;

const MIB: u64 = 1 << 20;

/// A root, its hash tree and its root hash; the content follows from `seed`.
pub(crate) fn verified(seed: &[u8]) -> (Vec<u8>, Vec<u8>, String) {
    let root: Vec<u8> =
        (0..300_u32).flat_map(|n| Sha256::digest([seed, &n.to_le_bytes()].concat()).repeat(128)).collect();
    let hash = |block: &[u8]| Sha256::digest([&[7; 32][..], block].concat()).to_vec();
    let mut levels = vec![root.chunks(4096).flat_map(hash).collect::<Vec<u8>>()];
    while levels.last().unwrap().len() > 32 {
        let level = levels.last_mut().unwrap();
        level.resize(level.len().next_multiple_of(4096), 0);
        let above = level.chunks(4096).flat_map(hash).collect();
        levels.push(above);
    }
    let top = verity::hex(&levels.pop().unwrap());
    let mut tree = vec![0; 4096];
    tree[..8].copy_from_slice(b"verity\0\0");
    tree[32..38].copy_from_slice(b"sha256");
    tree[64..68].copy_from_slice(&4096_u32.to_le_bytes());
    tree[68..72].copy_from_slice(&4096_u32.to_le_bytes());
    tree[72..80].copy_from_slice(&300_u64.to_le_bytes());
    tree[80] = 32;
    tree[88..120].fill(7);
    tree.extend(levels.into_iter().rev().flatten());
    (root, tree, top)
}

struct Node {
    dir: tempfile::TempDir,
    layout: Layout,
    disk: PathBuf,
    image: ImageInfo,
    running: String,
}

impl Node {
    /// A node that runs `20261124.00000001` from slot A, slot B as it is made at first boot.
    fn new() -> Self {
        use gpt::tests::disk;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("node"));
        let running = verified(b"running").2;
        let half = |n| uuid::Uuid::try_parse(&running[n..n + 32]).unwrap();
        let (root, hashes) = ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5");
        let var = "0fc63daf-8483-4772-8e79-3d69d8477de4";
        let other = uuid::Uuid::from_u128;
        let table = [
            (root, half(0), "20261124.00000001", 2048, 8191),
            (hashes, half(32), "20261124.00000001", 8192, 9215),
            (root, other(3), "_empty", 10240, 16383),
            (hashes, other(4), "_empty", 16384, 17407),
            (var, other(5), "var", 18432, 20479),
        ];
        let made = disk(12 * MIB, &table);
        let path = dir.path().join("disk");
        let mut bytes = vec![0; (12 * MIB) as usize];
        made.read_exact_at(&mut bytes, 0).unwrap();
        fs::write(&path, bytes).unwrap();
        let esp = layout.at("/boot/EFI/Linux");
        fs::create_dir_all(&esp).unwrap();
        fs::write(esp.join("t_20261124.00000001.efi"), uki(&running)).unwrap();
        let mut image: ImageInfo = serde_json::from_str(crate::fixtures::IMAGE).unwrap();
        image.version = "20261124.00000001".into();
        Self { layout, disk: path, image, running, dir }
    }

    fn slots(&self) -> Slots {
        Slots::on(&self.disk, self.running.clone()).unwrap()
    }

    fn set(&self, version: &str) -> Set {
        let dir = self.dir.path().join(version);
        fs::create_dir_all(&dir).unwrap();
        write(&dir, version, |_| {})
    }

    fn put(&self, set: &Set) -> Result<Done> {
        put(&self.layout, set, &self.image, &self.slots(), TRIES, &|_, _| {}, Instant::now())
    }

    fn table(&self) -> Vec<gpt::Partition> {
        let file = fs::File::open(&self.disk).unwrap().into_parts().0;
        gpt::Table::read(&file, 12 * MIB).unwrap().partitions()
    }

    /// The root hash of what the boot loader starts next, if that is whole on the disk.
    fn next(&self) -> Option<String> {
        let first = loader::entries(&self.layout.at("/boot")).unwrap().into_iter().next()?;
        let hash = first.root_hash?;
        let half = |n: usize| uuid::Uuid::try_parse(&hash[n..n + 32]).unwrap();
        let table = self.table();
        let find = |uuid| table.iter().find(|one| one.uuid == uuid);
        let (root, hashes) = (find(half(0))?, find(half(32))?);
        if hash == self.running {
            return Some(hash);
        }
        let file = fs::File::open(&self.disk).unwrap().into_parts().0;
        let place = |one: &gpt::Partition| verity::Place { file: &file, at: one.at, bytes: one.bytes };
        let found = verity::root_hash(place(root), place(hashes), |_| {}).ok()?;
        (found == hash).then_some(hash)
    }
}

#[test]
fn another_version_is_the_next_choice_and_slot_a_is_untouched() {
    let node = Node::new();
    let before = fs::read(&node.disk).unwrap();
    let set = node.set("20261125.aaaaaaaa");
    let done = node.put(&set).unwrap();
    assert_eq!((done.uki.as_str(), done.tries, done.removed.len()), ("t_20261125.aaaaaaaa+3.efi", 3, 0));
    assert_eq!(node.next().as_deref(), Some(set.root_hash.as_str()));
    let table = node.table();
    assert_eq!((table[2].label.as_str(), table[3].label.as_str()), ("20261125.aaaaaaaa", "20261125.aaaaaaaa"));
    let after = fs::read(&node.disk).unwrap();
    let kept = |from: usize, to: usize| before[from * 512..to * 512] == after[from * 512..to * 512];
    assert!(kept(2048, 10240) && kept(18432, 20480), "slot A and /var");
    // Again, and then another one: never more than two files, the running one always among them.
    node.put(&set).unwrap();
    let older = node.set("20261123.bbbbbbbb");
    let done = node.put(&older).unwrap();
    assert_eq!(done.removed, ["t_20261125.aaaaaaaa+3.efi"]);
    assert_eq!(node.next().as_deref(), Some(older.root_hash.as_str()), "older, and still the next choice");
    assert_eq!(loader::entries(&node.layout.at("/boot")).unwrap().len(), 2);
}

/// What the disk and the loader's files are after each write of an update, as a power cut would leave them.
#[test]
fn a_crash_at_any_step_leaves_a_version_that_boots() {
    let node = Node::new();
    let (first, second) = (node.set("20261125.aaaaaaaa"), node.set("20261126.bbbbbbbb"));
    node.put(&first).unwrap();
    let slots = node.slots();
    let esp = node.layout.at("/boot");
    let safe = |step: &str| assert_eq!(node.next().as_deref(), Some(node.running.as_str()), "after {step}");
    let old: Vec<Entry> = loader::entries(&esp).unwrap().into_iter().filter(|e| e.left.is_some()).collect();
    loader::remove(&old).unwrap();
    safe("removing the old file");
    slots.clear().unwrap();
    safe("clearing");
    let (mut bytes, all) = (0, 2 * second.root.bytes + second.hashes.bytes);
    slots
        .write(&second, &mut |more| {
            bytes += more;
            safe("a part of the content");
        })
        .unwrap();
    assert_eq!(bytes, all, "progress ends at 100 %");
    slots.name(&second).unwrap();
    safe("naming");
    let half = fs::read(second_file(&node, &second)).unwrap();
    fs::write(esp.join("EFI/Linux/.next.new"), &half[..100]).unwrap();
    safe("half a kernel image");
    node.put(&second).unwrap();
    assert_eq!(node.next().as_deref(), Some(second.root_hash.as_str()));
}

fn second_file(node: &Node, set: &Set) -> PathBuf {
    node.dir.path().join(&set.image.version).join(&set.uki.name)
}

#[test]
fn damage_anywhere_is_refused_and_the_running_version_stays() {
    for damage in ["root", "hashes", "uki", "short"] {
        let node = Node::new();
        let set = node.set("20261125.aaaaaaaa");
        let dir = node.dir.path().join("20261125.aaaaaaaa");
        let name = match damage {
            "hashes" => &set.hashes.name,
            "uki" => &set.uki.name,
            _ => &set.root.name,
        };
        let mut content = fs::read(dir.join(name)).unwrap();
        if damage == "short" {
            content.truncate(4096)
        } else {
            content[600] ^= 1
        }
        fs::write(dir.join(name), content).unwrap();
        let error = format!("{:#}", node.put(&set).unwrap_err());
        assert!(error.contains("SHA-256"), "{damage}: {error}");
        assert_eq!(node.next().as_deref(), Some(node.running.as_str()), "{damage}");
    }
    // Right sums of a wrong tree: whoever made the set made it wrong.
    let node = Node::new();
    let set = node.set("20261125.aaaaaaaa");
    let other = node.set("20261125.bbbbbbbb");
    let mixed = Set { hashes: other.hashes.clone(), source: other.source.clone(), root: other.root.clone(), ..set };
    let error = format!("{:#}", node.put(&mixed).unwrap_err());
    assert!(error.contains("root hash"), "{error}");
    assert_eq!(node.next().as_deref(), Some(node.running.as_str()));
}

#[test]
fn nothing_is_written_over_the_only_version_that_was_good() {
    let node = Node::new();
    let esp = node.layout.at("/boot/EFI/Linux");
    let set = node.set("20261125.aaaaaaaa");
    fs::rename(esp.join("t_20261124.00000001.efi"), esp.join("t_20261124.00000001+2-1.efi")).unwrap();
    let error = node.put(&set).unwrap_err().to_string();
    assert!(error.contains("has not been good yet"), "{error}");
    fs::remove_file(esp.join("t_20261124.00000001+2-1.efi")).unwrap();
    let error = node.put(&set).unwrap_err().to_string();
    assert!(error.contains("no file for the running version"), "{error}");
    assert_eq!(node.table()[2].label, "_empty");
}

#[test]
fn what_is_not_another_version_of_this_image_is_refused() {
    let node = Node::new();
    let set = node.set("20261125.aaaaaaaa");
    let older = Allow { older: true, ..Allow::default() };
    let refused = |change: &dyn Fn(&mut Set), allow: Allow| {
        let mut set = set.clone();
        change(&mut set);
        refuse(&set, &node.image, allow).err().map(|problem| problem.what).unwrap_or_default()
    };
    assert_eq!(refused(&|_| {}, Allow::default()), "");
    assert!(refused(&|set| set.image.name = "other".into(), older).contains("image `other`"));
    assert!(refused(&|set| set.image.variant = "metal".into(), older).contains("variant `metal`"));
    assert!(refused(&|set| set.architecture = "arm128".into(), older).contains("arm128"));
    let same = |set: &mut Set| set.image.version = node.image.version.clone();
    assert!(refused(&same, older).contains("runs here already"));
    let yesterday = |set: &mut Set| set.image.version = "20261123.ffffffff".into();
    assert!(refused(&yesterday, Allow::default()).contains("older"));
    assert_eq!(refused(&yesterday, older), "");
    let same_day = |set: &mut Set| set.image.version = "20261124.00000000".into();
    assert_eq!(refused(&same_day, Allow::default()), "");
}

#[test]
fn one_update_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    let silent = |_: &str, _: Option<f64>| {};
    let held = lock(&layout, false, &silent).unwrap();
    let refused = lock(&layout, false, &silent).unwrap_err();
    assert!(refused.is::<Problem>() && refused.to_string().contains("another update of this node"), "{refused}");
    let waiting = std::thread::spawn(move || {
        let said = std::cell::RefCell::new(String::new());
        let held = lock(&layout, true, &|what, _| said.borrow_mut().push_str(what));
        (held.is_ok(), said.into_inner(), layout)
    });
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!waiting.is_finished());
    drop(held);
    let (waited, said, layout) = waiting.join().unwrap();
    assert!(waited && said.contains("waiting"), "{said}");
    assert!(lock(&layout, false, &silent).is_ok(), "given back");
}
