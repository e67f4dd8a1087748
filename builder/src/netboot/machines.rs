//! Who may ask: machines by MAC address, with their metadata, from a directory of seeds or a cluster's own directory.

use std::collections::BTreeMap;
use std::path::Path;

use firstboot::spec::{NodeSpec, SystemDisk};

use crate::cluster::{Cluster, SeedFormat};
use crate::problem::{Problem, Problems};

/// What a machine is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Run the image from memory, with its data on a disk
    Live,
    /// Write the image to a disk and restart from it
    Install,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its place in its cluster.
    pub slot: String,
    /// Its cluster.
    pub cluster: String,
    /// What it is to do.
    pub mode: Mode,
    /// The disk its metadata names: needed before there is a network to read the metadata.
    pub disk: Option<SystemDisk>,
    /// NoCloud documents by name.
    pub documents: BTreeMap<&'static str, Vec<u8>>,
}

/// All machines by MAC address, as [`mac`] writes it.
#[derive(Debug, Clone, Default)]
pub struct Machines(pub BTreeMap<String, Machine>);

/// Documents of a seed, and whether there must be one.
const DOCUMENTS: [(&str, bool); 3] = [("meta-data", true), ("user-data", true), ("network-config", false)];

/// A MAC address with hyphens and lower-case digits (iPXE's `hexhyp`).
pub(super) fn mac(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let good = |part: &&str| part.len() == 2 && part.chars().all(|c| c.is_ascii_hexdigit());
    (parts.len() == 6 && parts.iter().all(good)).then(|| parts.join("-").to_ascii_lowercase())
}

impl Machines {
    /// From a directory with one NoCloud directory per machine, named by its MAC address.
    pub fn from_seeds(dir: &Path, mode: Mode) -> anyhow::Result<Self> {
        let mut found = Self::default();
        let mut problems = Vec::new();
        let mut entries = Vec::new();
        for entry in fs_err::read_dir(dir)? {
            entries.push(entry?.path());
        }
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let place = path.display().to_string();
            match mac(&name) {
                Some(mac) => match read(&path, mode) {
                    Ok(machine) => found.add(mac, machine, &place, &mut problems),
                    Err(more) => problems.extend(more),
                },
                None => {
                    let remedy = "name each seed by the MAC address its machine boots with: 52-54-00-12-34-56";
                    problems.push(Problem::new(format!("`{name}` is no MAC address"), place, remedy));
                }
            }
        }
        found.checked(problems, &dir.display().to_string())
    }

    /// From a cluster whose nodes have MAC addresses; their seeds are made here, without secrets.
    pub fn from_cluster(cluster: &Cluster, mode: Mode) -> anyhow::Result<Self> {
        let place = cluster.dir().join("cluster.toml").display().to_string();
        let (mut found, mut problems) = (Self::default(), Vec::new());
        let scratch = tempfile::tempdir()?;
        for node in &cluster.definition.nodes {
            let Some(mac) = node.mac.as_deref().and_then(mac) else {
                let what = format!("node `{}` has no `mac`", node.slot);
                problems.push(Problem::new(what, &place, "add `mac = \"52:54:00:12:34:56\"` to the node"));
                continue;
            };
            let seed = scratch.path().join(&node.slot);
            cluster.write_seed(&node.slot, SeedFormat::Directory, &seed, false)?;
            match read(&seed, mode) {
                Ok(machine) => found.add(mac, machine, &place, &mut problems),
                Err(more) => problems.extend(more),
            }
        }
        found.checked(problems, &place)
    }

    fn add(&mut self, mac: String, machine: Machine, place: &str, problems: &mut Vec<Problem>) {
        let slot = machine.slot.clone();
        if let Some(twin) = self.0.insert(mac.clone(), machine) {
            let what = format!("`{}` and `{slot}` have the same MAC address {mac}", twin.slot);
            problems.push(Problem::new(what, place, "give each machine the address of its own network card"));
        }
    }

    fn checked(self, problems: Vec<Problem>, place: &str) -> anyhow::Result<Self> {
        match (problems.is_empty(), self.0.is_empty()) {
            (false, _) => Err(Problems(problems).into()),
            (true, true) => {
                Err(Problem::new("no machine is known here", place, "add one, named by its MAC address").into())
            }
            (true, false) => Ok(self),
        }
    }

    /// Has machines installed, by slot or MAC address.
    pub fn install(&mut self, wanted: &[String]) -> Result<(), Problem> {
        for name in wanted {
            let by_mac = mac(name);
            let mut hits = 0;
            for (mac, machine) in &mut self.0 {
                if machine.slot == *name || by_mac.as_ref() == Some(mac) {
                    machine.mode = Mode::Install;
                    hits += 1;
                }
            }
            if hits != 1 {
                let known: Vec<&str> = self.0.values().map(|machine| machine.slot.as_str()).collect();
                let remedy = format!("name one of {}, or a MAC address", known.join(", "));
                return Err(Problem::new(format!("`{name}` names {hits} machines"), "--install", remedy));
            }
        }
        Ok(())
    }
}

/// A seed, as its machine will read it: whatever the machine would refuse is refused here, before anything is switched on.
fn read(dir: &Path, mode: Mode) -> Result<Machine, Vec<Problem>> {
    let mut documents = BTreeMap::new();
    for (name, needed) in DOCUMENTS {
        let path = dir.join(name);
        let place = path.display().to_string();
        match fs_err::read(&path) {
            Ok(bytes) => drop(documents.insert(name, bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !needed => {}
            Err(error) => {
                let remedy = "write the seed with `pgkiln cluster seed --format dir`, without `--embed-secrets`";
                return Err(vec![Problem::new(format!("unreadable: {}", error.kind()), place, remedy)]);
            }
        }
    }
    let place = dir.join("user-data").display().to_string();
    let text = documents.get("user-data").cloned().unwrap_or_default();
    let theirs = |problem: firstboot::problem::Problem| Problem::new(problem.what, problem.place, problem.remedy);
    let read = firstboot::user_data::read(&text, &place);
    let spec = read.map_err(|problems| problems.into_iter().map(theirs).collect::<Vec<_>>())?.spec;
    refuse_secrets(&spec, &documents, &place).map_err(|problem| vec![problem])?;
    let NodeSpec { slot, cluster, disks, .. } = spec;
    Ok(Machine { slot, cluster: cluster.name, mode, disk: disks.system, documents })
}

/// Metadata is served to whoever asks.
fn refuse_secrets(spec: &NodeSpec, documents: &BTreeMap<&str, Vec<u8>>, place: &str) -> Result<(), Problem> {
    let remedy = "write the seeds without `--embed-secrets`; `pgkiln cluster form` brings the voters their secrets";
    if spec.founding.is_some() {
        let what =
            format!("the seed of `{}` holds the founding bundle (`founding`), and anybody could fetch it", spec.slot);
        return Err(Problem::new(what, place, remedy));
    }
    for (name, bytes) in documents {
        if String::from_utf8_lossy(bytes).contains("PRIVATE KEY-----") {
            let what = format!("`{name}` of `{}` holds a private key, and anybody could fetch it", spec.slot);
            return Err(Problem::new(what, place, remedy));
        }
    }
    Ok(())
}
