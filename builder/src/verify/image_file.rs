//! The image as one file, where it lies in the outputs `pxe` and `iso`: its root must have the root hash of the manifest, and
//! what boots it must say the same.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::AGAIN;
use crate::disk::{gpt, verity};
use crate::outputs::image_file::{BLOCK, PATH};
use crate::outputs::iso;
use crate::problem::Problem;

/// Checks one output; those without an image file or root hash in them have nothing to check.
pub(super) fn check(path: &Path, root_hash: Option<&str>) -> anyhow::Result<Option<Problem>> {
    let problem = |what: String| Some(Problem::new(what, path.display().to_string(), AGAIN));
    let Some(root_hash) = root_hash else { return Ok(problem("manifest.json has no root hash".to_owned())) };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = match fs_err::File::open(path) {
        Ok(file) => file.into_parts().0,
        // Said already, with the sums.
        Err(_) => return Ok(None),
    };
    let at = if name.ends_with(".ipxe") {
        let script = fs_err::read_to_string(path)?;
        let same = script.split_whitespace().any(|word| word.strip_prefix("roothash=") == Some(root_hash));
        return Ok(if same { None } else { problem("it boots another root hash than manifest.json says".to_owned()) });
    } else if name.ends_with(".cpio") {
        in_archive(&file, 0)
    } else if name.ends_with(".iso") {
        if !is_bootable(&file, path)? {
            return Ok(problem("its boot catalog does not name its partition: no CD drive boots it".to_owned()));
        }
        if find(&file, format!("roothash={root_hash} ").as_bytes())?.is_none() {
            return Ok(problem("it boots another root hash than manifest.json says".to_owned()));
        }
        // Files of a file system that was filled once are in one piece.
        find(&file, &entry(PATH))?.and_then(|at| in_archive(&file, at.checked_sub(HEAD)?))
    } else {
        return Ok(None);
    };
    let Some(at) = at else { return Ok(problem(format!("there is no `{PATH}` in it"))) };
    let mut head = [0; 48];
    file.read_exact_at(&mut head, at)?;
    let used = u64::from_le_bytes(std::array::from_fn(|n| head[40 + n]));
    let end = used.checked_next_multiple_of(BLOCK).and_then(|used| used.checked_add(at));
    let (true, Some(end)) = (head.starts_with(b"hsqs"), end) else {
        return Ok(problem(format!("`{PATH}` in it does not begin with a root")));
    };
    Ok(match verity::recompute(&file, at, end) {
        Err(error) => problem(format!("{error:#}")),
        Ok(found) if found.root_hash.to_string() != root_hash => {
            problem(format!("its root has the root hash {}, manifest.json says {root_hash}", found.root_hash))
        }
        Ok(found) if !found.tree_matches || found.data_bytes != end - at => {
            problem("its hash tree is not that of its root".to_owned())
        }
        Ok(_) => None,
    })
}

/// Whether CD drives and disks are told of the same partition.
fn is_bootable(file: &File, path: &Path) -> anyhow::Result<bool> {
    let Ok(table) = gpt::read(path) else { return Ok(false) };
    let mut at = [0; 4];
    file.read_exact_at(&mut at, u64::from(iso::CATALOG) * iso::BLOCK as u64 + 40)?;
    let esp = u64::from(u32::from_le_bytes(at)) * iso::BLOCK as u64;
    Ok(table.partitions.first().is_some_and(|one| one.kind == gpt::Kind::Esp && one.offset == esp))
}

