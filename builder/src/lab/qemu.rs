//! The engine `qemu`: a machine with firmware, a disk and a kernel of its own.
//!
//! The disk is a layer over the image, so that nodes share it and a node that is started again finds what it wrote. The seed
//! is a `cidata` volume, as a person would attach it. Console: the serial port. Power button: QMP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::config::Options;
use super::machine::{Accel, Machine};
use super::{cgroup, net};
use crate::cluster;
use crate::problem::Problem;
use crate::tool::{Cmd, table};

const FIRMWARE: &str = "/usr/share/OVMF";
/// QEMU's answer to a question.
const QMP_LIMIT: Duration = Duration::from_secs(5);

/// What a node has before its first boot; what is there already is left alone.
pub(super) fn prepare(options: &Options, index: usize) -> anyhow::Result<()> {
    let node = &options.nodes[index];
    let place = Place(options.node_dir(&node.slot));
    if place.disk().exists() {
        return Ok(());
    }
    let image = Disk::read(&options.image)?;
    if !options.machine.bus.takes(image.sector) {
        let what =
            format!("this disk is for drives with sectors of {} bytes, which this bus cannot have", image.sector);
        let remedy = "leave out `--bus sata`, or bake the format `raw`";
        return Err(Problem::new(what, options.image.display().to_string(), remedy).into());
    }
    let size = image.size.max(u64::from(options.machine.disk_gib) << 30);
    fs_err::copy(variables(&options.machine), place.variables())?;
    if let Some(seed) = &node.seed_dir {
        cluster::write_cidata(seed, &place.seed())?;
    }
    fs_err::write(place.base(), identity(&options.image)?)?;
    // Last: a disk that is there says that everything is.
    let base = format!("backing_file={},backing_fmt={}", escaped(&options.image), image.format);
    let create = Cmd::new(&table::QEMU_IMG).args(["create", "-q", "-f", "qcow2", "-o", &base]);
    create.arg(place.disk()).arg(size.to_string()).run()
}

/// Refuses a disk whose image is another one by now: a layer over other bytes is rubbish.
fn check_base(place: &Place, image: &Path) -> anyhow::Result<()> {
    let was = fs_err::read_to_string(place.base())?;
    if was == identity(image)? {
        return Ok(());
    }
    Err(Problem::new(
        "the image has changed since this node's disk was made as a layer over it",
        image.display().to_string(),
        "put the old image back, or begin anew: `pgkiln lab down`, without --keep-data",
    )
    .into())
}

/// Tells one image file from the next of the same name.
fn identity(image: &Path) -> anyhow::Result<String> {
    let meta = fs_err::metadata(image)?;
    let (bytes, inode) = (meta.len(), meta.ino());
    // The clock of a file system has steps of milliseconds: time alone would miss a quick exchange.
    Ok(format!("{bytes} bytes, inode {inode}, written at {}.{:09}\n", meta.mtime(), meta.mtime_nsec()))
}

/// A path within a list that QEMU takes apart at commas.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Becomes the node's QEMU.
pub(super) fn run(options: &Options, index: usize) -> anyhow::Result<()> {
    let slot = &options.nodes[index].slot;
    let port = options.bridge_port(index);
    net::add_tap(&port)?;
    let place = Place(options.node_dir(slot));
    check_base(&place, &options.image)?;
    let mut cmd = machine(&options.machine, &place.variables())
        .args(["-uuid", &options.machine_id(slot)?.to_string()])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", escaped(&place.control())))
        .arg("-drive")
        .arg(format!("if=none,id=disk,format=qcow2,file={}", escaped(&place.disk())))
        .args(["-device", &options.machine.bus.device("disk", Disk::read(&options.image)?.sector)])
        .arg("-netdev")
        .arg(format!("tap,id=net,ifname={port},script=no,downscript=no"))
        .arg("-device")
        .arg(format!("virtio-net-pci,netdev=net,mac={}", mac(options, index)?));
    if place.seed().exists() {
        cmd = cmd
            .arg("-drive")
            .arg(format!("if=none,id=seed,format=raw,readonly=on,file={}", escaped(&place.seed())))
            .args(["-device", "virtio-blk-pci,drive=seed,serial=seed"]);
    }
    Err(cmd.exec())
}

