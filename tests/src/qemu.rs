//! A machine of its own for a disk: QEMU with UEFI firmware, its serial console in a file.
//!
//! Emulated, so that it works wherever the tests do: a time limit here only says when to give up. One processor: with two,
//! QEMU 7.2 on a busy host let a kernel crash in its timers, a second after the start.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine as _;
use pgkiln::disk::secure_boot::{Keys, Signer};
use pgkiln::lab;
use pgkiln::tool::{Cmd, Running, table};

/// The certificate of the test key in the memory of firmware that enforces Secure Boot (package ovmf).
const SECURE_CERTIFICATE: &str = "/usr/share/ovmf/PkKek-1-snakeoil.pem";
const SECURE_KEY: &str = "/usr/share/ovmf/PkKek-1-snakeoil.key";
const SECURE_PASSPHRASE: &str = "pass:snakeoil";
const PAUSE: Duration = Duration::from_millis(200);

/// A machine that is off: what is in it.
#[derive(Clone)]
pub struct Machine {
    dir: PathBuf,
    disk: PathBuf,
    seed: Option<PathBuf>,
    volume: Option<PathBuf>,
    medium: Option<(PathBuf, Drive)>,
    more: Vec<PathBuf>,
    probe: Option<String>,
    sector: u32,
    board: lab::Machine,
    bios: bool,
    kernel: Option<Kernel>,
    port: Option<Port>,
}

/// What an installer is read from.
#[derive(Debug, Clone, Copy)]
pub enum Drive {
    /// On SATA.
    Cd,
    /// On USB, and a disk that could be written to like any other; what is written ends with the machine.
    Stick,
}

/// Where a machine that boots over the network is plugged in.
#[derive(Debug, Clone)]
pub struct Port {
    /// Name of the network namespace.
    pub namespace: String,
    /// Its tap device there.
    pub tap: String,
    /// MAC address of the machine.
    pub mac: String,
}

/// What a boot loader hands over: QEMU does it itself.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The kernel.
    pub image: PathBuf,
    /// The initramfs: all archives, one behind the other.
    pub initrd: PathBuf,
    /// The command line.
    pub command_line: String,
}

impl Machine {
    /// A machine with the raw image `disk`; its console and the firmware's memory are kept in `dir`.
    pub fn new(dir: &Path, disk: &Path) -> anyhow::Result<Self> {
        fs_err::create_dir_all(dir)?;
        let board = lab::Machine { accel: lab::Accel::Tcg, memory_mib: 1024, cpus: 1, ..lab::Machine::default() };
        fs_err::copy(lab::variables(&board), dir.join("variables.fd"))?;
        let (dir, disk) = (dir.to_owned(), disk.to_owned());
        let (seed, volume, medium, more, probe, kernel) = (None, None, None, Vec::new(), None, None);
        let port = None;
        Ok(Self { dir, disk, seed, volume, medium, more, probe, sector: 512, board, bios: false, kernel, port })
    }

    /// With BIOS firmware.
    #[must_use]
    pub fn bios(mut self) -> Self {
        self.bios = true;
        self
    }

