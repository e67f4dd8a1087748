//! Two root trees compared as a node sees them: path, type, mode, owner (by name), extended attributes, content.
//!
//! Differences are allowed one by one, in a committed list with a reason each; an entry that explains nothing any more is as
//! wrong as a difference nobody explained.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use anyhow::Context;
use nix::libc;
use pgkiln::digest::Sha256;
use pgkiln::unpack::tree::Ids;
use walkdir::WalkDir;

/// What is at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    mode: u32,
    owner: String,
    /// When it was changed, if that matters.
    modified: Option<i64>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// Digest of a file, target of a link.
    pub(crate) content: String,
    /// Names of the same file (hard links) in this tree; what has names elsewhere too, a backup say, is no different for it.
    links: usize,
}

/// Reads a whole tree; owners by the names it gives them.
pub fn read(root: &Path) -> anyhow::Result<BTreeMap<String, Node>> {
    let ids = Ids::read(root)?;
    let (users, groups) = ids.names();
    let name = |table: &BTreeMap<u32, &str>, id: u32| table.get(&id).map_or(id.to_string(), |name| (*name).to_owned());
    let node = |meta: &Metadata| (format!("{}:{}", name(&users, meta.uid()), name(&groups, meta.gid())), None);
    walk(WalkDir::new(root).min_depth(1), root, &node)
}

/// The same with everything a file system keeps: the root itself, owners as numbers, and times.
pub fn read_exactly(root: &Path) -> anyhow::Result<BTreeMap<String, Node>> {
    let node = |meta: &Metadata| (format!("{}:{}", meta.uid(), meta.gid()), Some(meta.mtime()));
    walk(WalkDir::new(root), root, &node)
}

fn walk(
    tree: WalkDir,
    root: &Path,
    owner_and_time: &dyn Fn(&Metadata) -> (String, Option<i64>),
) -> anyhow::Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    let mut inodes: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for entry in tree {
        let entry = entry?;
        let meta = entry.metadata()?;
        let kind = meta.file_type();
        let content = if kind.is_file() {
            Sha256::of_file(entry.path())?.0.to_string()
        } else if kind.is_symlink() {
            format!("-> {}", fs_err::read_link(entry.path())?.display())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {:x}", meta.rdev())
        } else {
            String::new()
        };
        let (owner, modified) = owner_and_time(&meta);
        let node = Node { mode: meta.mode(), owner, modified, xattrs: xattrs(entry.path())?, content, links: 1 };
        let path = format!("/{}", entry.path().strip_prefix(root)?.to_str().context("a path is UTF-8")?);
        inodes.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
        nodes.insert(path, node);
    }
    for names in inodes.values().filter(|names| names.len() > 1) {
        for name in names {
            nodes.get_mut(name).context("a path just read")?.links = names.len();
        }
    }
    Ok(nodes)
}

/// Extended attributes of a path, a link's own.
fn xattrs(path: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0_u8; 4096];
    #[expect(unsafe_code, reason = "extended attributes have no safe wrapper here")]
    // SAFETY: path is a C string, the buffer is as long as we say.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).context("listing extended attributes")?);
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name)?;
        let mut value = vec![0_u8; 4096];
        #[expect(unsafe_code, reason = "extended attributes have no safe wrapper here")]
        // SAFETY: both names are C strings, the buffer is as long as we say.
        let length = unsafe { libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(length).context("reading an extended attribute")?);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}

/// What differs, by path: `ours` against `theirs`.
pub fn differences(ours: &BTreeMap<String, Node>, theirs: &BTreeMap<String, Node>) -> BTreeMap<String, String> {
    let content =
        |_: &str, [ours, theirs]: [&Node; 2]| format!("content {:.20} / {:.20}", ours.content, theirs.content);
    differences_with(ours, theirs, content)
}

/// The same; `content` says how the content at a path differs.
pub fn differences_with(
    ours: &BTreeMap<String, Node>,
    theirs: &BTreeMap<String, Node>,
    content: impl Fn(&str, [&Node; 2]) -> String,
) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (path, node) in ours {
        match theirs.get(path) {
            None => _ = found.insert(path.clone(), "only ours".to_owned()),
            Some(other) if other != node => {
                let mut text = describe(node, other);
                if node.content != other.content {
                    text.push_str(&content(path, [node, other]));
                }
                found.insert(path.clone(), text);
            }
            Some(_) => {}
        }
    }
    for path in theirs.keys().filter(|path| !ours.contains_key(*path)) {
        found.insert(path.clone(), "only theirs".to_owned());
    }
    found
}

