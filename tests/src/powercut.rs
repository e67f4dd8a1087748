//! A machine whose power fails at a random moment of an update, or of its first boot: it always comes up in one of the two
//! versions, with its data.
//!
//! "Power" is QEMU's process: what the guest had not yet written is gone, what it had written is on the disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::ensure;
use pgkiln::outputs::Format;
use tempfile::TempDir;

use crate::disk::{self, RUN_VOLUME, object, value};
use crate::next::{self, Next};
use crate::qemu::{self, Machine};
use crate::random::SplitMix;

/// From power to the machine's end.
const LIMIT: Duration = Duration::from_secs(900);
/// What both take an emulated machine on a quiet host; on a busy one cuts come earlier than they might.
const BOOT: Duration = Duration::from_secs(70);
const UPDATE: Duration = Duration::from_secs(20);
/// Every so many runs it is a first boot whose power fails.
const FIRST_BOOT: u64 = 3;

/// Looks, makes data and updates: what this boot is for is a file on the disk itself.
const PROBE: &str = r#"
say() { echo "probe-$1=$2"; }
step=$(cat /var/step 2>/dev/null || echo look)
if [ "$step" = update ]; then
    echo look > /var/step
    sync
    say begin now
    firstboot update --older --json /run/set/good && say end now
    sleep infinity
fi
until firstboot verdict; do sleep 1; done
say kept "$(psql -Atc 'SELECT n FROM kept' 2>/dev/null || echo none)"
until psql -qc 'CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS n'; do sleep 1; done
say id "$(cat /etc/machine-id)"
say root "$(findmnt -no FSTYPE,OPTIONS / | xargs)"
say var "$(findmnt -no SOURCE,FSTYPE /var | xargs)"
say loader "$(ls /boot/EFI/Linux | xargs)"
say failed "[$(systemctl list-units --failed --plain --no-legend | cut -d' ' -f1 | xargs)]"
say status "$(firstboot update --status --json)"
echo update > /var/step
systemctl poweroff
"#;

/// A machine that is off, and what its boots need.
pub struct Prepared {
    dir: TempDir,
    fresh: PathBuf,
    seed: PathBuf,
    sets: PathBuf,
    versions: [String; 2],
    /// From power to good, and the update itself: cuts are made within these.
    boot: Duration,
    update: Duration,
}

/// The same after its first boot.
pub struct Formed {
    prepared: Prepared,
    disk: PathBuf,
    id: String,
}

/// A node that is good.
struct Look {
    version: String,
    /// Its machine identity.
    id: String,
    /// Whether it has the data of an earlier look.
    has_data: bool,
}

