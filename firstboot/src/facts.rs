//! A read-only look at this machine. Nothing here decides anything; `plan` does.

use std::net::IpAddr;

use fs_err as fs;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::proxy::{self, servers::Servers};

/// What the machine is and what is on its disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Identifier of this boot.
    pub boot_id: String,
    /// What tells this machine from another.
    pub machine: Machine,
    /// Memory the node may use, in MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Ethernet links (no loopback, no virtual devices on top of others).
    pub links: Vec<Link>,
    /// Addresses as configured now.
    pub addresses: Vec<IpAddr>,
    /// Data of earlier boots.
    pub data: ExistingData,
    /// Whether a watchdog device exists.
    pub watchdog: bool,
    /// Size of the file system that carries PostgreSQL's data, in MiB.
    pub data_mib: u64,
    /// HAProxy's servers as last written; empty if there never were any.
    #[serde(default)]
    pub servers: Servers,
}

/// What tells this machine from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// SMBIOS system UUID, lower case; `None` if the firmware has none.
    pub smbios: Option<String>,
    /// Serial numbers of disks, sorted.
    #[serde(default)]
    pub disks: Vec<String>,
}

impl Machine {
    /// Whether `other` is this machine: same firmware identity and at least one disk in common. What is unknown on
    /// either side says nothing.
    pub fn is(&self, other: &Self) -> bool {
        let firmware = match (&self.smbios, &other.smbios) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        let unknown = self.disks.is_empty() || other.disks.is_empty();
        firmware && (unknown || self.disks.iter().any(|disk| other.disks.contains(disk)))
    }
}

/// An Ethernet link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Kernel name.
    pub name: String,
    /// MAC address, lower case.
    pub mac: String,
}

/// Data of earlier boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistingData {
    /// etcd has a member directory.
    pub etcd_member: bool,
    /// PostgreSQL has a control file (any major version).
    pub pg_control: bool,
    /// The born marker exists.
    pub born: bool,
}

impl Facts {
    /// Looks at the machine under `layout`; what cannot be read is absent.
    pub fn gather(layout: &Layout) -> Self {
        let text = |path: &str| fs::read_to_string(layout.at(path)).ok().map(|t| t.trim().to_owned());
        Self {
            boot_id: text("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            machine: Machine {
                smbios: text("/sys/class/dmi/id/product_uuid").map(|t| t.to_lowercase()).filter(|t| is_uuid(t)),
                disks: disks(layout),
            },
            memory_mib: memory(layout),
            cpus: cpus(layout),
            links: links(layout),
            addresses: if layout.is_live() { addresses() } else { Vec::new() },
            data: ExistingData {
                etcd_member: layout.etcd_data().join("member").exists(),
                pg_control: has_pg_data(layout),
                born: layout.born().exists(),
            },
            watchdog: layout.at("/dev/watchdog").exists(),
            data_mib: size_mib(layout),
            servers: proxy::kept(layout),
        }
    }

    /// Whether any of the cluster's data is here.
    pub fn has_data(&self) -> bool {
        self.data.etcd_member || self.data.pg_control || self.data.born
    }
}

fn size_mib(layout: &Layout) -> u64 {
    let stat = nix::sys::statvfs::statvfs(&layout.at("/var/lib/postgresql"));
    stat.map_or(0, |stat| (stat.blocks() * stat.fragment_size()) >> 20)
}

/// Firmware without an identity says all zeros or all ones.
fn is_uuid(text: &str) -> bool {
    uuid::Uuid::parse_str(text).is_ok_and(|uuid| !uuid.is_nil() && !uuid.is_max())
}