    /// With so much memory.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.board.memory_mib = mib;
        self
    }

    /// Started without a boot loader.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// Booted by its firmware over the network.
    #[must_use]
    pub fn plugged_into(mut self, port: Port) -> Self {
        self.port = Some(port);
        self
    }

    /// With firmware that starts only what [`secure_keys`] has signed.
    pub fn secure(mut self) -> anyhow::Result<Self> {
        self.board.secure_boot = true;
        fs_err::copy(lab::variables(&self.board), self.dir.join("variables.fd"))?;
        Ok(self)
    }

    /// With a drive whose sectors have so many bytes.
    #[must_use]
    pub fn sector(mut self, bytes: u32) -> Self {
        self.sector = bytes;
        self
    }

    /// With a `cidata` volume.
    #[must_use]
    pub fn seed(mut self, iso: &Path) -> Self {
        self.seed = Some(iso.to_owned());
        self
    }

    /// With one more disk, read-only.
    #[must_use]
    pub fn volume(mut self, disk: &Path) -> Self {
        self.volume = Some(disk.to_owned());
        self
    }

    /// With a medium that is started from rather than the disk.
    #[must_use]
    pub fn medium(mut self, iso: &Path, drive: Drive) -> Self {
        self.medium = Some((iso.to_owned(), drive));
        self
    }

    /// With another disk of its own.
    #[must_use]
    pub fn more(mut self, disk: &Path) -> Self {
        self.more.push(disk.to_owned());
        self
    }

    /// With one more unit in the system, as the machine's firmware may hand one to systemd (SMBIOS type 11): the image has no
    /// password, so this is how a test looks around inside. `script` is run by sh with the console as its output.
    #[must_use]
    pub fn probe(mut self, script: &str) -> Self {
        self.probe = Some(script.to_owned());
        self
    }

    /// Switches it on.
    pub fn boot(&self) -> anyhow::Result<Booted> {
        let console = self.dir.join("console");
        fs_err::write(&console, "")?;
        let log = fs_err::File::create(self.dir.join("qemu.log"))?.into_parts().0;
        let drive =
            |name: &str, file: &Path, more: &str| format!("file={},if=none,format=raw,id={name}{more}", file.display());
        let board = match self.bios {
            true => lab::board_with_bios(&self.board),
            false => lab::board(&self.board, &self.dir.join("variables.fd")),
        };
        let mut cmd = board
            .arg("-no-reboot")
            .arg("-drive")
            .arg(drive("root", &self.disk, ",cache=unsafe"))
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive=root,serial=DISK1,bootindex=2,{}", sectors(self.sector)))
            .arg("-serial")
            .arg(format!("file:{}", console.display()));
        cmd = match &self.port {
            // Restricted: nothing of the machine's reaches a network.
            None => cmd.args(["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net"]),
            Some(Port { namespace, tap, mac }) => {
                // UEFI firmware has a driver of its own; for BIOS QEMU brings iPXE on the card.
                let rom = if self.bios { "" } else { ",romfile=" };
                let card = format!("virtio-net-pci,netdev=net,mac={mac},bootindex=1{rom}");
                let cmd = cmd.arg("-netdev").arg(format!("tap,id=net,ifname={tap},script=no,downscript=no"));
                let cmd = cmd.arg("-device").arg(card);
                cmd.wrapped_by(&table::NSENTER, [format!("--net=/run/netns/{namespace}"), "--".to_owned()])
            }
        };
        if let Some(Kernel { image, initrd, command_line }) = &self.kernel {
            cmd = cmd.arg("-kernel").arg(image).arg("-initrd").arg(initrd).arg("-append").arg(command_line);
        }
        for (name, file) in [("seed", &self.seed), ("volume", &self.volume)] {
            let Some(file) = file else { continue };
            cmd = cmd.arg("-drive").arg(drive(name, file, ",readonly=on"));
            cmd = cmd.arg("-device").arg(format!("virtio-blk-pci,drive={name}"));
        }
        if let Some((medium, kind)) = &self.medium {
            cmd = match kind {
                Drive::Cd => cmd
                    .arg("-drive")
                    .arg(drive("medium", medium, ",readonly=on,media=cdrom"))
                    .args(["-device", "ide-cd,drive=medium,bootindex=0"]),
                Drive::Stick => cmd.arg("-drive").arg(drive("medium", medium, ",snapshot=on")).args([
                    "-device",
                    "qemu-xhci",
                    "-device",
                    "usb-storage,drive=medium,removable=on,bootindex=0",
                ]),
            };
        }
        for (disk, number) in self.more.iter().zip(2..) {
            cmd = cmd.arg("-drive").arg(drive(&format!("disk{number}"), disk, ",cache=unsafe"));
            cmd = cmd.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number},serial=DISK{number}"));
        }
        if let Some(script) = &self.probe {
            let unit = self.dir.join("probe.service");
            fs_err::write(&unit, probe_unit(script))?;
            let wants = self.dir.join("wants.conf");
            fs_err::write(&wants, "[Unit]\nWants=probe.service\n")?;
            for (name, file) in
                [("systemd.extra-unit.probe.service", unit), ("systemd.unit-dropin.sysinit.target", wants)]
            {
                let text = base64::engine::general_purpose::STANDARD.encode(fs_err::read(&file)?);
                cmd = cmd.arg("-smbios").arg(format!("type=11,value=io.systemd.credential.binary:{name}={text}"));
            }
        }
        let running = cmd.dies_with_us().spawn_logged(&log)?;
        Ok(Booted { running, console })
    }
}

fn sectors(bytes: u32) -> String {
    format!("logical_block_size={bytes},physical_block_size={bytes}")
}

fn probe_unit(script: &str) -> String {
    format!(
        "[Unit]\nDescription=Probe of a test\nDefaultDependencies=no\nAfter=local-fs.target\n[Service]\nType=exec\n\
         StandardOutput=journal+console\nStandardError=journal+console\nExecStart=/bin/sh -c '{script}'\n"
    )
}

/// A machine that is on; off when dropped, without warning.
pub struct Booted {
    running: Running,
    console: PathBuf,
}

impl Booted {
    /// What its serial console has said so far.
    pub fn said(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs_err::read(&self.console)?).into_owned())
    }

    /// Waits for a text on the console; the console is in the error if it does not come.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            let said = self.said()?;
            if said.contains(text) {
                return Ok(said);
            }
            let ended = self.running.try_wait()?;
            if ended.is_some() || started.elapsed() > limit {
                let how = ended.map_or_else(|| format!("nothing within {} s", limit.as_secs()), |how| how.to_string());
                anyhow::bail!("no `{text}` on the console ({how}):\n{}", tail(&said));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Waits until it has powered itself off, or restarts (which ends it here too).
    pub fn wait_for_end(&mut self, limit: Duration) -> anyhow::Result<String> {
        let started = Instant::now();
        while self.running.try_wait()?.is_none() {
            if started.elapsed() > limit {
                anyhow::bail!("still on after {} s:\n{}", limit.as_secs(), tail(&self.said()?));
            }
            thread::sleep(PAUSE);
        }
        self.said()
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The keys that [`Machine::secure`] believes; the private one is put into `dir`.
pub fn secure_keys(dir: &Path) -> anyhow::Result<Keys> {
    let key = dir.join("key.pem");
    let from = ["pkcs8", "-topk8", "-nocrypt", "-passin", SECURE_PASSPHRASE, "-in", SECURE_KEY];
    Cmd::new(&table::OPENSSL).args(from).arg("-out").arg(&key).run()?;
    Ok(Keys { signer: Signer::Key(key), certificate: SECURE_CERTIFICATE.into() })
}

/// A copy of a raw image that keeps its holes, grown to `bytes`: what an operator's virtual disk is.
pub fn disk(image: &Path, to: &Path, bytes: u64) -> anyhow::Result<()> {
    let copied = Cmd::new(&table::CP).args(["--sparse=always", "--reflink=auto"]).arg(image).arg(to).run();
    copied.context("copying the image")?;
    Ok(fs_err::OpenOptions::new().write(true).open(to)?.set_len(bytes)?)
}