impl Prepared {
    /// Bakes a disk and its next version.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("pgkiln-powercut-").tempdir_in("/var/tmp")?;
        let [good, _]: [Next; 2] = next::bake()?;
        let (fresh, version) = disk::bake(dir.path(), Format::Raw, None)?;
        Ok(Self {
            seed: disk::seed(dir.path())?,
            sets: disk::volume(dir.path(), &[("good", &good)], PROBE)?,
            versions: [version, good.version],
            fresh,
            dir,
            boot: BOOT,
            update: UPDATE,
        })
    }

    /// Boots a node for the first time, and measures that and an update that nothing disturbs.
    pub fn measured(mut self) -> anyhow::Result<Formed> {
        let disk = self.dir.path().join("formed.raw");
        copy(&self.fresh, &disk)?;
        let started = Instant::now();
        let look = self.look(&disk)?;
        self.boot = started.elapsed();
        let (_dir, tried) = self.copy(&disk)?;
        let mut booted = self.machine(&tried)?.boot()?;
        booted.wait_for("probe-begin=", LIMIT)?;
        let started = Instant::now();
        booted.wait_for("probe-end=", LIMIT)?;
        self.update = started.elapsed();
        Ok(Formed { prepared: self, disk, id: look.id })
    }

    /// Two cuts of one machine: of its first boot, and then of an update. What they were, and which version came up.
    pub fn first_boot_and_update(&self, random: &mut SplitMix) -> anyhow::Result<String> {
        let (_dir, disk) = self.copy(&self.fresh)?;
        let (first, id) = self.first_boot(&disk, random)?;
        Ok([first, self.update(&disk, &id, random)?].join("; "))
    }

    fn machine(&self, disk: &Path) -> anyhow::Result<Machine> {
        let machine = Machine::new(&disk.with_extension("machine"), disk)?;
        Ok(machine.seed(&self.seed).volume(&self.sets).probe(RUN_VOLUME))
    }

    /// A copy to be tried, in a directory of its own.
    fn copy(&self, from: &Path) -> anyhow::Result<(TempDir, PathBuf)> {
        let dir = tempfile::tempdir_in(self.dir.path())?;
        let disk = dir.path().join("disk.raw");
        copy(from, &disk)?;
        Ok((dir, disk))
    }

    /// Boots until the node is good, and looks at what every good node has.
    fn look(&self, disk: &Path) -> anyhow::Result<Look> {
        let said = self.machine(disk)?.boot()?.wait_for_end(LIMIT)?;
        let version = object(&said, "status")?["node"]["running"].as_str().unwrap_or_default().to_owned();
        ensure!(said.contains("verified root is ready") && value(&said, "failed") == "[]", "{said}");
        ensure!(value(&said, "root").starts_with("squashfs ro") && value(&said, "var") == "/dev/vda6 ext4", "{said}");
        ensure!(self.versions.contains(&version), "{version} runs: {said}");
        let (id, kept, loader) = (value(&said, "id").to_owned(), value(&said, "kept"), value(&said, "loader"));
        ensure!(id.len() == 32 && ["42", "none"].contains(&kept), "{said}");
        // What runs was good and counts its tries no more; what an update has just put beside it may.
        let counts = loader.split(' ').any(|name| name.contains('+') && name.contains(&version));
        ensure!(!counts, "{version} still counts tries: {said}");
        Ok(Look { version, id, has_data: kept == "42" })
    }

    /// Cuts the first boot of a disk, and boots it again. What it was, and the machine's identity.
    fn first_boot(&self, disk: &Path, random: &mut SplitMix) -> anyhow::Result<(String, String)> {
        let moment = within(self.boot, random);
        let booted = self.machine(disk)?.boot()?;
        std::thread::sleep(moment);
        drop(booted);
        let look = self.look(disk)?;
        ensure!(look.version == self.versions[0], "{} runs after a first boot", look.version);
        Ok((format!("first boot cut after {:.1}s", moment.as_secs_f64()), look.id))
    }

    /// Cuts an update of a disk that is the good node `id`, and boots it again.
    fn update(&self, disk: &Path, id: &str, random: &mut SplitMix) -> anyhow::Result<String> {
        let moment = within(self.update + self.update / 10, random);
        let mut booted = self.machine(disk)?.boot()?;
        booted.wait_for("probe-begin=", LIMIT)?;
        std::thread::sleep(moment);
        let had_ended = booted.said()?.contains("probe-end=");
        drop(booted);
        let look = self.look(disk)?;
        ensure!(look.has_data && look.id == id, "another machine, or without its data: {} was {id}", look.id);
        // What the update has said to be done is on the disk.
        ensure!(!had_ended || look.version == self.versions[1], "{} runs after a finished update", look.version);
        let when = if had_ended { "after its end" } else { "before its end" };
        let which = if look.version == self.versions[0] { "the version before" } else { "the new version" };
        Ok(format!("update cut after {:.1}s, {when}: {which}", moment.as_secs_f64()))
    }
}

impl Formed {
    /// One power cut. What it was, and which version came up.
    pub fn run(&self, number: u64) -> anyhow::Result<String> {
        let (prepared, mut random) = (&self.prepared, SplitMix(number));
        if number.is_multiple_of(FIRST_BOOT) {
            let (_dir, disk) = prepared.copy(&prepared.fresh)?;
            return Ok(prepared.first_boot(&disk, &mut random)?.0);
        }
        let (_dir, disk) = prepared.copy(&self.disk)?;
        prepared.update(&disk, &self.id, &mut random)
    }
}

impl std::fmt::Display for Formed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (boot, update) = (self.prepared.boot.as_secs_f64(), self.prepared.update.as_secs_f64());
        write!(f, "undisturbed: a first boot takes {boot:.1}s, an update {update:.1}s")
    }
}

fn within(longest: Duration, random: &mut SplitMix) -> Duration {
    longest.mul_f64(random.below(1000) as f64 / 1000.0)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let bytes = fs_err::metadata(from)?.len();
    qemu::disk(from, to, bytes)
}
