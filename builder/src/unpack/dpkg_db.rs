//! dpkg's database, written as `dpkg --unpack` leaves it (dpkg's `doc/triggers.txt` and `lib/dpkg/dump.c`).
//!
//! It lies under `/usr/lib/sysimage/dpkg` from the first file on, because `/var` of a node is empty at its first boot;
//! `/var/lib/dpkg` is a symbolic link to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::deb::Control;

/// The database's place in the tree.
pub const ADMIN_DIR: &str = "usr/lib/sysimage/dpkg";

/// Control files that are not kept under `info/`.
const NOT_KEPT: [&str; 1] = ["control"];

/// A dpkg database in a tree.
#[derive(Debug)]
pub struct Database {
    dir: PathBuf,
}

/// A diversion: `from` belongs to `package`; everyone else's file of that name goes to `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diversion {
    /// Name in the packages.
    pub from: String,
    /// Where the others' file goes.
    pub to: String,
    /// Owner of the diversion, `:` for the administrator's.
    pub package: String,
}

impl Database {
    /// Makes an empty database in a tree that has nothing yet.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        let dir = root.join(ADMIN_DIR);
        for sub in ["alternatives", "info", "parts", "triggers", "updates", "tmp.ci"] {
            fs_err::create_dir_all(dir.join(sub))?;
        }
        fs_err::write(dir.join("info/format"), "1\n")?;
        for file in ["status", "available", "diversions", "statoverride", "triggers/File", "triggers/Unincorp"] {
            fs_err::write(dir.join(file), "")?;
        }
        fs_err::create_dir_all(root.join("var/lib"))?;
        fs_err::os::unix::fs::symlink(Path::new("../..").join(ADMIN_DIR), root.join("var/lib/dpkg"))?;
        Ok(Self { dir })
    }

    /// The database of a tree that has one.
    pub fn open(root: &Path) -> Self {
        Self { dir: root.join(ADMIN_DIR) }
    }

    /// Path of one of the database's files on this host.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Records a package as unpacked: its `info/` files, its stanza in `status`, its interest in triggers.
    pub fn add(&self, control: &Control, list: &[String]) -> anyhow::Result<()> {
        let name = instance_name(control);
        let info = self.dir.join("info");
        let text = list.iter().fold(String::new(), |text, path| text + path + "\n");
        fs_err::write(info.join(format!("{name}.list")), text)?;
        for (file, (mode, bytes)) in &control.files {
            if NOT_KEPT.contains(&file.as_str()) {
                continue;
            }
            let path = info.join(format!("{name}.{file}"));
            fs_err::write(&path, bytes)?;
            set_mode(&path, *mode)?;
        }
        append(&self.dir.join("status"), &stanza(control))?;
        self.add_interests(&name, &control.text("triggers"))
    }

    fn add_interests(&self, name: &str, triggers: &str) -> anyhow::Result<()> {
        for line in triggers.lines() {
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else { continue };
            let Some(kind) = directive.strip_prefix("interest") else { continue };
            let awaited = if kind == "-noawait" { "/noawait" } else { "" };
            if trigger.starts_with('/') {
                append(&self.dir.join("triggers/File"), &format!("{trigger} {name}{awaited}\n"))?;
            } else {
                append(&self.dir.join("triggers").join(trigger), &format!("{name}{awaited}\n"))?;
            }
        }
        Ok(())
    }

    /// Activates, for the next dpkg run, the file triggers that paths just unpacked set off.
    pub fn activate(&self, interests: &BTreeSet<String>, lists: &[&[String]]) -> anyhow::Result<()> {
        let touches = |trigger: &str, path: &str| {
            path.strip_prefix(trigger).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let hit = interests.iter().filter(|trigger| lists.iter().copied().flatten().any(|path| touches(trigger, path)));
        let lines = hit.fold(String::new(), |lines, trigger| lines + trigger + " -\n");
        append(&self.dir.join("triggers/Unincorp"), &lines)
    }

    /// Paths some known package is interested in.
    pub fn file_interests(&self) -> anyhow::Result<BTreeSet<String>> {
        let text = fs_err::read_to_string(self.dir.join("triggers/File"))?;
        Ok(text.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect())
    }

    /// The diversions that preinst scripts have made so far.
    pub fn diversions(&self) -> anyhow::Result<Vec<Diversion>> {
        let text = fs_err::read_to_string(self.dir.join("diversions"))?;
        let lines: Vec<&str> = text.lines().collect();
        lines
            .chunks(3)
            .map(|three| match three {
                [from, to, package] => {
                    Ok(Diversion { from: (*from).into(), to: (*to).into(), package: (*package).into() })
                }
                _ => anyhow::bail!("dpkg's diversions file is damaged"),
            })
            .collect()
    }

    /// Takes a path off a package's list: another package replaced the file.
    pub fn disown(&self, package: &str, path: &str) -> anyhow::Result<()> {
        for entry in fs_err::read_dir(self.dir.join("info"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(instance) = name.strip_suffix(".list") else { continue };
            if instance.split(':').next() == Some(package) {
                let text = fs_err::read_to_string(entry.path())?;
                let kept =
                    text.lines().filter(|line| *line != path).fold(String::new(), |text, line| text + line + "\n");
                fs_err::write(entry.path(), kept)?;
            }
        }
        Ok(())
    }

    /// Which package each path belongs to, over all packages in the database.
    pub fn owners(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut owners = BTreeMap::new();
        let mut lists: Vec<PathBuf> = Vec::new();
        for entry in fs_err::read_dir(self.dir.join("info"))? {
            lists.push(entry?.path());
        }
        lists.sort();
        for path in lists.iter().filter(|path| path.extension().is_some_and(|ext| ext == "list")) {
            let name = path.file_stem().context("list without a name")?.to_string_lossy();
            let package = name.split(':').next().unwrap_or_default();
            for line in fs_err::read_to_string(path)?.lines() {
                owners.entry(line.to_owned()).or_insert_with(|| package.to_owned());
            }
        }
        Ok(owners)
    }
}

/// Name under `info/`: with the architecture if several architectures of the package may be installed together.
pub fn instance_name(control: &Control) -> String {
    let name = control.paragraph.get("Package");
    if control.paragraph.get("Multi-Arch") == "same" {
        format!("{name}:{}", control.paragraph.get("Architecture"))
    } else {
        name.to_owned()
    }
}

/// The status paragraph of a package that is unpacked for the first time. dpkg puts the fields into its own order when it
/// next writes the file. `newconffile` tells `dpkg --configure` that the `.dpkg-new` file has no predecessor.
fn stanza(control: &Control) -> String {
    let mut text = String::new();
    for (name, value) in control.paragraph.fields() {
        let gap = if value.starts_with('\n') { "" } else { " " };
        let _ = writeln!(text, "{name}:{gap}{value}");
        if name.eq_ignore_ascii_case("Package") {
            text += "Status: install ok unpacked\n";
        }
    }
    // A line may begin with a flag (`remove-on-upgrade`), which dpkg writes last.
    let lines = control.text("conffiles");
    let conffiles: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if !conffiles.is_empty() {
        text += "Conffiles:\n";
        for line in conffiles {
            let (flag, path) = line.split_once(' ').map_or(("", line), |(flag, path)| (flag, path));
            let _ = writeln!(text, "{}", format!(" {path} newconffile {flag}").trim_end());
        }
    }
    text + "\n"
}

fn append(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// Sets permission bits of a file of ours.
pub fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}