/// Everything but the content.
fn describe(ours: &Node, theirs: &Node) -> String {
    let mut text = String::new();
    if ours.mode != theirs.mode {
        let _ = write!(text, "mode {:o} / {:o} ", ours.mode, theirs.mode);
    }
    if ours.owner != theirs.owner {
        let _ = write!(text, "owner {} / {} ", ours.owner, theirs.owner);
    }
    if let (Some(ours), Some(theirs)) = (ours.modified, theirs.modified)
        && ours != theirs
    {
        let _ = write!(text, "time {ours} / {theirs} ");
    }
    if ours.xattrs != theirs.xattrs {
        let _ = write!(text, "xattrs {:?} / {:?} ", ours.xattrs, theirs.xattrs);
    }
    if ours.links != theirs.links {
        let _ = write!(text, "hard links {} / {} ", ours.links, theirs.links);
    }
    text
}

/// Allowed differences.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    difference: Vec<Entry>,
}

/// One of them.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Paths: `?` is one byte and `*` anything within a component, `**` anything.
    pattern: String,
    /// Why the trees differ there.
    reason: String,
}

impl Allowed {
    /// Reads a committed list.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let allowed: Self = toml::from_str(&fs_err::read_to_string(path)?)?;
        let silent = allowed.difference.iter().find(|entry| entry.reason.trim().len() < 10);
        anyhow::ensure!(silent.is_none(), "an allowed difference has no reason: {silent:?}");
        Ok(allowed)
    }

    /// What the list does not explain, and what of the list explains nothing.
    pub fn judge(&self, differences: &BTreeMap<String, String>) -> Vec<String> {
        let mut used = vec![false; self.difference.len()];
        let mut wrong = Vec::new();
        for (path, what) in differences {
            match self.difference.iter().position(|entry| matches(entry.pattern.as_bytes(), path.as_bytes())) {
                Some(index) => used[index] = true,
                None => wrong.push(format!("unexplained: {path}: {what}")),
            }
        }
        let unused = self.difference.iter().zip(used).filter(|(_, used)| !used);
        wrong.extend(unused.map(|(entry, _)| format!("explains nothing: {}", entry.pattern)));
        wrong
    }
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|skip| matches(rest, &text[skip..])),
        [b'*', rest @ ..] => {
            let component = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=component).any(|skip| matches(rest, &text[skip..]))
        }
        [b'?', rest @ ..] => text.first().is_some_and(|byte| *byte != b'/') && matches(rest, &text[1..]),
        [byte, rest @ ..] => text.first() == Some(byte) && matches(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_seen_and_every_entry_must_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let tree = |name: &str, content: &str, mode: u32| {
            let root = dir.path().join(name);
            fs_err::create_dir_all(root.join("etc")).unwrap();
            fs_err::write(root.join("etc/passwd"), "root:x:0:0::/:\n").unwrap();
            fs_err::write(root.join("etc/file"), content).unwrap();
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs_err::set_permissions(root.join("etc/file"), permissions).unwrap();
            read(&root).unwrap()
        };
        let base = tree("a", "x", 0o644);
        assert!(differences(&base, &tree("b", "x", 0o644)).is_empty());
        assert_eq!(differences(&base, &tree("c", "y", 0o644)).keys().collect::<Vec<_>>(), ["/etc/file"]);
        let mode = differences(&base, &tree("d", "x", 0o600));
        assert!(mode["/etc/file"].starts_with("mode 100644 / 100600"), "{mode:?}");
        let allowed = |pattern: &str| Allowed {
            difference: vec![Entry { pattern: pattern.into(), reason: "for this test".into() }],
        };
        assert!(allowed("/etc/*").judge(&mode).is_empty());
        assert_eq!(allowed("/usr/**").judge(&mode).len(), 2, "unexplained and unused");
        assert!(!matches(b"/etc/*", b"/etc/a/b") && matches(b"/etc/**", b"/etc/a/b"));

        fs_err::hard_link(dir.path().join("a/etc/file"), dir.path().join("outside")).unwrap();
        assert!(
            differences(&base, &read(&dir.path().join("a")).unwrap()).is_empty(),
            "a name outside is not the tree's"
        );
        fs_err::hard_link(dir.path().join("a/etc/file"), dir.path().join("a/etc/again")).unwrap();
        let again = differences(&base, &read(&dir.path().join("a")).unwrap());
        assert_eq!(again["/etc/again"], "only theirs");
        assert_eq!(again["/etc/file"], "hard links 1 / 2 ");
    }
}
