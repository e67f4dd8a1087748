//! A machine installs itself: from the installer as a CD or a stick, or as a network boot would, onto a blank disk and onto nothing else.
//!
//! Needs root, QEMU and `PGKILN_TEST_IMAGE`; the outputs are baked beside that image.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkiln::digest::Sha256;
use pgkiln::outputs::Format;
use pgkiln::tool::{Cmd, Tool};
use pgkiln_tests::disk::{self, seed, value};
use pgkiln_tests::image;
use pgkiln_tests::memory::{baked, loaded};
use pgkiln_tests::qemu::{self, Drive, Machine};

#[path = "../../firstboot/src/install/signatures.rs"]
#[allow(dead_code, reason = "the unit tests use all of them")]
mod signatures;

type Result<T = ()> = anyhow::Result<T>;

/// From power to what is waited for. Emulation on a busy machine is slow: a limit only ends a test that would never end.
const LIMIT: Duration = Duration::from_secs(900);
/// Room for both slots and some data.
const ROOM: u64 = 6 << 30;
const MKE2FS: Tool =
    Tool { name: "mke2fs", package: "e2fsprogs", minimum: None, why: "a disk with somebody's database" };

/// Says what a person would look for, and powers off.
const LOOK: &str = "\
until firstboot verdict; do sleep 1; done; \
echo probe-failed=[$(systemctl list-units --failed --plain --no-legend | cut -d\" \" -f1 | xargs)]; \
echo probe-var=$(findmnt -no SOURCE,FSTYPE /var | xargs); \
echo probe-sql=$(psql -Atc \"select 40+2\" postgres); \
echo probe-loader=$(ls /boot/EFI/Linux); \
echo probe-slots=$(lsblk -nro PARTLABEL /dev/vda | xargs); \
echo probe-secrets=[$(grep -c founding /var/lib/cloud/seed/nocloud/user-data)]; \
systemctl poweroff";

fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("pgkiln-install-").tempdir_in("/var/tmp")?)
}

fn blank(path: &Path, bytes: u64) -> Result<PathBuf> {
    fs_err::File::create(path)?.set_len(bytes)?;
    Ok(path.to_owned())
}

#[test]
#[ignore = "needs root, QEMU, six minutes: `cargo selftest --machines`"]
fn a_cd_or_stick_installs_even_after_a_power_cut_and_the_disk_alone_becomes_a_node() -> Result {
    if image::baked().is_none() {
        return Ok(());
    }
    let work = scratch()?;
    // Signed, for firmware that starts nothing else: the way without Secure Boot differs by less than this one.
    let outputs = disk::outputs("installer", &[Format::Iso], Some(qemu::secure_keys(work.path())?))?;
    let disk = blank(&work.path().join("disk.raw"), ROOM)?;
    let installer = Machine::new(&work.path().join("installer"), &disk)?.memory(2048).secure()?;
    let installer = installer.seed(&seed(work.path())?);
    let iso = outputs.file(".iso")?;
    let [from_cd, from_stick] = [Drive::Cd, Drive::Stick].map(|drive| installer.clone().medium(iso, drive));

    // The power fails in the middle: what is there does not boot, and is known again.
    let mut cut = from_cd.boot()?;
    cut.wait_for("pgkiln: 30 % (written)", LIMIT)?;
    drop(cut);
    let mut mark = vec![0; 6];
    fs_err::File::open(&disk)?.file().read_exact_at(&mut mark, 1 << 20)?;
    assert_eq!(mark, b"pgkiln", "no firmware finds a file system there");

    let said = from_stick.boot()?.wait_for_end(LIMIT)?;
    assert!(said.contains("Secure Boot is enabled"), "{said}");
    assert!(said.contains("holds an unfinished installation, which is begun anew"), "{said}");
    assert!(said.contains("on /dev/vda (6.0 GiB, serial DISK1): every byte read back"), "{said}");

    let firmware = fs_err::read(work.path().join("installer/variables.fd"))?;
    let entry: Vec<u8> = "pgkiln\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(firmware.windows(entry.len()).any(|part| part == entry), "the firmware has no entry for the disk");

    // Neither medium nor metadata any more.
    let node = Machine::new(&work.path().join("node"), &disk)?.secure()?.probe(LOOK);
    let said = node.boot()?.wait_for_end(LIMIT)?;
    assert_eq!((value(&said, "failed"), value(&said, "sql")), ("[]", "42"), "{said}");
    assert_eq!(value(&said, "var"), "/dev/vda6 ext4", "{said}");
    assert!(!value(&said, "loader").contains('+'), "a good boot no longer counts tries: {said}");
    assert!(value(&said, "slots").contains("_empty _empty var"), "{said}");
    assert_eq!(value(&said, "secrets"), "[0]", "wiped once they were taken: {said}");

    // The stick again, and a disk that has become somebody's.
    let before = Sha256::of_file(&disk)?;
    let mut again = from_stick.boot()?;
    let said = again.wait_for("correct it and restart this machine", LIMIT)?;
    drop(again);
    assert!(
        said.contains("not installed: disks: no disk is blank") && said.contains("the PostgreSQL cluster"),
        "{said}"
    );
    assert!(Sha256::of_file(&disk)? == before, "the disk was written to");
    Ok(())
}