/// A machine that forgets everything, with KVM: see `accel`. It needs the empty directory `scratch` for as long as it runs.
pub(super) fn probe(image: &Path, scratch: &Path) -> anyhow::Result<Cmd> {
    let machine = Machine { accel: Accel::Kvm, cpus: 1, ..Machine::default() };
    let Disk { format, sector, .. } = Disk::read(image)?;
    let place = Place(scratch.to_owned());
    fs_err::copy(variables(&machine), place.variables())?;
    Ok(self::machine(&machine, &place.variables())
        .arg("-snapshot")
        .arg("-drive")
        .arg(format!("if=none,id=disk,format={format},file={}", escaped(image)))
        .args(["-device", &machine.bus.device("disk", sector)]))
}

/// QEMU of the node in `dir`, once it takes commands: before that it may still refuse its arguments.
pub(super) fn find(cgroup: &Path, dir: &Path) -> Option<i32> {
    UnixStream::connect(Place(dir.to_owned()).control()).ok()?;
    cgroup::processes(cgroup).first().copied()
}

/// Presses the power button of the node in `dir`.
pub(super) fn power_off(dir: &Path) -> anyhow::Result<()> {
    let stream = UnixStream::connect(Place(dir.to_owned()).control()).context("connecting to QEMU")?;
    stream.set_read_timeout(Some(QMP_LIMIT))?;
    let mut lines = BufReader::new(&stream).lines();
    // QEMU's greeting, then an answer to each command (QMP specification).
    lines.next().context("QEMU is silent")??;
    for command in ["qmp_capabilities", "system_powerdown"] {
        writeln!(&stream, "{{\"execute\": \"{command}\"}}")?;
        let answer = lines.next().context("QEMU hung up")??;
        anyhow::ensure!(!answer.contains("\"error\""), "QEMU refuses `{command}`: {answer}");
    }
    Ok(())
}

/// Whether `image` is a disk that can be booted, for a message before anything starts.
pub(super) fn check(options: &Options) -> anyhow::Result<()> {
    Disk::read(&options.image)?;
    if options.machine.secure_boot && !Path::new(FIRMWARE).join("OVMF_CODE_4M.secboot.fd").exists() {
        return Err(Problem::new("no firmware with Secure Boot", FIRMWARE, "install the package ovmf").into());
    }
    Ok(())
}

/// A machine whose console is our standard output.
fn machine(machine: &Machine, variables: &Path) -> Cmd {
    board(machine, variables).args(["-serial", "stdio"])
}

/// Board, processor, firmware with its memory in the file `variables`; no disk, no network and no console yet.
pub fn board(machine: &Machine, variables: &Path) -> Cmd {
    let cmd = board_with_bios(machine);
    let code = if machine.secure_boot { "OVMF_CODE_4M.secboot.fd" } else { "OVMF_CODE_4M.fd" };
    let cmd = cmd.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}/{code}"));
    let cmd =
        if machine.secure_boot { cmd.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]) } else { cmd };
    cmd.arg("-drive").arg(format!("if=pflash,format=raw,file={}", escaped(variables)))
}

/// The same with the firmware QEMU brings along: a BIOS.
pub fn board_with_bios(machine: &Machine) -> Cmd {
    // Firmware that checks signatures keeps its variables where only System Management Mode can write.
    let smm = if machine.secure_boot { "on" } else { "off" };
    Cmd::new(&table::QEMU)
        .args(["-nodefaults", "-display", "none", "-monitor", "none"])
        .args(["-machine", &format!("q35,smm={smm}"), "-cpu", machine.accel.processor()])
        .args(["-accel", machine.accel.argument()])
        .args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()])
        .args(["-device", "virtio-rng-pci", "-device", "i6300esb", "-action", "watchdog=reset"])
}

/// What the firmware's memory begins with: a file to be copied.
pub fn variables(machine: &Machine) -> PathBuf {
    let name = if machine.secure_boot { "OVMF_VARS_4M.snakeoil.fd" } else { "OVMF_VARS_4M.fd" };
    Path::new(FIRMWARE).join(name)
}

/// The same for every boot of a node; the prefix is QEMU's own.
fn mac(options: &Options, index: usize) -> anyhow::Result<String> {
    let id = options.machine_id(&options.nodes[index].slot)?;
    let [a, b, c, ..] = *id.as_bytes();
    Ok(format!("52:54:00:{a:02x}:{b:02x}:{c:02x}"))
}

/// What qemu-img says about an image.
#[derive(Debug, Deserialize)]
struct Disk {
    format: String,
    #[serde(rename = "virtual-size")]
    size: u64,
    /// Bytes of the sectors it was made for; only `raw` is made for others than 512.
    #[serde(skip)]
    sector: u32,
}

