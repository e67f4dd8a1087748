use std::os::unix::fs::FileExt;

use super::*;

/// A directory as a bake leaves it, with two files.
fn outputs(dir: &Path) {
    fs_err::write(dir.join("x.root.squashfs"), "root").unwrap();
    let sha256 = Sha256::of("root");
    let manifest = serde_json::json!({
        "image": "x", "version": "1", "root_hash": null,
        "outputs": [{"name": "x.root.squashfs", "format": "squashfs", "bytes": 4, "sha256": sha256}],
    });
    let manifest = manifest.to_string();
    fs_err::write(dir.join("manifest.json"), &manifest).unwrap();
    let sums = format!("{sha256}  x.root.squashfs\n{}  manifest.json\n", Sha256::of(&manifest));
    fs_err::write(dir.join("SHA256SUMS"), sums).unwrap();
}

#[test]
fn what_was_altered_is_named() {
    let dir = tempfile::tempdir().unwrap();
    outputs(dir.path());
    assert_eq!(verify(dir.path(), None).unwrap().files, 2);
    let told = |change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        outputs(dir.path());
        change(dir.path());
        format!("{:#}", verify(dir.path(), None).unwrap_err())
    };
    let root = "x.root.squashfs";
    let altered = told(&|dir| fs_err::write(dir.join(root), "boot").unwrap());
    assert!(altered.contains("x.root.squashfs: its SHA-256 is") && altered.contains("it was altered"), "{altered}");
    let missing = told(&|dir| fs_err::remove_file(dir.join(root)).unwrap());
    assert!(missing.contains("the file is missing"), "{missing}");
    let unfinished = told(&|dir| fs_err::remove_file(dir.join("SHA256SUMS")).unwrap());
    assert!(unfinished.contains("there is no SHA256SUMS"), "{unfinished}");
    let elsewhere = told(&|dir| fs_err::write(dir.join("SHA256SUMS"), "x  ../../etc/passwd\n").unwrap());
    assert!(elsewhere.contains("not the sums of a bake"), "{elsewhere}");
    let exchanged = told(&|dir| {
        fs_err::write(dir.join(root), "boot").unwrap();
        let manifest = Sha256::of_file(&dir.join("manifest.json")).unwrap().0;
        let sums = format!("{}  {root}\n{manifest}  manifest.json\n", Sha256::of("boot"));
        fs_err::write(dir.join("SHA256SUMS"), sums).unwrap();
    });
    assert!(exchanged.contains("manifest.json and SHA256SUMS disagree"), "{exchanged}");
}

/// A tree of two levels, computed here the plain way.
#[test]
fn the_root_hash_is_that_of_the_data() {
    let (blocks, salt) = (130u64, [7u8; 32]);
    let data: Vec<u8> = (0..blocks * 4096).map(|n| (n / 4096) as u8).collect();
    let hash = |block: &[u8]| *Sha256::of([&salt[..], block].concat()).as_bytes();
    let mut bottom: Vec<u8> = data.chunks(4096).flat_map(hash).collect();
    bottom.resize(2 * 4096, 0);
    let mut top: Vec<u8> = bottom.chunks(4096).flat_map(hash).collect();
    top.resize(4096, 0);
    let mut head = vec![0; 4096];
    head[..8].copy_from_slice(b"verity\0\0");
    head[32..38].copy_from_slice(b"sha256");
    head[72..80].copy_from_slice(&blocks.to_le_bytes());
    head[80] = 32;
    head[88..120].copy_from_slice(&salt);
    let file = tempfile::tempfile().unwrap();
    let hashes = 1 << 20;
    file.write_all_at(&data, 4096).unwrap();
    file.write_all_at(&[head, top.clone(), bottom].concat(), hashes).unwrap();
    let found = verity::recompute(&file, 4096, hashes).unwrap();
    assert_eq!(found.root_hash.as_bytes(), &hash(&top));
    assert!(found.tree_matches && found.data_bytes == blocks * 4096);
    file.write_all_at(&[1], hashes + 9000).unwrap();
    let damaged = verity::recompute(&file, 4096, hashes).unwrap();
    assert!(!damaged.tree_matches && damaged.root_hash == found.root_hash);
    for wrong in [0, u64::MAX, 1 << 30] {
        file.write_all_at(&wrong.to_le_bytes(), hashes + 72).unwrap();
        let told = verity::recompute(&file, 4096, hashes).unwrap_err().to_string();
        assert!(told.contains(&format!("of {wrong} blocks")), "{told}");
    }
    file.write_all_at(&blocks.to_le_bytes(), hashes + 72).unwrap();
    file.write_all_at(&[99], 4096 + 4097).unwrap();
    assert_ne!(verity::recompute(&file, 4096, hashes).unwrap().root_hash, found.root_hash);
}

#[test]
fn a_partition_is_judged_by_what_its_manifest_knows() {
    let json = serde_json::json!({
        "type": "root", "label": "1", "uuid": uuid::Uuid::nil(), "offset": 0, "bytes": 8192, "sha256": Sha256::of("all"),
    });
    let before: Partition = serde_json::from_value(json).unwrap();
    let found = Partition { used: Some(4096), sha256: Sha256::of("in use"), ..before.clone() };
    assert!(partition(&before, std::slice::from_ref(&found), "x").is_none(), "from before `used`");
    assert!(partition(&found, std::slice::from_ref(&found), "x").is_none());
    for other in
        [Partition { used: Some(8192), ..found.clone() }, Partition { sha256: Sha256::of("x"), ..found.clone() }]
    {
        assert!(partition(&found, &[other], "x").unwrap().what.contains("altered"));
    }
}