/// The name of a file as an archive has it.
fn entry(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The first place of some bytes.
fn find(file: &File, what: &[u8]) -> anyhow::Result<Option<u64>> {
    const CHUNK: usize = 1 << 20;
    let bytes = file.metadata()?.len();
    let mut buffer = vec![0; CHUNK + what.len()];
    for at in (0..bytes).step_by(CHUNK) {
        let part = &mut buffer[..(bytes - at).min((CHUNK + what.len()) as u64) as usize];
        file.read_exact_at(part, at)?;
        if let Some(n) = part.windows(what.len()).position(|found| found == what) {
            return Ok(Some(at + n as u64));
        }
    }
    Ok(None)
}

/// Of an archive's entry, before its name.
const HEAD: u64 = 110;

/// Where the file's content is in an archive of the initramfs (`newc`) that has an entry at `at`.
fn in_archive(file: &File, mut at: u64) -> Option<u64> {
    loop {
        let mut head = [0; HEAD as usize];
        file.read_exact_at(&mut head, at).ok()?;
        let head = std::str::from_utf8(&head).ok().filter(|head| head.starts_with("070701"))?;
        let field = |n: usize| u64::from_str_radix(head.get(6 + 8 * n..14 + 8 * n)?, 16).ok();
        let (bytes, name_bytes) = (field(6)?, field(11)?);
        let mut name = vec![0; usize::try_from(name_bytes).ok().filter(|bytes| (1..4096).contains(bytes))?];
        file.read_exact_at(&mut name, at + HEAD).ok()?;
        // Aligned within the archive, which is where the first entry is.
        let content = at + (HEAD + name_bytes).next_multiple_of(4);
        if name.strip_suffix(b"\0") == Some(PATH.as_bytes()) {
            return Some(content);
        }
        at = content.checked_add(bytes.checked_next_multiple_of(4)?)?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::digest::Sha256;
    use crate::disk::cpio;

    /// Three blocks and their tree of one level, in an archive; and the root hash.
    fn archive() -> (Vec<u8>, String) {
        let block = BLOCK as usize;
        let mut root = vec![5; 3 * block];
        root[..4].copy_from_slice(b"hsqs");
        root[40..48].copy_from_slice(&(2 * BLOCK + 100).to_le_bytes());
        let mut top: Vec<u8> = root.chunks(block).flat_map(|block| *Sha256::of(block).as_bytes()).collect();
        top.resize(block, 0);
        let mut tree = vec![0; block];
        tree[..8].copy_from_slice(b"verity\0\0");
        tree[32..38].copy_from_slice(b"sha256");
        tree[72] = 3;
        let root_hash = Sha256::of(&top).to_string();
        let mut head = cpio::Archive::default();
        head.directory("pgkiln");
        let parts = [head.into_head_of(PATH, 5 * BLOCK as u32), root, tree, top, cpio::end()];
        (parts.concat(), root_hash)
    }

    #[test]
    fn a_root_archive_is_judged_by_its_root_and_a_script_by_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let (bytes, root_hash) = archive();
        let told = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs_err::write(&path, bytes).unwrap();
            check(&path, Some(&root_hash)).unwrap().map(|problem| problem.what).unwrap_or_default()
        };
        assert_eq!(told("x.root.cpio", &bytes), "");
        let at = bytes.windows(4).position(|part| part == b"hsqs").unwrap();
        let name = bytes.windows(PATH.len()).position(|part| part == PATH.as_bytes()).unwrap();
        for (place, expected) in [
            (at, "does not begin with a root"),
            (at + 5000, "its root has the root hash"),
            (at + 16400, "not that of its root"),
            (name, "there is no `pgkiln/root.img` in it"),
        ] {
            let mut bytes = bytes.clone();
            bytes[place] ^= 1;
            let told = told("x.root.cpio", &bytes);
            assert!(told.contains(expected), "{place}: {told}");
        }
        assert_eq!(told("x.ipxe", format!("kernel x roothash={root_hash} ro").as_bytes()), "");
        assert!(told("x.ipxe", b"kernel x roothash=0 ro").contains("boots another root hash"));
        assert_eq!(told("x.vmlinuz", b"anything"), "");
    }

    #[test]
    fn a_medium_is_judged_by_its_partition_its_words_and_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.iso");
        let (archive, root_hash) = archive();
        let esp = uuid::uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        let told = |words: &str, first: u64, damaged: Option<u64>| {
            let file = fs_err::File::create(&path).unwrap().into_parts().0;
            gpt::tests::write(&file, esp, 2, first, first + 2047).unwrap();
            let entry = (u64::from(iso::CATALOG) * iso::BLOCK as u64) + 40;
            file.write_all_at(&512u32.to_le_bytes(), entry).unwrap();
            file.write_all_at(words.as_bytes(), (1 << 20) - 5).unwrap();
            // Where a chunk of the search ends.
            file.write_all_at(&archive, (2 << 20) - 2).unwrap();
            damaged.map(|at| file.write_all_at(b"?", (2 << 20) - 2 + at)).transpose().unwrap();
            file.set_len(3 << 20).unwrap();
            check(&path, Some(&root_hash)).unwrap().map(|problem| problem.what).unwrap_or_default()
        };
        let words = format!("roothash={root_hash} ro");
        assert_eq!(told(&words, 2048, None), "");
        assert!(told(&words, 4096, None).contains("no CD drive boots it"));
        assert!(told("roothash=0 ro", 2048, None).contains("boots another root hash"));
        assert!(told(&words, 2048, Some(9000)).contains("its root has the root hash"));
        let name = archive.windows(PATH.len()).position(|part| part == PATH.as_bytes()).unwrap() as u64;
        assert!(told(&words, 2048, Some(name)).contains("there is no `pgkiln/root.img`"));
    }

    #[test]
    fn the_file_is_found_in_an_archive_and_nonsense_is_not_followed() {
        let mut archive = cpio::Archive::default();
        archive.directory("pgkiln");
        let mut bytes = archive.into_head_of(PATH, 8);
        let place = bytes.len() as u64;
        bytes.extend(b"hsqs1234");
        bytes.extend(cpio::end());
        let found = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            in_archive(&file, 0)
        };
        assert_eq!(found(&bytes), Some(place));
        bytes[6 + 8 * 11..14 + 8 * 11].fill(b'f');
        assert_eq!(found(&bytes), None);
        assert_eq!(found(b"short"), None);
    }
}
