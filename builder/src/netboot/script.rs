//! iPXE scripts. Addresses in them are those under which the server was asked: there may be several networks.

use std::net::SocketAddr;

use super::machines::{Machine, Mode};
use super::set::Set;

/// Tries of a machine that is not known, ten seconds apart, before it goes on to its disk: it may be added meanwhile.
const TRIES: u32 = 6;

/// For everybody: `mac` is the address of the interface that this was booted from.
pub(super) fn boot() -> String {
    "#!ipxe\n\
     # Each machine gets a script of its own, by the address of the interface it boots from.\n\
     chain --replace --autofree /ipxe/${mac:hexhyp}\n"
        .to_owned()
}

/// For one machine.
pub(super) fn machine(mac: &str, machine: &Machine, set: &Set, more: &str, server: SocketAddr) -> String {
    let base = format!("http://{server}/i/{}", set.id);
    let Machine { slot, cluster, mode, .. } = machine;
    let how = match mode {
        Mode::Live => "runs from memory",
        Mode::Install => "is written to a disk",
    };
    let mut text = format!("#!ipxe\necho pgkiln: {mac} is {slot} of cluster {cluster}: {} {how}\n", set.id);
    let initrds = set.files.iter().skip(1);
    let named: Vec<String> = initrds.clone().map(|file| format!("initrd={}", file.name)).collect();
    let kernel = set.files.first().map_or("", |file| file.name.as_str());
    let mut words =
        vec![named.join(" "), set.command_line.clone(), format!("ds=nocloud;s=http://{server}/seed/{mac}/")];
    words.extend(disk(machine));
    words.extend((!more.is_empty()).then(|| more.to_owned()));
    words.extend((*mode == Mode::Install).then(|| "pgkiln.mode=install".to_owned()));
    text += &format!("kernel {base}/{kernel} {} || goto failed\n", words.join(" "));
    for file in initrds {
        text += &format!("initrd {base}/{} || goto failed\n", file.name);
    }
    text + "boot || goto failed\n\
            :failed\n\
            echo pgkiln: this machine could not be booted over the network; once more in 10 s\n\
            sleep 10\n\
            chain --replace --autofree /ipxe/${mac:hexhyp} || exit 1\n"
}

/// The disk that the metadata names: it is chosen before there is a network to read the metadata.
fn disk(machine: &Machine) -> Vec<String> {
    let Some(disk) = &machine.disk else { return Vec::new() };
    let plain = |text: &&String| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/+,".contains(c));
    let word =
        |kind: &str, value: &Option<String>| Some(format!("pgkiln.disk={kind}{}", value.as_ref().filter(plain)?));
    let named = word("serial:", &disk.serial).or(word("wwn:", &disk.wwn)).or(word("", &disk.path));
    let lost = disk.overwrite.as_ref().filter(plain).map(|cluster| format!("pgkiln.overwrite={cluster}"));
    named.into_iter().chain(lost).collect()
}

/// For a machine that nobody named: it says so, asks again for a minute, then goes on to its disk.
pub(super) fn unknown(mac: &str) -> String {
    format!(
        "#!ipxe\n\
         isset ${{tries}} || set tries:int32 0\n\
         inc tries\n\
         echo pgkiln: no machine has the address {mac}: add it (mac in cluster.toml, or a seed of that name)\n\
         iseq ${{tries}} {TRIES} && goto disk ||\n\
         echo pgkiln: asking again in 10 s\n\
         sleep 10\n\
         chain --replace --autofree /ipxe/${{mac:hexhyp}} || goto disk\n\
         :disk\n\
         echo pgkiln: going on to the next boot device\n\
         exit 1\n"
    )
}
