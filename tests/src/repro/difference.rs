//! What differs between the outputs of two bakes, for a person who has to find out why: values of the manifest, files of the
//! root, and where in each output the first other byte is.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgkiln::disk::gpt;
use pgkiln::sandbox::Sandbox;
use serde_json::Value;

use crate::tree_diff::{self, Node};

/// Files compared at a time.
const CHUNK: u64 = 1 << 20;
/// Bytes shown of each side where they differ.
const SHOWN: usize = 24;
/// Paths listed of two roots; a time that is wrong everywhere needs no more.
const PATHS: usize = 200;

/// Unpacks root images.
pub struct Unpacker<'a> {
    /// The tool tree, made when it is needed.
    pub tools: &'a dyn Fn() -> anyhow::Result<PathBuf>,
    /// Where the trees go, which must be empty.
    pub work: &'a Path,
}

impl Unpacker<'_> {
    fn unpack(&self, image: &Path, to: &str) -> anyhow::Result<PathBuf> {
        let dir = image.parent().context("an image is in a directory")?;
        let name = image.file_name().and_then(|name| name.to_str()).context("name of the image")?;
        fs_err::create_dir_all(self.work)?;
        let sandbox = Sandbox::new(&(self.tools)()?, 0).bind(dir, "mnt", true).bind(self.work, "srv", false);
        sandbox.run(&["unsquashfs", "-no-progress", "-dest", &format!("/srv/{to}"), &format!("/mnt/{name}")])?;
        Ok(self.work.join(to))
    }
}

/// Everything that differs between two directories with a bake's outputs, causes before consequences; nothing if they are equal.
pub fn differences(one: &Path, other: &Path, unpacker: &Unpacker<'_>) -> anyhow::Result<Vec<String>> {
    let (ours, theirs) = (names(one)?, names(other)?);
    let mut found = manifests(one, other)?;
    let mut outputs = Vec::new();
    for name in ours.iter().filter(|name| theirs.contains(name)) {
        let Some(gap) = gap(&one.join(name), &other.join(name))? else { continue };
        if name.ends_with(".squashfs") {
            let trees = [unpacker.unpack(&one.join(name), "one")?, unpacker.unpack(&other.join(name), "other")?];
            let files = trees_differ(&trees[0], &trees[1])?;
            if files.is_empty() {
                found.push(format!("{name}: the same files; the file system around them differs"));
            }
            let more = files.len().saturating_sub(PATHS);
            found.extend(files.into_iter().take(PATHS));
            found.extend((more > 0).then(|| format!("and {more} paths more")));
        }
        outputs.push(format!("{name}: {gap}{}", partition(&one.join(name), gap.first)));
    }
    found.append(&mut outputs);
    let only = |here: &[String], there: &[String], dir: &Path| -> Vec<String> {
        let alone = here.iter().filter(|name| !there.contains(name));
        alone.map(|name| format!("{name}: only in {}", dir.display())).collect()
    };
    found.extend(only(&ours, &theirs, one));
    found.extend(only(&theirs, &ours, other));
    Ok(found)
}

fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let name = |entry: std::io::Result<fs_err::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = fs_err::read_dir(dir)?.map(name).collect::<std::io::Result<Vec<String>>>()?;
    names.sort();
    Ok(names)
}

/// Values of the manifests that differ and are not lists: versions and digests of what the bake was made of.
fn manifests(one: &Path, other: &Path) -> anyhow::Result<Vec<String>> {
    let read = |dir: &Path| -> anyhow::Result<Value> {
        let path = dir.join("manifest.json");
        match path.is_file() {
            true => {
                serde_json::from_slice(&fs_err::read(&path)?).with_context(|| format!("reading {}", path.display()))
            }
            false => Ok(Value::Null),
        }
    };
    let (ours, theirs) = (read(one)?, read(other)?);
    let fields = ours.as_object().into_iter().flatten().filter(|(_, value)| !value.is_array());
    let differ = fields.filter(|(name, value)| theirs.get(name) != Some(value));
    let line = |(name, value): (&String, &Value)| {
        format!("manifest.json: {name} {value} / {}", theirs.get(name).unwrap_or(&Value::Null))
    };
    Ok(differ.map(line).collect())
}

/// Where two files differ.
struct Gap {
    bytes: [u64; 2],
    /// Place of the first byte that differs or that only one has.
    first: u64,
    /// What is there.
    there: [Vec<u8>; 2],
    /// How many differ where both have some.
    count: u64,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes: [one, other], first, there, count } = self;
        let [here, there] = [&there[0], &there[1]].map(|bytes| bytes.escape_ascii());
        write!(f, "{one} / {other} bytes, {count} differ, the first at {first}: `{here}` / `{there}`")
    }
}

fn gap(one: &Path, other: &Path) -> anyhow::Result<Option<Gap>> {
    let (mut ours, mut theirs) = (fs_err::File::open(one)?, fs_err::File::open(other)?);
    let bytes = [ours.metadata()?.len(), theirs.metadata()?.len()];
    let (mut at, mut count, mut found) = (0, 0, None);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    loop {
        a.clear();
        b.clear();
        ours.by_ref().take(CHUNK).read_to_end(&mut a)?;
        theirs.by_ref().take(CHUNK).read_to_end(&mut b)?;
        if a != b {
            let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
            count += a.iter().zip(&b).filter(|(a, b)| a != b).count() as u64;
            let there = |bytes: &[u8]| bytes.iter().skip(same).take(SHOWN).copied().collect();
            found.get_or_insert_with(|| (at + same as u64, [there(&a), there(&b)]));
        }
        if a.is_empty() || b.is_empty() {
            return Ok(found.map(|(first, there)| Gap { bytes, first, there, count }));
        }
        at += CHUNK;
    }
}

