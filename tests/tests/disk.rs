//! The bootable disk, on a machine of its own: it boots verified, keeps `/var` and its identity, serves as a node, and an altered
//! one serves nothing and says why.
//!
//! Needs root, QEMU and `PGKILN_TEST_IMAGE`; the disk is baked beside that image.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use pgkiln::disk::secure_boot::{Keys, Signer};
use pgkiln::outputs::Format;
use pgkiln_tests::disk::{self, seed, value};
use pgkiln_tests::qemu::{self, Machine};
use pgkiln_tests::random::SplitMix;
use pgkiln_tests::{image, powercut};

type Result<T = ()> = anyhow::Result<T>;

/// From power to what is waited for. Emulation on a busy machine is slow: a limit only ends a test that would never end.
const LIMIT: Duration = Duration::from_secs(600);

/// Says what a person would look for, and powers off.
const LOOK: &str = "\
until firstboot verdict; do sleep 1; done; \
echo probe-failed=[$(systemctl list-units --failed --plain --no-legend | cut -d\" \" -f1 | xargs)]; \
echo probe-var=$(findmnt -no SOURCE,FSTYPE /var | xargs); \
echo probe-sql=$(psql -Atc \"select 40+2\" postgres); \
echo probe-sector=$(cat /sys/block/vda/queue/logical_block_size); \
systemctl poweroff";

fn disk(dir: &Path) -> Result<Option<PathBuf>> {
    baked(dir, Format::Raw, None)
}

fn baked(dir: &Path, format: Format, keys: Option<Keys>) -> Result<Option<PathBuf>> {
    Ok(image::baked().map(|_| disk::bake(dir, format, keys)).transpose()?.map(|(disk, _)| disk))
}

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("pgkiln-disk-").tempdir_in("/var/tmp")?)
}

/// A first boot and an update in which the power fails, and what is there afterwards: 50 times in `just torture update`.
#[test]
#[ignore = "needs root, QEMU and four minutes"]
fn a_disk_becomes_a_node_and_keeps_its_data_and_identity_when_the_power_fails() -> Result {
    if image::baked().is_none() {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    eprintln!("{}", powercut::Prepared::new()?.first_boot_and_update(&mut SplitMix(now.as_secs()))?);
    Ok(())
}

#[test]
#[ignore = "needs root, QEMU, a minute: `cargo selftest --machines`"]
fn a_drive_with_sectors_of_4096_bytes_boots() -> Result {
    let work = scratch()?;
    let Some(disk) = baked(work.path(), Format::Raw4k, None)? else { return Ok(()) };
    let machine = Machine::new(&work.path().join("machine"), &disk)?.sector(4096);
    let said = machine.seed(&seed(work.path())?).probe(LOOK).boot()?.wait_for_end(LIMIT)?;
    assert_eq!((value(&said, "sector"), value(&said, "failed"), value(&said, "sql")), ("4096", "[]", "42"), "{said}");
    assert_eq!(value(&said, "var"), "/dev/vda6 ext4", "{said}");
    Ok(())
}

/// Flips a bit in every `every` bytes of a range.
fn damage(disk: &Path, start: u64, length: u64, every: u64) -> Result {
    let file = fs_err::OpenOptions::new().read(true).write(true).open(disk)?.into_parts().0;
    let mut at = start;
    while at < start + length {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)?;
        at += every;
    }
    Ok(())
}

#[test]
#[ignore = "needs root, QEMU and a minute"]
fn an_altered_disk_serves_nothing_and_says_why() -> Result {
    let work = scratch()?;
    let Some(disk) = disk(work.path())? else { return Ok(()) };
    let table = pgkiln::disk::gpt::read(&disk)?;
    let part = |name: &str| table.partitions.iter().find(|one| one.kind.name() == name).context("a partition");
    let (root, hashes) = (part("root")?, part("root-verity")?);
    let machine = Machine::new(&work.path().join("machine"), &disk)?;

    // Content of files: the first block read that was altered ends it. The superblock at the front stays as it was.
    damage(&disk, root.offset + (1 << 20), 200 << 20, 64 << 10)?;
    let said = machine.boot()?.wait_for_end(LIMIT)?;
    assert!(said.contains("is corrupted") && said.contains("dm-verity device corrupted"), "{said}");
    assert!(!said.contains("firstboot"), "{said}");
    damage(&disk, root.offset + (1 << 20), 200 << 20, 64 << 10)?;

    // The top of the hash tree, which the root hash of the command line is the hash of.
    damage(&disk, hashes.offset + 4096, 1, 1)?;
    let said = machine.boot()?.wait_for_end(LIMIT)?;
    assert!(said.contains("does not have the root hash of the command line"), "{said}");
    assert!(said.contains("rebooting in 10 s") && !said.contains("systemd["), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root, QEMU and a minute"]
fn under_secure_boot_only_a_signed_disk_starts() -> Result {
    let work = scratch()?;
    let Some(unsigned) = disk(work.path())? else { return Ok(()) };
    let machine = |name: &str, disk: &Path| Machine::new(&work.path().join(name), disk)?.secure();
    machine("refuses", &unsigned)?.boot()?.wait_for("Access Denied", LIMIT)?;

    // The same bytes as with the key itself (`signing`).
    let Keys { signer, certificate } = qemu::secure_keys(work.path())?;
    let Signer::Key(key) = signer else { anyhow::bail!("a key in a file") };
    let signer = Signer::Command(format!("openssl pkeyutl -sign -inkey {}", key.display()));
    let signed = baked(work.path(), Format::Raw, Some(Keys { signer, certificate }))?.context("a disk")?;
    let said = machine("starts", &signed)?.boot()?.wait_for("verified root is ready", LIMIT)?;
    assert!(said.contains("Secure Boot is enabled"), "{said}");
    Ok(())
}
