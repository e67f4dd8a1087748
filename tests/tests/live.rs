//! A machine that has no disk of the image: live, from memory.
//!
//! Needs root, QEMU and `PGKILN_TEST_IMAGE`; the outputs are baked beside that image.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use pgkiln_tests::disk::{seed, value};
use pgkiln_tests::memory::{baked, loaded};
use pgkiln_tests::qemu::{Kernel, Machine};

type Result<T = ()> = anyhow::Result<T>;

/// From power to what is waited for. Emulation on a busy machine is slow: a limit only ends a test that would never end.
const LIMIT: Duration = Duration::from_secs(600);

/// Says what a person would look for, and powers off.
const LOOK: &str = "\
until firstboot verdict; do sleep 1; done; \
echo probe-failed=[$(systemctl list-units --failed --plain --no-legend | cut -d\" \" -f1 | xargs)]; \
echo probe-var=$(findmnt -no SOURCE,FSTYPE /var | xargs) $(cat /var/probe 2>/dev/null || echo new); \
echo kept > /var/probe; \
echo probe-id=$(cat /etc/machine-id) journals=$(ls /var/log/journal | wc -l); \
echo probe-root=$(findmnt -no SOURCE,FSTYPE,OPTIONS / | xargs); \
echo probe-sql=$(psql -Atc \"select 40+2\" postgres); \
echo probe-memory=$(free -m | xargs); \
systemctl poweroff";

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("pgkiln-live-").tempdir_in("/var/tmp")?)
}

fn blank(path: &Path, bytes: u64) -> Result {
    Ok(fs_err::File::create(path)?.set_len(bytes)?)
}

#[test]
#[ignore = "needs root, QEMU, three minutes: `cargo selftest --machines`"]
fn a_live_node_keeps_its_data_on_the_blank_disk() -> Result {
    let Some(outputs) = baked()? else { return Ok(()) };
    let work = scratch()?;
    let disk = work.path().join("disk.raw");
    blank(&disk, 2 << 30)?;
    let kernel = loaded(&outputs, work.path(), "pgkiln.live pgkiln.failure=poweroff")?;
    let machine = Machine::new(&work.path().join("machine"), &disk)?.seed(&seed(work.path())?).probe(LOOK);
    // BIOS: live is what a machine without UEFI can do. A good node needs 800 MiB.
    let machine = machine.bios().memory(1024).kernel(kernel.clone());
    let first = machine.boot()?.wait_for_end(LIMIT)?;
    assert!(first.contains("the image file in memory is /dev/loop0"), "{first}");
    assert!(first.contains("goes to /dev/vda (2.0 GiB, serial DISK1), which becomes its own"), "{first}");
    assert_eq!(value(&first, "failed"), "[]", "{first}");
    assert_eq!(value(&first, "sql"), "42", "{first}");
    assert_eq!(value(&first, "var"), "/dev/vda1 ext4 new", "{first}");
    assert!(value(&first, "root").contains(" squashfs ro"), "{first}");
    assert!(value(&first, "id").ends_with(" journals=1"), "{first}");

    let second = machine.boot()?.wait_for_end(LIMIT)?;
    assert!(second.contains("(/var) is on /dev/vda1"), "{second}");
    assert_eq!(value(&second, "var"), "/dev/vda1 ext4 kept", "{second}");
    assert_eq!(value(&second, "id"), value(&first, "id"), "{second}");
    assert_eq!((value(&second, "failed"), value(&second, "sql")), ("[]", "42"), "{second}");

    // Somebody breaks the metadata, and the power fails: no reason to leave a database down.
    let broken = work.path().join("broken");
    fs_err::create_dir(&broken)?;
    fs_err::write(broken.join("meta-data"), "instance-id: pg-1\n")?;
    fs_err::write(broken.join("user-data"), "#cloud-config\npgkiln: {rolle: node}\n")?;
    let volume = work.path().join("broken.iso");
    pgkiln::cluster::write_cidata(&broken, &volume)?;
    let machine = machine.seed(&volume);
    let third = machine.boot()?.wait_for_end(LIMIT)?;
    assert!(third.contains("METADATA IGNORED, it is broken") && third.contains("rolle"), "{third}");
    assert_eq!(value(&third, "var"), "/dev/vda1 ext4 kept", "{third}");
    assert_eq!((value(&third, "failed"), value(&third, "sql")), ("[]", "42"), "{third}");

    // A disk that is named and not there may be the one with the data: nothing is begun on another, nor taken for it.
    let before = pgkiln::digest::Sha256::of_file(&disk)?;
    let elsewhere = Kernel { command_line: format!("{} pgkiln.disk=serial:GONE", kernel.command_line), ..kernel };
    let fourth = machine.kernel(elsewhere).boot()?.wait_for_end(LIMIT)?;
    assert!(
        fourth.contains("there is no disk `serial:GONE`") && fourth.contains("on /dev/vda1 is this node's"),
        "{fourth}"
    );
    assert!(pgkiln::digest::Sha256::of_file(&disk)? == before, "the disk was written to");
    Ok(())
}

#[test]
#[ignore = "needs root, QEMU, a minute: `cargo selftest --machines`"]
fn a_live_node_says_what_it_lacks() -> Result {
    let Some(outputs) = baked()? else { return Ok(()) };
    let work = scratch()?;
    let disk = work.path().join("disk.raw");
    blank(&disk, 2 << 30)?;
    let kernel = loaded(&outputs, work.path(), "pgkiln.live pgkiln.failure=poweroff")?;
    let machine = |name: &str| Machine::new(&work.path().join(name), &disk);

    let said = machine("small")?.bios().memory(640).kernel(kernel.clone()).boot()?.wait_for_end(LIMIT)?;
    assert!(said.contains("too little memory: only ") && said.contains("powering off in 10 s"), "{said}");
    assert!(!said.contains("systemd["), "{said}");

    // Of another image: nothing of it is used.
    let (front, hash) = kernel.command_line.split_once("roothash=").context("a root hash")?;
    let digit = if hash.starts_with('0') { '1' } else { '0' };
    let other = Kernel { command_line: format!("{front}roothash={digit}{}", &hash[1..]), ..kernel.clone() };
    let said = machine("other")?.bios().memory(1536).kernel(other).boot()?.wait_for_end(LIMIT)?;
    assert!(said.contains("does not have the root hash of the command line"), "{said}");

    // A disk that is not blank stays as it is, byte for byte.
    let bytes = b"somebody's";
    let file = fs_err::OpenOptions::new().write(true).open(&disk)?;
    std::os::unix::fs::FileExt::write_all_at(file.file(), bytes, 4000)?;
    let before = pgkiln::digest::Sha256::of_file(&disk)?;
    let said = machine("full")?.bios().memory(1536).kernel(kernel).boot()?.wait_for_end(LIMIT)?;
    assert!(said.contains("no disk is blank; there is /dev/vda") && said.contains("nobody knows"), "{said}");
    assert!(pgkiln::digest::Sha256::of_file(&disk)? == before, "the disk was written to");
    Ok(())
}