fn names(layout: &Layout, directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(layout.at(directory)) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn disks(layout: &Layout) -> Vec<String> {
    let mut serials = Vec::new();
    for name in names(layout, "/sys/block") {
        for file in ["serial", "device/serial", "device/wwid"] {
            let path = layout.at(format!("/sys/block/{name}/{file}"));
            if let Some(serial) = fs::read_to_string(path).ok().filter(|serial| !serial.trim().is_empty()) {
                serials.push(serial.trim().to_owned());
                break;
            }
        }
    }
    serials.sort();
    serials
}

fn links(layout: &Layout) -> Vec<Link> {
    let ethernet = |name: &String| {
        let base = layout.at(format!("/sys/class/net/{name}"));
        let read = |file: &str| fs::read_to_string(base.join(file)).unwrap_or_default().trim().to_owned();
        // Type 1 is Ethernet; bridges, bonds and VLANs have a directory of their own or one in /proc.
        let stacked = ["bridge", "bonding", "tun_flags"].iter().any(|file| base.join(file).exists());
        (read("type") == "1" && !stacked)
            .then(|| Link { name: name.clone(), mac: read("address").to_lowercase() })
            .filter(|link| link.mac.len() == 17 && !link.name.contains('.'))
    };
    names(layout, "/sys/class/net").iter().filter_map(ethernet).collect()
}

fn addresses() -> Vec<IpAddr> {
    let Ok(list) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut addresses: Vec<IpAddr> = list
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .filter(|ip| !ip.is_loopback())
        .collect();
    addresses.sort();
    addresses
}

/// The link that has `address` now.
pub fn link_with(layout: &Layout, address: IpAddr) -> Option<Link> {
    let ip = |entry: &nix::ifaddrs::InterfaceAddress| {
        let v4 = entry.address.as_ref()?.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or_else(|| entry.address.as_ref()?.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    };
    let found = nix::ifaddrs::getifaddrs().ok()?.find(|entry| ip(entry) == Some(address))?;
    let name = found.interface_name;
    let mac = fs::read_to_string(layout.at(format!("/sys/class/net/{name}/address"))).ok()?;
    Some(Link { mac: mac.trim().to_lowercase(), name })
}

/// Whether `address` is configured on this machine now.
pub fn has_address(address: IpAddr) -> bool {
    addresses().contains(&address)
}

/// Whether this machine has an address that others can reach it at.
pub fn is_on_a_network() -> bool {
    addresses().iter().any(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    })
}

/// Whether `network` contains an address configured now.
pub fn is_connected(network: IpNet) -> bool {
    addresses().iter().any(|ip| network.contains(ip))
}

/// Physical memory or the control group's limit, whichever is less.
fn memory(layout: &Layout) -> u64 {
    let meminfo = fs::read_to_string(layout.at("/proc/meminfo")).unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) / 1024;
    let limit = fs::read_to_string(layout.at("/sys/fs/cgroup/memory.max")).ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok()).map(|bytes| bytes >> 20);
    limit.map_or(total, |limit| limit.min(total))
}

fn cpus(layout: &Layout) -> u32 {
    let cpuinfo = fs::read_to_string(layout.at("/proc/cpuinfo")).unwrap_or_default();
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    u32::try_from(count).unwrap_or(1).max(1)
}

/// Whether a PostgreSQL data directory of any major version is on this disk.
pub fn has_pg_data(layout: &Layout) -> bool {
    let base = "/var/lib/postgresql";
    names(layout, base).iter().any(|major| layout.at(base).join(major).join("main/global/pg_control").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_tree() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:        8388608 kB\n");
        write("proc/cpuinfo", "processor\t: 0\nprocessor\t: 1\n");
        write("sys/fs/cgroup/memory.max", "4294967296\n");
        write("sys/class/dmi/id/product_uuid", "4C4C4544-0042-4A10-8052-CAC04F4D3132\n");
        write("sys/class/net/lo/type", "772\n");
        write("sys/class/net/host0/type", "1\n");
        write("sys/class/net/host0/address", "02:00:00:00:00:0A\n");
        write("sys/block/vda/serial", "DATA1\n");
        write("var/lib/postgresql/17/main/global/pg_control", "x");
        let facts = Facts::gather(&Layout::new(root.path()));
        assert_eq!((facts.memory_mib, facts.cpus), (4096, 2));
        assert_eq!(facts.machine.smbios.as_deref(), Some("4c4c4544-0042-4a10-8052-cac04f4d3132"));
        assert_eq!(facts.machine.disks, ["DATA1"]);
        assert_eq!(facts.links, [Link { name: "host0".into(), mac: "02:00:00:00:00:0a".into() }]);
        assert!(facts.data.pg_control && !facts.data.etcd_member && facts.has_data());
    }

    #[test]
    fn same_machine() {
        let machine = |smbios: &str, disks: &[&str]| Machine {
            smbios: Some(smbios.into()),
            disks: disks.iter().map(ToString::to_string).collect(),
        };
        assert!(machine("a", &["1"]).is(&machine("a", &["1", "2"])));
        assert!(!machine("a", &["1"]).is(&machine("a", &["2"])));
        assert!(!machine("a", &["1"]).is(&machine("b", &["1"])));
        assert!(Machine::default().is(&machine("b", &["1"])));
    }
}
