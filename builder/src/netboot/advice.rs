//! What a DHCP server that is there already must be told, ready to paste.

use std::net::SocketAddr;

use super::dhcp::{BIOS, UEFI};

/// Lines for the usual servers; `http` is where machines reach us.
pub fn advice(http: SocketAddr) -> String {
    let (script, tftp) = (format!("http://{http}/boot.ipxe"), http.ip());
    format!(
        "Machines need iPXE, then the script. Either give iPXE to them on their network cards or media, or let your DHCP server\n\
         name it (its files {BIOS} and {UEFI} are in Debian's package `ipxe`; a TFTP server, here {tftp}, must have them).\n\
         \n\
         ISC dhcpd:\n  \
           option client-arch code 93 = unsigned integer 16;\n  \
           next-server {tftp};\n  \
           if exists user-class and option user-class = \"iPXE\" {{ filename \"{script}\"; }}\n  \
           elsif option client-arch = 00:07 or option client-arch = 00:09 {{ filename \"{UEFI}\"; }}\n  \
           else {{ filename \"{BIOS}\"; }}\n\
         \n\
         Kea (\"Dhcp4\"):\n  \
           \"client-classes\": [\n    \
             {{\"name\": \"ipxe\", \"test\": \"option[77].hex == 'iPXE'\", \"boot-file-name\": \"{script}\"}},\n    \
             {{\"name\": \"uefi\", \"test\": \"not member('ipxe') and (option[93].hex == 0x0007 or option[93].hex == 0x0009)\",\n     \
              \"next-server\": \"{tftp}\", \"boot-file-name\": \"{UEFI}\"}},\n    \
             {{\"name\": \"bios\", \"test\": \"not member('ipxe') and option[93].hex == 0x0000\",\n     \
              \"next-server\": \"{tftp}\", \"boot-file-name\": \"{BIOS}\"}}]\n\
         \n\
         dnsmasq:\n  \
           dhcp-userclass=set:ipxe,iPXE\n  \
           dhcp-match=set:uefi,option:client-arch,7\n  \
           dhcp-match=set:uefi,option:client-arch,9\n  \
           dhcp-boot=tag:!ipxe,tag:!uefi,{BIOS},,{tftp}\n  \
           dhcp-boot=tag:!ipxe,tag:uefi,{UEFI},,{tftp}\n  \
           dhcp-boot=tag:ipxe,{script}\n\
         \n\
         Or leave your DHCP server as it is, and add: --dhcp proxy --interface IF"
    )
}