/// A disk with somebody's database in an ext4 file system.
fn with_a_database(path: &Path) -> Result<PathBuf> {
    let files = path.with_extension("files");
    let global = files.join("lib/postgresql/17/main/global");
    fs_err::create_dir_all(&global)?;
    fs_err::write(global.join("pg_control"), 7_412_345_678_901_234_567u64.to_le_bytes())?;
    Cmd::new(&MKE2FS).args(["-q", "-t", "ext4", "-d"]).arg(&files).arg(path).arg("64M").run()?;
    Ok(path.to_owned())
}

#[test]
#[ignore = "needs root, QEMU, three minutes: `cargo selftest --machines`"]
fn nothing_is_installed_where_something_is_or_where_there_is_a_choice() -> Result {
    let Some(outputs) = baked()? else { return Ok(()) };
    let work = scratch()?;
    let place = |name: &str| work.path().join(name);
    let signed = |name: &str, fill: fn(&mut [u8])| {
        let mut bytes = vec![0; 64 << 20];
        fill(&mut bytes);
        fs_err::write(place(name), bytes).map(|()| place(name))
    };
    let full = [
        with_a_database(&place("database"))?,
        signed("xfs", signatures::xfs)?,
        signed("lvm", signatures::lvm)?,
        signed("mdraid", signatures::mdraid)?,
        signed("unknown", signatures::unknown)?,
    ];
    let two = [blank(&place("one"), ROOM)?, blank(&place("two"), ROOM)?];
    let small = [blank(&place("small"), 2 << 30)?];
    let kernel = loaded(&outputs, work.path(), "pgkiln.mode=install pgkiln.failure=poweroff")?;
    let told = |name: &str, disks: &[PathBuf], bios: bool| -> Result<String> {
        let sums = || disks.iter().map(|disk| Sha256::of_file(disk)).collect::<Result<Vec<_>>>();
        let before = sums()?;
        let machine = Machine::new(&place("machines").join(name), &disks[0])?.memory(1536).kernel(kernel.clone());
        let machine = disks[1..].iter().fold(machine, |machine, disk| machine.more(disk));
        let machine = if bios { machine.bios() } else { machine };
        let said = machine.boot()?.wait_for_end(LIMIT)?;
        anyhow::ensure!(sums()? == before, "a disk was written to: {said}");
        anyhow::ensure!(said.contains("not installed: ") && said.contains("poweroff in 10 s"), "{said}");
        Ok(said)
    };

    let said = told("full", &full, false)?;
    for expected in [
        "no disk is blank",
        "serial DISK1): holds a file system or volume of type ext4, the PostgreSQL cluster with the system identifier \
         7412345678901234567 in /dev/vda:/lib/postgresql/17/main",
        "serial DISK2): holds a file system or volume of type xfs",
        "serial DISK3): holds a physical volume of LVM",
        "serial DISK4): holds a member of an mdraid array",
        "serial DISK5): holds data of a kind nobody knows",
        "hint: attach a blank disk",
    ] {
        assert!(said.contains(expected), "no `{expected}` in: {said}");
    }
    let said = told("two", &two, false)?;
    assert!(said.contains("2 disks are blank, so the choice is yours") && said.contains("DISK2"), "{said}");
    let said = told("small", &small, false)?;
    assert!(said.contains("is too small: at least 3.5 GiB are needed"), "{said}");
    let said = told("bios", &two[..1], true)?;
    assert!(said.contains("this machine was started by a BIOS"), "{said}");
    Ok(())
}
