//! Finding the root: two partitions of one disk whose identifiers are the first and the last half of the root hash
//! (systemd's rule, UAPI Discoverable Partitions Specification). So a command line can only ever boot its own image.

use fs_err::File;
use fs_err::os::unix::fs::FileExt;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cmdline::Options;
use crate::console::say;
use crate::fail::Failed;
use crate::gpt::{Entries, Partition};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two lines that say what is being waited for.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Name of a live node's partition; the agent gives it (`firstboot/src/install/state.rs`).
const STATE: &str = "pgkiln-state";
/// The first boot of a live node waits this long for what is not there.
const STATE_WAIT: Duration = Duration::from_secs(5);
/// Block devices that are never the disk of a machine.
const NOT_DISKS: [&str; 6] = ["loop", "ram", "zram", "dm-", "sr", "fd"];

/// Where the root of this machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// `8:0`: major and minor number of the disk; none if the root is a file.
    pub(crate) disk: Option<String>,
    /// Device of the root.
    pub(crate) root: PathBuf,
    /// Device of its hash tree.
    pub(crate) hashes: PathBuf,
    /// Where on that device the tree begins, in bytes.
    pub(crate) hashes_at: u64,
    /// Device of `/var`; none before the first boot has made it.
    pub(crate) var: Option<PathBuf>,
}

/// Waits until the root is there; `load` loads drivers for what has appeared meanwhile.
pub(crate) fn wait(options: &Options, mut load: impl FnMut() -> Result<(), Failed>) -> Result<Found, Failed> {
    let started = Instant::now();
    let mut told = started;
    loop {
        load()?;
        let disks = disks();
        let mut found: Vec<Found> = disks.iter().filter_map(|disk| search(disk, &options.root_hash)).collect();
        if found.len() > 1 {
            let names: Vec<String> = found.iter().map(|one| one.root.display().to_string()).collect();
            let what = format!("several disks hold this image: {}", names.join(", "));
            return Err(Failed::new(
                what,
                "detach the one that is not this machine's: their data must not be confused",
            ));
        }
        if let Some(found) = found.pop() {
            return Ok(found);
        }
        if started.elapsed() > options.wait {
            let seen: Vec<&str> = disks.iter().filter_map(|disk| disk.file_name()?.to_str()).collect();
            let seen = if seen.is_empty() { "no disk at all".to_owned() } else { seen.join(", ") };
            let what = format!(
                "no disk with the root partition {} after {} s; seen: {seen}",
                uuid_text(&options.root_hash[..16]),
                options.wait.as_secs()
            );
            let remedy = "attach the disk of this image; its controller may need a driver the image lacks, or more time \
                          (pgkiln.wait=SECONDS)";
            return Err(Failed::new(what, remedy));
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            say(&format!("waiting for the root partition {}", uuid_text(&options.root_hash[..16])));
        }
        thread::sleep(PAUSE);
    }
}

/// Directories of all disks in sysfs, sorted.
fn disks() -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir("/sys/block") else { return Vec::new() };
    let is_disk = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| !NOT_DISKS.iter().any(|no| name.starts_with(no)))
    };
    let mut disks: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_disk).collect();
    disks.sort();
    disks
}

/// The partitions on one disk, if it is ours and the kernel shows all of them.
fn search(disk: &Path, root_hash: &[u8; 32]) -> Option<Found> {
    let table = read_table(disk).ok()??;
    let with = |half: &[u8]| table.iter().find(|one| one.uuid == half).and_then(|one| device(disk, one));
    Some(Found {
        disk: Some(fs_err::read_to_string(disk.join("dev")).ok()?.trim().to_owned()),
        root: with(&root_hash[..16])?,
        hashes: with(&root_hash[16..])?,
        hashes_at: 0,
        var: table.iter().find(|one| one.name == crate::handoff::VAR).and_then(|one| device(disk, one)),
    })
}

/// The partition with the data of a live node, if it is there soon and there is one only. Its machine id is all that is wanted
/// here; the agent chooses the disk.
pub(crate) fn state(mut load: impl FnMut() -> Result<(), Failed>) -> Result<Option<PathBuf>, Failed> {
    let started = Instant::now();
    loop {
        load()?;
        let named = |disk: &PathBuf| {
            let table = read_table(disk).ok()??;
            table.iter().find(|one| one.name == STATE).and_then(|one| device(disk, one))
        };
        let mut found: Vec<PathBuf> = disks().iter().filter_map(named).collect();
        if found.len() > 1 || started.elapsed() > STATE_WAIT {
            return Ok(None);
        }
        if let Some(device) = found.pop() {
            return Ok(Some(device));
        }
        thread::sleep(PAUSE);
    }
}

/// Device of a partition, if the kernel shows it.
fn device(disk: &Path, wanted: &Partition) -> Option<PathBuf> {
    let parts = fs_err::read_dir(disk).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let number = |path: &Path| fs_err::read_to_string(path.join("partition")).ok()?.trim().parse::<u32>().ok();
    let part = parts.into_iter().find(|path| number(path) == Some(wanted.number))?;
    let device = Path::new("/dev").join(part.file_name()?);
    device.exists().then_some(device)
}

fn read_table(disk: &Path) -> io::Result<Option<Vec<Partition>>> {
    let size = fs_err::read_to_string(disk.join("queue/logical_block_size"))?;
    let size: u64 = size.trim().parse().unwrap_or(512);
    let file = File::open(Path::new("/dev").join(disk.file_name().unwrap_or_default()))?;
    let mut header = [0; 512];
    file.read_exact_at(&mut header, size)?;
    let Some(entries) = Entries::of_header(&header, size) else { return Ok(None) };
    let mut bytes = vec![0; entries.length()];
    file.read_exact_at(&mut bytes, entries.offset)?;
    Ok(Some(entries.partitions(&bytes)))
}

/// `954172df-ee9a-aab2-d90a-0ab162ee6bc5`.
fn uuid_text(bytes: &[u8]) -> String {
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    [&bytes[..4], &bytes[4..6], &bytes[6..8], &bytes[8..10], &bytes[10..]].map(hex).join("-")
}
