//! `--dhcp proxy`: dnsmasq beside the network's own DHCP server. It gives out no address; it only tells machines that boot
//! over the network where iPXE is (TFTP), and iPXE where the script is.

use std::io::{Read, Seek};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Context;

use crate::problem::Problem;
use crate::tool::{Cmd, Running, table};

/// Where Debian's package `ipxe` has the loaders.
const LOADERS: &str = "/usr/lib/ipxe";
/// For BIOS: on top of the firmware's own network driver.
pub(super) const BIOS: &str = "undionly.kpxe";
/// For UEFI: likewise.
pub(super) const UEFI: &str = "snponly.efi";

/// dnsmasq, running; ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    running: Running,
    log: std::fs::File,
    // Last: the loaders are served from here.
    _dir: tempfile::TempDir,
}

/// The first address of this machine that is not its own alone.
pub fn own_address() -> Option<Ipv4Addr> {
    addresses()
        .find(|(_, address, _)| !address.is_loopback() && !address.is_link_local())
        .map(|(_, address, _)| address)
}

fn addresses() -> impl Iterator<Item = (String, Ipv4Addr, Ipv4Addr)> {
    nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|entry| {
        let address = entry.address?.as_sockaddr_in()?.ip();
        let mask = entry.netmask?.as_sockaddr_in()?.ip();
        Some((entry.interface_name, address, mask))
    })
}

/// Address and network mask of an interface.
pub fn address_of(interface: &str) -> Result<(Ipv4Addr, Ipv4Addr), Problem> {
    let found = addresses().find(|(name, _, _)| name == interface);
    found.map(|(_, address, mask)| (address, mask)).ok_or_else(|| {
        let mut known: Vec<String> = addresses().map(|(name, _, _)| name).filter(|name| name != "lo").collect();
        known.dedup();
        let remedy =
            format!("name the interface of the machines' network; those with an address: {}", known.join(", "));
        Problem::new(format!("interface `{interface}` has no IPv4 address"), "--interface", remedy)
    })
}

/// dnsmasq's configuration.
pub(super) fn config(interface: &str, address: Ipv4Addr, mask: Ipv4Addr, http: SocketAddr, tftp: &Path) -> String {
    let network = Ipv4Addr::from(u32::from(address) & u32::from(mask));
    let script = format!("http://{http}/boot.ipxe");
    let tftp = tftp.display();
    // Client system architectures of RFC 4578: 0 is BIOS; 6, 7 and 9 are UEFI, of which 6 has 32 bits and gets nothing.
    format!(
        "port=0\ninterface={interface}\nbind-interfaces\nexcept-interface=lo\nuser=root\ngroup=root\n\
         dhcp-range={network},proxy,{mask}\nleasefile-ro\nlog-dhcp\nno-resolv\nno-hosts\n\
         enable-tftp\ntftp-root={tftp}\n\
         dhcp-userclass=set:ipxe,iPXE\n\
         dhcp-match=set:bios,option:client-arch,0\n\
         dhcp-match=set:uefi,option:client-arch,7\n\
         dhcp-match=set:uefi,option:client-arch,9\n\
         dhcp-boot=tag:!ipxe,tag:bios,{BIOS},,{address}\n\
         dhcp-boot=tag:!ipxe,tag:uefi,{UEFI},,{address}\n\
         dhcp-boot=tag:ipxe,{script},,{address}\n\
         pxe-service=tag:!ipxe,x86PC,pgkiln,{BIOS},{address}\n\
         pxe-service=tag:!ipxe,X86-64_EFI,pgkiln,{UEFI},{address}\n\
         pxe-service=tag:!ipxe,BC_EFI,pgkiln,{UEFI},{address}\n"
    )
}

impl Proxy {
    /// Starts dnsmasq on `interface`, for machines that then ask `http`.
    pub fn start(interface: &str, http: SocketAddr) -> anyhow::Result<Self> {
        let (address, mask) = address_of(interface)?;
        let dir = tempfile::Builder::new().prefix("pgkiln-netboot-").tempdir()?;
        // The loaders alone: nothing else of this host's is served over TFTP.
        let tftp = dir.path().join("tftp");
        fs_err::create_dir(&tftp)?;
        for loader in [BIOS, UEFI] {
            let from = Path::new(LOADERS).join(loader);
            fs_err::copy(&from, tftp.join(loader)).map_err(|error| {
                let remedy = "pgkiln doctor --for netboot --install";
                Problem::new(format!("no iPXE for the machines: {}", error.kind()), from.display().to_string(), remedy)
            })?;
        }
        let file = dir.path().join("dnsmasq.conf");
        fs_err::write(&file, config(interface, address, mask, http, &tftp))?;
        let log = tempfile::tempfile_in(dir.path()).context("a log file")?;
        let cmd = Cmd::new(&table::DNSMASQ).args(["--keep-in-foreground", "--log-facility=-"]);
        let cmd = cmd.arg(format!("--conf-file={}", file.display())).dies_with_us();
        Ok(Self { running: cmd.spawn_logged(&log)?, log, _dir: dir })
    }

    /// An error if it has ended: without it nobody finds the script.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.running.try_wait()? else { return Ok(()) };
        let mut said = String::new();
        self.log.rewind().and_then(|()| self.log.read_to_string(&mut said)).context("reading dnsmasq's log")?;
        let last = said.lines().last().unwrap_or_default();
        let remedy = "if another program answers DHCP on this machine already (port 67), configure that one instead: leave \
                      out `--dhcp`, and the lines for it are printed";
        Err(Problem::new(format!("dnsmasq ended ({status}): {last}"), "--dhcp proxy", remedy).into())
    }
}
