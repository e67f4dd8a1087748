//! The installation, one stage after another: what is to be written, where to, writing, reading back, and the one sector that
//! makes the disk bootable. A refusal comes before the first write, and says which disk and why.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::choose::{self, Examined};
use super::contents::Contents;
use super::disks;
use super::source::Source;
use super::state::settle;
use super::wanted::Wanted;
use super::write::Target;
use super::{boot_entry, cmdline, first, seed};
use crate::datasource::{self, Seed};
use crate::layout::Layout;
use crate::problem::Problem;
use crate::stored;
use crate::tool::Tool;

const WORK: &str = "/run/pgkiln-install";
/// What the first boot would do with the disk: the same definitions, so that both kinds of disk are the same.
const DEFINITIONS: &str = "/usr/lib/repart.d";
/// Name of the partition for `/var` in them.
const VAR: &str = "var";
/// Written and read back: each byte twice.
const PASSES: u64 = 2;
/// How long a refusal can be read before the machine does what `pgkiln.failure=` says.
const SHOWN: Duration = Duration::from_secs(10);

/// Installs, and ends the machine as the command line says.
pub async fn run(layout: &Layout) -> Result<()> {
    let line = cmdline(layout)?;
    let word = |name: &str| line.split_whitespace().filter_map(|word| word.strip_prefix(name)).next_back();
    match install(layout, &line).await {
        Ok(()) if word("pgkiln.after=") == Some("poweroff") => systemctl("poweroff").await,
        Ok(()) => systemctl("reboot").await,
        Err(error) => {
            // A line of the kernel's log holds a thousand bytes, and there may be many disks.
            format!("not installed: {error:#}").replace("; ", ";\n  ").lines().for_each(say);
            if let Some(end @ ("poweroff" | "reboot")) = word("pgkiln.failure=") {
                say(&format!("{end} in {} s", SHOWN.as_secs()));
                tokio::time::sleep(SHOWN).await;
                systemctl(end).await?;
            } else {
                say("correct it and restart this machine; it waits");
            }
            Err(error)
        }
    }
}

async fn systemctl(verb: &str) -> Result<()> {
    Tool::new("systemctl").args(["--no-block", verb]).run().await.map(drop)
}

async fn install(layout: &Layout, line: &str) -> Result<()> {
    require_uefi(layout)?;
    let source = Source::open(layout, line)?;
    let seed = datasource::find(layout)?;
    let chosen = choose_disk(line, seed.as_ref(), &source).await?;
    let disk = &chosen.disk;
    say(&format!("installing {} to {disk}", source.version));
    let target = Target::open(&disk.path, disk.size)?;
    let table = target.begin(&source)?;
    let mut progress = Percent::new(PASSES * source.bytes());
    target.write(&source.parts, &mut |bytes| progress.more("written", bytes))?;
    make_var(&disk.path, seed.as_ref()).await?;
    target.compare(&source.parts, &mut |bytes| progress.more("written, being read back", bytes))?;
    target.finish(&source)?;
    say(&format!("installed {} on {disk}: every byte read back", source.version));
    let esp = table.partitions().into_iter().next().context("a table with a system partition")?;
    if let Err(error) = boot_entry::put_first(layout, &esp, table.sector()) {
        say(&format!("the firmware does not take a boot entry; see to it that it starts this disk first ({error:#})"));
    }
    Ok(())
}

/// A BIOS finds no boot loader on such a disk.
fn require_uefi(layout: &Layout) -> Result<(), Problem> {
    if layout.at("/sys/firmware/efi").is_dir() {
        return Ok(());
    }
    let remedy =
        "switch its firmware to UEFI; without it the machine can be a live node (leave out pgkiln.mode=install)";
    Err(Problem::new(
        "this machine was started by a BIOS, which cannot boot what would be installed",
        "firmware",
        remedy,
    ))
}

/// The disk; refused before anything is written.
async fn choose_disk(line: &str, seed: Option<&Seed>, source: &Source) -> Result<Examined> {
    let accepted = seed.map(|seed| stored::read_seed(seed).map_err(first)).transpose()?;
    if accepted.is_none() {
        say("there is no metadata: the disk will ask for it when it boots");
    }
    let wanted = Wanted::read(line, accepted.and_then(|(accepted, _)| accepted.spec.disks.system).as_ref())?;
    let chosen = choose::decide(disks::list().await?, &wanted, source.needed, Path::new(WORK)).await?;
    let (theirs, ours) = (chosen.disk.log_sec, source.table.sector());
    if theirs != ours {
        let what = format!("{} has sectors of {theirs} bytes, this installer writes disks with {ours}", chosen.disk);
        let remedy = "write the image of the format `raw-4k` to it, or let it show sectors of 512 bytes";
        return Err(Problem::new(what, "disks", remedy).into());
    }
    if chosen.contents == Contents::Unfinished {
        say(&format!("{} holds an unfinished installation, which is begun anew", chosen.disk));
    }
    Ok(chosen)
}

/// Slot B and `/var`, with the metadata on it.
async fn make_var(disk: &Path, seed: Option<&Seed>) -> Result<()> {
    // What was there before may still be what the kernel knows.
    Tool::new("blockdev").arg("--rereadpt").arg(disk).run().await.context("showing the kernel the partitions")?;
    settle().await?;
    let repart = Tool::new("systemd-repart").args(["--dry-run=no", "--seed=random", "--empty=refuse"]);
    let repart = repart.arg(format!("--definitions={DEFINITIONS}")).arg(disk);
    repart.limit(super::PATIENCE).run().await.context("making the partition for /var")?;
    settle().await?;
    let var = disks::partition(disk, VAR).await?;
    match seed {
        Some(seed) => seed::put(seed, &var.path, &Path::new(WORK).join(VAR)),
        None => Ok(()),
    }
}

/// Says how far it is, every tenth.
struct Percent {
    total: u64,
    done: u64,
    said: u64,
}

impl Percent {
    fn new(total: u64) -> Self {
        Self { total: total.max(1), done: 0, said: 0 }
    }

    fn more(&mut self, what: &str, bytes: u64) {
        self.done += bytes;
        let percent = 100 * self.done / self.total;
        if percent / 10 > self.said / 10 {
            self.said = percent;
            say(&format!("{percent} % ({what})"));
        }
    }
}

/// Through the kernel's log: somebody may be watching on any of the consoles, of which a service reaches one.
fn say(text: &str) {
    let line = format!("<5>pgkiln: {text}\n");
    if fs_err::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| std::io::Write::write_all(&mut log, line.as_bytes()))
        .is_err()
    {
        eprintln!("pgkiln: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_uefi_is_told_what_it_can_be_instead() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let told = require_uefi(&layout).unwrap_err().to_string();
        assert!(told.contains("BIOS") && told.contains("live node"), "{told}");
        fs_err::create_dir_all(root.path().join("sys/firmware/efi")).unwrap();
        require_uefi(&layout).unwrap();
    }
}
