//! What systemd is told: which disk is ours, where `/var` and the EFI system partition are, who this machine is. A machine
//! whose root is a file has no such disk: the agent chooses one for `/var` (`pgkiln.live`).
//!
//! The units are written to `/run`, not shipped in the image, because they are true only on a machine that was booted from a
//! disk: the same root also runs in a container that brings its `/var` along.

use fs_err as fs;
use std::io;
use std::os::unix::fs::PermissionsExt;

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cmdline::{Mode, OnFailure, Options};
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
const EMERGENCY: (&str, &str) = ("emergency.service", include_str!("units/emergency.service"));
const PATIENCE: (&str, &str) =
    ("dev-disk-pgkiln-var.device.d/patience.conf", include_str!("units/var.device.patience.conf"));
const RULES: &str = include_str!("units/61-pgkiln-disk.rules");
/// The partition grows with the disk, and the file system with the partition.
const GROWS: (&str, &str) =
    ("local-fs.target.wants/systemd-growfs@var.service", "/usr/lib/systemd/system/systemd-growfs@.service");

/// Units of one mode: files, and links to what is wanted or masked.
struct Set {
    files: &'static [(&'static str, &'static str)],
    links: &'static [(&'static str, &'static str)],
}

const DISK: Set = Set {
    files: &[
        ("var.mount", include_str!("units/var.mount")),
        ("boot.mount", include_str!("units/boot.mount")),
        ("boot.automount", include_str!("units/boot.automount")),
        PATIENCE,
        EMERGENCY,
    ],
    links: &[
        ("local-fs.target.requires/var.mount", "../var.mount"),
        ("local-fs.target.wants/boot.automount", "../boot.automount"),
        GROWS,
    ],
};

const LIVE: Set = Set {
    files: &[
        ("var.mount", include_str!("units/var.mount")),
        ("var.mount.d/live.conf", include_str!("units/var.mount.live.conf")),
        ("pgkiln-state.service", include_str!("units/pgkiln-state.service")),
        PATIENCE,
        EMERGENCY,
    ],
    links: &[
        ("local-fs.target.requires/var.mount", "../var.mount"),
        GROWS,
        // There is no disk of this image whose partitions it could look at.
        ("systemd-repart.service", MASKED),
    ],
};

/// One service, and a `/var` in memory for what it is made of.
const INSTALL: Set = Set {
    files: &[
        ("var.mount", include_str!("units/var.mount.install")),
        ("pgkiln-install.target", include_str!("units/pgkiln-install.target")),
        ("pgkiln-install.service", include_str!("units/pgkiln-install.service")),
        EMERGENCY,
    ],
    links: &[
        ("default.target", "pgkiln-install.target"),
        ("local-fs.target.requires/var.mount", "../var.mount"),
        // The disk has not been chosen yet.
        ("systemd-repart.service", MASKED),
    ],
};

const MASKED: &str = "/dev/null";

/// Puts the machine id of earlier boots in place, before anything uses one: `/etc` is new at every boot. Without one (first
/// boot, or a `/var` that cannot be read now or is not found) systemd makes one, and the agent sees to it.
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
    let set = match options.mode {
        Mode::Disk => DISK,
        Mode::Live => LIVE,
        Mode::Install => INSTALL,
    };
    let place = |name: &str| {
        let path = root.join(&SYSTEM[1..]).join(name);
        fs::create_dir_all(path.parent().unwrap_or(root)).map(|()| path)
    };
    for (name, text) in set.files {
        fs::write(place(name)?, text.replace("@ACTION@", action))?;
    }
    for (name, target) in set.links {
        fs::os::unix::fs::symlink(target, place(name)?)?;
    }
    let Some(disk) = &found.disk else { return Ok(()) };
    let rules = root.join("run/udev/rules.d");
    fs::create_dir_all(&rules)?;
    fs::write(rules.join("61-pgkiln-disk.rules"), RULES.replace("@DISK@", disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_this_disk_and_of_this_command_line() {
        let dir = std::env::temp_dir().join(format!("pgkiln-handoff-{}", std::process::id()));
        let disk = Some("254:16".to_owned());
        let found = Found { disk, root: "/dev/a".into(), hashes: "/dev/b".into(), hashes_at: 0, var: None };
        let options = Options { on_failure: OnFailure::PowerOff, ..Options::default() };
        write_units(&dir, &found, &options).unwrap();
        let read = |path: &str| fs::read_to_string(dir.join("run").join(path)).unwrap();
        assert!(read("udev/rules.d/61-pgkiln-disk.rules").contains("ID_PART_ENTRY_DISK}==\"254:16\""));
        assert_eq!(read("systemd/system/emergency.service").matches("poweroff-force").count(), 2);
        assert!(read("systemd/system/local-fs.target.requires/var.mount").contains("Where=/var"));
        fs::remove_dir_all(&dir).unwrap();

        let found = Found { disk: None, ..found };
        write_units(&dir, &found, &Options { mode: Mode::Live, ..options.clone() }).unwrap();
        assert!(read("systemd/system/var.mount").contains("Where=/var"));
        assert!(read("systemd/system/var.mount.d/live.conf").contains("Requires=pgkiln-state.service"));
        assert!(read("systemd/system/pgkiln-state.service").contains("ExecStart=/usr/bin/firstboot state-disk"));
        let masked = fs::read_link(dir.join("run/systemd/system/systemd-repart.service")).unwrap();
        assert_eq!(masked, Path::new("/dev/null"), "it would change the disk that has not been chosen yet");
        assert!(!dir.join("run/udev").exists());
        fs::remove_dir_all(&dir).unwrap();

        write_units(&dir, &found, &Options { mode: Mode::Install, ..options }).unwrap();
        assert!(read("systemd/system/var.mount").contains("Type=tmpfs"));
        assert!(read("systemd/system/default.target").contains("Requires=basic.target pgkiln-install.service"));
        assert!(!dir.join("run/systemd/system/pgkiln-state.service").exists(), "an installer chooses by itself");
        fs::remove_dir_all(&dir).unwrap();
    }
}
