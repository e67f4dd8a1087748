//! What systemd is told: which disk is ours, where `/var` and the EFI system partition are, who this machine is.
//!
//! The units are written to `/run`, not shipped in the image, because they are true only on a machine that was booted from a
//! disk: the same root also runs in a container that brings its `/var` along.

use fs_err as fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cmdline::{OnFailure, Options};
use crate::console::say;
use crate::disk::Found;
use crate::fail::Failed;
use crate::root::ROOT;

/// Name of the partition that becomes `/var`; the image's `/usr/lib/repart.d` makes it.
pub(crate) const VAR: &str = "var";

/// Where `/var` is for as long as it takes to read one file.
const LOOK: &str = "/look";
/// Written by the agent at first boot.
const MACHINE_ID: &str = "lib/pgkiln/machine-id";

const SYSTEM: &str = "/run/systemd/system";
const UNITS: [(&str, &str); 4] = [
    ("var.mount", include_str!("units/var.mount")),
    ("boot.mount", include_str!("units/boot.mount")),
    ("boot.automount", include_str!("units/boot.automount")),
    ("emergency.service", include_str!("units/emergency.service")),
];
const RULES: &str = include_str!("units/61-pgkiln-disk.rules");

/// What local-fs.target pulls in: name of the link and its target.
const WANTED: [(&str, &str); 3] = [
    ("var.mount", "../var.mount"),
    ("boot.automount", "../boot.automount"),
    // The partition grows with the disk, and the file system with the partition.
    ("systemd-growfs@var.service", "/usr/lib/systemd/system/systemd-growfs@.service"),
];

/// Puts the machine id of earlier boots in place, before anything uses one: `/etc` is new at every boot. Without one (first
/// boot, or a `/var` that cannot be read now) systemd makes one, and the agent sees to it.
pub(crate) fn machine_id(found: &Found) -> Result<(), Failed> {
    let Some(var) = &found.var else { return Ok(()) };
    match stored_id(var) {
        Ok(id) => {
            let path = format!("{ROOT}/etc/machine-id");
            let written =
                fs::write(&path, id).and_then(|()| fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)));
            written.map_err(|error| Failed::call("writing /etc/machine-id", error))
        }
        Err(error) => {
            say(&format!("no machine id on {}: {error}", var.display()));
            Ok(())
        }
    }
}

/// Without replaying the journal: that is for systemd's file system check.
fn stored_id(var: &Path) -> io::Result<String> {
    fs::create_dir_all(LOOK)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(var), LOOK, Some("ext4"), flags, Some("noload"))?;
    let id = fs::read_to_string(Path::new(LOOK).join(MACHINE_ID));
    umount2(LOOK, MntFlags::empty())?;
    let id = id?;
    let good = id.trim().len() == 32 && id.trim().bytes().all(|byte| byte.is_ascii_hexdigit());
    if good { Ok(id) } else { Err(io::Error::other("not a machine id")) }
}

/// Writes units and udev rules.
pub(crate) fn units(found: &Found, options: &Options) -> Result<(), Failed> {
    write_units(Path::new("/"), found, options).map_err(|error| Failed::call("writing units", error))
}

fn write_units(root: &Path, found: &Found, options: &Options) -> io::Result<()> {
    let action = match options.on_failure {
        OnFailure::Reboot => "reboot-force",
        OnFailure::PowerOff => "poweroff-force",
    };
    let system = root.join(&SYSTEM[1..]);
    let wants = system.join("local-fs.target.wants");
    let rules = root.join("run/udev/rules.d");
    fs::create_dir_all(&wants)?;
    fs::create_dir_all(&rules)?;
    for (name, text) in UNITS {
        fs::write(system.join(name), text.replace("@ACTION@", action))?;
    }
    for (name, target) in WANTED {
        fs::os::unix::fs::symlink(target, wants.join(name))?;
    }
    fs::write(rules.join("61-pgkiln-disk.rules"), RULES.replace("@DISK@", &found.disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_this_disk_and_of_this_command_line() {
        let dir = std::env::temp_dir().join(format!("pgkiln-handoff-{}", std::process::id()));
        let found = Found { disk: "254:16".into(), root: "/dev/a".into(), hashes: "/dev/b".into(), var: None };
        let options = Options { on_failure: OnFailure::PowerOff, ..Options::default() };
        write_units(&dir, &found, &options).unwrap();
        let read = |path: &str| fs::read_to_string(dir.join("run").join(path)).unwrap();
        assert!(read("udev/rules.d/61-pgkiln-disk.rules").contains("ID_PART_ENTRY_DISK}==\"254:16\""));
        assert_eq!(read("systemd/system/emergency.service").matches("poweroff-force").count(), 2);
        assert!(read("systemd/system/local-fs.target.wants/var.mount").contains("Where=/var"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
