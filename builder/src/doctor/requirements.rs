//! The table of host requirements.

use std::path::Path;

use serde::Serialize;

use super::{Finding, host};
use crate::tool::{Tool, table};

/// What a requirement is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// `pgkiln lock` and `pgkiln bake`.
    Bake,
    /// `pgkiln lab` and `pgkiln demo`.
    Lab,
    /// `pgkiln lab --engine qemu`.
    Machines,
    /// `pgkiln netboot --dhcp proxy`.
    Netboot,
    /// `cargo selftest`, beside the others.
    Tests,
}

impl Purpose {
    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bake => "bake",
            Self::Lab => "lab",
            Self::Machines => "machines",
            Self::Netboot => "netboot",
            Self::Tests => "tests",
        }
    }
}

/// One line of the table.
pub struct Requirement {
    /// What is required.
    pub what: &'static str,
    /// What it is needed for.
    pub purpose: Purpose,
    /// Why it is needed.
    pub why: &'static str,
    /// Oldest version or smallest amount; empty if any does.
    pub minimum: String,
    /// Debian and Ubuntu package that brings it.
    pub package: Option<&'static str>,
    /// What to do where no package helps.
    pub remedy: &'static str,
    probe: Box<dyn Fn() -> Answer>,
}

/// What a probe found: `Ok` is enough, `Err` is not; both say what is there (empty: nothing).
type Answer = Result<String, String>;

impl Requirement {
    /// Asks the host.
    pub(super) fn check(self) -> Finding {
        let (found, ok) = match (self.probe)() {
            Ok(found) => (found, true),
            Err(found) => (found, false),
        };
        let remedy = match self.package {
            _ if ok => String::new(),
            Some(package) if host::is_debian_like() => format!("apt-get install {package}"),
            Some(package) => format!("install the package Debian calls `{package}`"),
            None => self.remedy.to_owned(),
        };
        let Self { what, purpose, why, minimum, package, .. } = self;
        Finding { what, minimum, found, ok, why, purpose, package, remedy }
    }
}

fn tool(purpose: Purpose, tool: &'static Tool) -> Requirement {
    let probe = || match (tool.find(), tool.check()) {
        (Err(_), _) => Err(String::new()),
        (Ok(_), Ok(Some(version))) => Ok(version.to_string()),
        (Ok(_), Ok(None)) => Ok("present".to_owned()),
        (Ok(_), Err(_)) => Err("too old".to_owned()),
    };
    Requirement {
        what: tool.name,
        purpose,
        why: tool.why,
        minimum: tool.minimum.map(|(version, _)| version.to_owned()).unwrap_or_default(),
        package: Some(tool.package),
        remedy: "",
        probe: Box::new(probe),
    }
}

fn file(
    purpose: Purpose,
    what: &'static str,
    why: &'static str,
    path: &'static str,
    package: &'static str,
) -> Requirement {
    let probe = move || if Path::new(path).exists() { Ok("present".to_owned()) } else { Err(String::new()) };
    let minimum = String::new();
    Requirement { what, purpose, why, minimum, package: Some(package), remedy: "", probe: Box::new(probe) }
}

fn kernel(
    purpose: Purpose,
    what: &'static str,
    why: &'static str,
    probe: impl Fn() -> bool + 'static,
    remedy: &'static str,
) -> Requirement {
    let probe = move || if probe() { Ok("present".to_owned()) } else { Err(String::new()) };
    Requirement { what, purpose, why, minimum: String::new(), package: None, remedy, probe: Box::new(probe) }
}

fn gigabytes(
    purpose: Purpose,
    what: &'static str,
    why: &'static str,
    needed: u64,
    available: impl Fn() -> u64 + 'static,
    remedy: &'static str,
) -> Requirement {
    let probe = move || {
        let bytes = available();
        let text = format!("{:.1} GB", bytes as f64 / 1e9);
        if bytes >= needed * 1_000_000_000 { Ok(text) } else { Err(text) }
    };
    Requirement { what, purpose, why, minimum: format!("{needed} GB"), package: None, remedy, probe: Box::new(probe) }
}

/// Everything pgkiln needs from a host, in the order a reader would fix it.
pub(super) fn all(cache_dir: &Path) -> Vec<Requirement> {
    use Purpose::{Bake, Lab, Machines, Netboot, Tests};
    let cache = cache_dir.to_owned();
    let modules = "use a kernel that has it; Debian's and Ubuntu's stock kernels do";
    vec![
        tool(Bake, &table::APT_GET),
        tool(Bake, &table::GPGV),
        file(
            Bake,
            "Debian's archive keys",
            "checking Debian's signatures",
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "debian-archive-keyring",
        ),
        tool(Bake, &table::UNSHARE),
        tool(Bake, &table::MOUNT),
        tool(Bake, &table::CARGO),
        tool(Bake, &table::CC),
        kernel(
            Bake,
            "namespaces",
            "running maintainer scripts without network",
            host::namespaces_work,
            "run as root, and on a host or in a container that may create mount, network and pid namespaces",
        ),
        gigabytes(
            Bake,
            "free disk (cache)",
            "packages and root trees in the cache directory",
            4,
            move || host::free_bytes(&cache),
            "free some space, or put the cache elsewhere with --cache DIR",
        ),
        tool(Lab, &table::NSPAWN),
        tool(Lab, &table::IP),
        tool(Lab, &table::NSENTER),
        tool(Lab, &table::SETPRIV),
        kernel(
            Lab,
            "root",
            "network namespaces, cgroups and mounts of the lab's nodes",
            || nix::unistd::geteuid().is_root(),
            "run as root (`sudo -E cargo demo`)",
        ),
        kernel(
            Lab,
            "overlayfs",
            "`/etc` of a node: image below, memory above",
            || host::filesystem("overlay"),
            modules,
        ),
        kernel(
            Lab,
            "squashfs or erofs",
            "mounting the root image read-only",
            || host::filesystem("squashfs") || host::filesystem("erofs"),
            modules,
        ),
        kernel(
            Lab,
            "cgroup2",
            "systemd in the nodes, and killing a whole node at one instant",
            host::cgroup2_works,
            "run as root on a kernel with cgroup v2 (4.15 and later), in a container only if it may mount cgroup2",
        ),
        gigabytes(
            Lab,
            "free disk (/var/tmp)",
            "the data directories of three nodes",
            2,
            || host::free_bytes(Path::new("/var/tmp")),
            "free some space in /var/tmp",
        ),
        gigabytes(
            Lab,
            "available memory",
            "three nodes, each with PostgreSQL, etcd, Patroni and HAProxy",
            2,
            host::available_memory,
            "end other programs, or use a larger machine",
        ),
        tool(Machines, &table::QEMU),
        tool(Machines, &table::QEMU_IMG),
        tool(Machines, &table::XORRISO),
        tool(Machines, &table::SSH),
        file(Machines, "UEFI firmware", "booting disks as machines", "/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
        tool(Netboot, &table::DNSMASQ),
        file(Netboot, "iPXE", "what machines load before the script", "/usr/lib/ipxe/undionly.kpxe", "ipxe"),
        tool(Tests, &table::MMDEBSTRAP),
        tool(Tests, &table::FAKETIME),
        tool(Tests, &table::STRACE),
        tool(Tests, &table::PSQL),
        tool(Tests, &table::NFT),
        tool(Tests, &table::OPENSSL),
        tool(Tests, &table::MINISIGN),
        tool(Tests, &table::SOFTHSM),
        tool(Tests, &table::PKCS11_TOOL),
    ]
}
