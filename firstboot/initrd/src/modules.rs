//! Drivers: only those that the machine's own devices ask for, and what the root itself needs.
//!
//! `/modules/list` was worked out at bake time from the kernel's `modules.dep` and `modules.alias`: a line per module,
//! `name needs aliases…`. A module whose alias is [`REQUIRED`] is loaded on every machine, one whose alias is [`TRIED`] too, but
//! the machine may refuse it (a processor without the instructions), and one whose alias is [`FILE`] if the root is a file.

use fs_err::{self as fs, File};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::console::say;
use crate::fail::Failed;

/// Where the list and the modules are.
const DIRECTORY: &str = "/modules";
/// Stands for "always" among the aliases.
const REQUIRED: &str = "+";
/// Stands for "if it can be".
const TRIED: &str = "?";
/// Stands for "if the root is a file".
const FILE: &str = "@";
/// Stands for "nothing".
const NONE: &str = "-";

/// A module.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Module {
    /// What must be loaded before it, in order.
    needs: Vec<String>,
    /// Patterns of the devices it drives.
    aliases: Vec<String>,
}

/// The modules of this initramfs.
#[derive(Debug)]
pub(crate) struct List {
    modules: BTreeMap<String, Module>,
    loaded: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl List {
    /// Reads the list.
    pub(crate) fn read() -> Result<Self, Failed> {
        let text = fs::read_to_string(Path::new(DIRECTORY).join("list"));
        Ok(Self::parse(&text.map_err(|error| Failed::call("reading the list of drivers", error))?))
    }

    fn parse(text: &str) -> Self {
        let module = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let needs = words.next()?.split(',').filter(|need| *need != NONE).map(str::to_owned).collect();
            Some((name, Module { needs, aliases: words.map(str::to_owned).collect() }))
        };
        Self { modules: text.lines().filter_map(module).collect(), loaded: BTreeSet::new(), seen: BTreeSet::new() }
    }

    /// Loads what every machine needs.
    pub(crate) fn load_required(&mut self) -> Result<(), Failed> {
        for name in self.matching(|alias| alias == REQUIRED) {
            self.load(&name).map_err(|error| Failed::call(&format!("loading `{name}`"), error))?;
        }
        for name in self.matching(|alias| alias == TRIED) {
            let _ = self.load(&name);
        }
        Ok(())
    }

    /// Loads what a root in a file needs.
    pub(crate) fn load_for_file(&mut self) -> Result<(), Failed> {
        let names = self.matching(|alias| alias == FILE);
        names
            .iter()
            .try_for_each(|name| self.load(name).map_err(|error| Failed::call(&format!("loading `{name}`"), error)))
    }

    /// Loads drivers for devices that have appeared since the last call. One that refuses is said and passed over: it may
    /// be another's disk.
    pub(crate) fn load_for_devices(&mut self) -> Result<(), Failed> {
        for device in devices() {
            if !self.seen.insert(device.clone()) {
                continue;
            }
            for name in self.matching(|alias| alias.len() > 1 && matches(alias.as_bytes(), device.as_bytes())) {
                if let Err(error) = self.load(&name) {
                    say(&format!("driver `{name}` for {device}: {error}"));
                }
            }
        }
        Ok(())
    }

    fn matching(&self, test: impl Fn(&str) -> bool) -> Vec<String> {
        let wanted =
            |(name, module): (&String, &Module)| module.aliases.iter().any(|alias| test(alias)).then(|| name.clone());
        self.modules.iter().filter_map(wanted).collect()
    }

    fn load(&mut self, name: &str) -> nix::Result<()> {
        let needs = self.modules.get(name).map(|module| module.needs.clone()).unwrap_or_default();
        for one in needs.iter().map(String::as_str).chain([name]) {
            if !self.loaded.insert(one.to_owned()) {
                continue;
            }
            let path = Path::new(DIRECTORY).join(format!("{one}.ko"));
            let file = File::open(path).map_err(|_| Errno::ENOENT)?;
            match finit_module(file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// What the kernel calls every device it has no driver for yet, and those it has.
fn devices() -> Vec<String> {
    let list = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<_>>()
    };
    let buses = list(Path::new("/sys/bus"));
    let devices = buses.iter().flat_map(|bus| list(&bus.join("devices")));
    let name = |device: std::path::PathBuf| fs::read_to_string(device.join("modalias")).ok();
    devices.filter_map(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

/// Shell patterns, as modules.alias has them: `*`, `?` and `[…]`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|n| matches(rest, &text[n..])),
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([b'[', rest @ ..], [first, tail @ ..]) => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => in_class(&rest[..end], *first) && matches(&rest[end + 1..], tail),
            None => false,
        },
        ([a, rest @ ..], [b, tail @ ..]) => a == b && matches(rest, tail),
        _ => false,
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    match class {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_class(rest, byte),
        [one, rest @ ..] => *one == byte || in_class(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_modules_alias() {
        let device = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01";
        for (pattern, expected) in [
            ("pci:v*d*sv*sd*bc01sc06i01*", true),
            ("pci:v00008086d0000292[0-9A]sv*sd*bc*sc*i*", true),
            ("pci:v00008086d0000292[3-9]sv*sd*bc*sc*i*", false),
            ("pci:v0000808?d*", true),
            ("virtio:d00000002v*", false),
            ("pci:", false),
            ("pci:[", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), device.as_bytes()), expected, "{pattern}");
        }
    }

    #[test]
    fn the_list_says_what_is_needed_and_by_whom() {
        let list = List::parse("dm_verity dm_mod,dm_bufio +\nvirtio_blk - virtio:d00000002v* x\ndm_mod -\n\nbad\n");
        assert_eq!(list.modules.len(), 3);
        assert_eq!(list.modules["dm_verity"].needs, ["dm_mod", "dm_bufio"]);
        assert_eq!(list.matching(|alias| alias == REQUIRED), ["dm_verity"]);
        assert_eq!(list.matching(|alias| matches(alias.as_bytes(), b"virtio:d00000002v00001AF4")), ["virtio_blk"]);
        assert!(list.modules["virtio_blk"].needs.is_empty());
    }
}