impl Disk {
    fn read(image: &Path) -> anyhow::Result<Self> {
        let text = Cmd::new(&table::QEMU_IMG).args(["info", "--output=json"]).arg(image).text()?;
        let disk: Self = serde_json::from_str(&text).context("reading qemu-img's answer")?;
        // Raw is what it says of anything.
        let sector = if disk.format == "raw" { sector(image)? } else { Some(512) };
        let sector = sector.ok_or_else(|| {
            let remedy = "name a disk image: `pgkiln bake IMAGE --format raw` or `qcow2` writes one";
            Problem::new("this is no disk: it has no partition table", image.display().to_string(), remedy)
        })?;
        Ok(Self { sector, ..disk })
    }
}

/// The size of sectors of a partitioned disk: `EFI PART` is at its second one (UEFI specification, 5.3.2).
fn sector(image: &Path) -> anyhow::Result<Option<u32>> {
    use std::os::unix::fs::FileExt;
    let file = fs_err::File::open(image)?;
    let at = |sector: &u32| {
        let mut signature = [0; 8];
        file.file().read_exact_at(&mut signature, u64::from(*sector)).is_ok() && &signature == b"EFI PART"
    };
    Ok([512, 4096].into_iter().find(at))
}

/// Files of a node.
struct Place(PathBuf);

impl Place {
    fn disk(&self) -> PathBuf {
        self.0.join("disk.qcow2")
    }

    fn base(&self) -> PathBuf {
        self.0.join("image")
    }

    fn variables(&self) -> PathBuf {
        self.0.join("firmware-variables.fd")
    }

    fn seed(&self) -> PathBuf {
        self.0.join("seed.iso")
    }

    fn control(&self) -> PathBuf {
        self.0.join("qmp.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Options {
        let mut lab = Options::new("orders", "/", "10.0.0.0/24".parse().unwrap());
        lab.state_dir = tempfile::tempdir().unwrap().keep();
        lab = lab.node("pg-1", "10.0.0.11".parse().unwrap(), None);
        fs_err::create_dir_all(lab.node_dir("pg-1")).unwrap();
        lab
    }

    #[test]
    fn only_a_partitioned_disk_is_booted() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        for (at, found) in [(512, Some(512)), (4096, Some(4096)), (0, None), (1024, None)] {
            let mut bytes = vec![0; 8192];
            bytes[at..at + 8].copy_from_slice(b"EFI PART");
            fs_err::write(&image, bytes).unwrap();
            assert_eq!(sector(&image).unwrap(), found, "signature at {at}");
        }
        fs_err::write(&image, "short").unwrap();
        assert_eq!(sector(&image).unwrap(), None);
    }

    #[test]
    fn a_disk_over_another_image_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (place, image) = (Place(dir.path().to_owned()), dir.path().join("disk.raw"));
        fs_err::write(&image, "one").unwrap();
        fs_err::write(place.base(), identity(&image).unwrap()).unwrap();
        check_base(&place, &image).unwrap();
        let next = dir.path().join("next");
        fs_err::write(&next, "two").unwrap();
        fs_err::rename(next, &image).unwrap();
        let told = check_base(&place, &image).unwrap_err().to_string();
        assert!(told.contains("the image has changed") && told.contains("begin anew"), "{told}");
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
    }

    #[test]
    fn a_node_keeps_its_network_address() {
        let lab = lab();
        let first = mac(&lab, 0).unwrap();
        assert_eq!(first, mac(&lab, 0).unwrap());
        assert!(first.starts_with("52:54:00:") && first.len() == 17, "{first}");
        fs_err::remove_dir_all(&lab.state_dir).unwrap();
    }

    #[test]
    fn firmware_that_checks_signatures_has_keys_and_guards_them() {
        let line = |secure_boot| {
            let wanted = Machine { secure_boot, ..Machine::default() };
            machine(&wanted, &variables(&wanted)).command_line()
        };
        let (plain, secure) = (line(false), line(true));
        assert!(secure.contains("secboot.fd") && secure.contains("smm=on") && secure.contains("VARS_4M.snakeoil.fd"));
        assert!(secure.contains("property=secure,value=on"), "{secure}");
        assert!(
            !plain.contains("secboot") && plain.contains("smm=off") && plain.contains("OVMF_VARS_4M.fd"),
            "{plain}"
        );
    }
}