/// Which partition of a disk a byte is in; nothing to say of anything else.
fn partition(file: &Path, at: u64) -> String {
    let partitions = gpt::read(file).map(|table| table.partitions).unwrap_or_default();
    let found = partitions.iter().find(|one| (one.offset..one.offset + one.bytes).contains(&at));
    found.map(|one| format!(", in partition `{}`", one.kind.name())).unwrap_or_default()
}

/// Paths of two trees that differ, and how.
pub(super) fn trees_differ(one: &Path, other: &Path) -> anyhow::Result<Vec<String>> {
    let (ours, theirs) = (tree_diff::read_exactly(one)?, tree_diff::read_exactly(other)?);
    let content = |path: &str, [a, b]: [&Node; 2]| {
        let files = [one, other].map(|root| root.join(path.trim_start_matches('/')));
        let both_files = files.iter().all(|file| file.symlink_metadata().is_ok_and(|meta| meta.is_file()));
        match both_files.then(|| gap(&files[0], &files[1])).transpose() {
            Ok(Some(Some(gap))) => format!("sha256 {:.12} / {:.12}, {gap}", a.content, b.content),
            Ok(_) => format!("{} / {}", a.content, b.content),
            Err(error) => format!("and cannot be read again: {error:#}"),
        }
    };
    let line = |(path, how): (String, String)| match how.as_str() {
        "only ours" => format!("{path}: only in the first"),
        "only theirs" => format!("{path}: only in the second"),
        how => format!("{path}: {}", how.trim_end()),
    };
    Ok(tree_diff::differences_with(&ours, &theirs, content).into_iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_between_two_roots_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let tree = |name: &str, content: &str, mode: u32, target: &str| {
            let root = dir.path().join(name);
            fs_err::create_dir_all(root.join("etc")).unwrap();
            fs_err::write(root.join("etc/file"), content).unwrap();
            fs_err::os::unix::fs::symlink(target, root.join("etc/link")).unwrap();
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs_err::set_permissions(root.join("etc/file"), permissions).unwrap();
            for path in ["etc/file", "etc", ""] {
                let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7);
                fs_err::File::open(root.join(path)).unwrap().into_parts().0.set_modified(time).unwrap();
            }
            // A link's own time cannot be set that way.
            root
        };
        let same_links = |found: Vec<String>| -> Vec<String> {
            found.into_iter().filter(|line| !line.starts_with("/etc/link: time")).collect()
        };
        let one = tree("one", "made at 10:00\n", 0o644, "a");
        assert_eq!(same_links(trees_differ(&one, &tree("same", "made at 10:00\n", 0o644, "a")).unwrap()), [""; 0]);
        let other = tree("other", "made at 11:00\n", 0o600, "b");
        fs_err::write(other.join("new"), "").unwrap();
        let found = trees_differ(&one, &other).unwrap();
        let line = |path: &str| found.iter().find(|line| line.starts_with(path)).unwrap();
        assert!(line("/etc/file: ").contains("mode 100644 / 100600 sha256 "), "{found:?}");
        assert!(
            line("/etc/file: ").ends_with(r"14 / 14 bytes, 1 differ, the first at 9: `0:00\n` / `1:00\n`"),
            "{found:?}"
        );
        assert!(line("/etc/link: ").ends_with("-> a / -> b"), "{found:?}");
        assert_eq!(line("/new"), "/new: only in the second");
    }

    #[test]
    fn outputs_and_values_of_the_manifest_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = |name: &str, agent: &str, disk: &[u8]| {
            let out = dir.path().join(name);
            fs_err::create_dir_all(&out).unwrap();
            fs_err::write(out.join("manifest.json"), format!(r#"{{"agent_sha256": "{agent}", "files": ["{agent}"]}}"#))
                .unwrap();
            fs_err::write(out.join("x.raw"), disk).unwrap();
            out
        };
        let unpacker = Unpacker { tools: &|| anyhow::bail!("no root differs"), work: dir.path() };
        let one = outputs("one", "a", b"the same");
        assert_eq!(differences(&one, &outputs("same", "a", b"the same"), &unpacker).unwrap(), [""; 0]);
        let mut long = vec![0; CHUNK as usize + 3];
        let [short, other] = [outputs("short", "a", &long), {
            long[CHUNK as usize + 1] = b'!';
            outputs("other", "b", &long)
        }];
        fs_err::write(other.join("more"), "").unwrap();
        let found = differences(&short, &other, &unpacker).unwrap();
        assert_eq!(found[0], r#"manifest.json: agent_sha256 "a" / "b""#);
        assert!(found[1].starts_with("manifest.json: 37 / 37 bytes"), "{found:?}");
        assert_eq!(found[2], r"x.raw: 1048579 / 1048579 bytes, 1 differ, the first at 1048577: `\x00\x00` / `!\x00`");
        assert_eq!(found[3], format!("more: only in {}", other.display()));
    }
}
