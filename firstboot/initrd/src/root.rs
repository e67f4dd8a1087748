//! Mounts, and the step from the initramfs into the root.

use fs_err as fs;
use std::convert::Infallible;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount as attach, umount2};
use nix::unistd::{chdir, chroot, execv};

use crate::fail::Failed;

/// Where the root is until it becomes `/`.
pub(crate) const ROOT: &str = "/sysroot";
/// Where the writable layer of `/etc` is while it is put together.
const LAYER: &str = "/layer";

const NOTHING: Option<&str> = None;
const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// The kernel's own file systems, with the options systemd would give them.
const VIRTUAL: [(&str, &str, MsFlags, &str); 4] = [
    ("/proc", "proc", SAFE.union(MsFlags::MS_NOEXEC), ""),
    ("/sys", "sysfs", SAFE.union(MsFlags::MS_NOEXEC), ""),
    ("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755"),
    ("/run", "tmpfs", SAFE, "mode=0755,size=20%"),
];

/// Mounts `/proc`, `/sys`, `/dev` and `/run`.
pub(crate) fn mount_virtual() -> Result<(), Failed> {
    for (at, kind, flags, data) in VIRTUAL {
        directory(at)?;
        let mounted = attach(Some(kind), at, Some(kind), flags, (!data.is_empty()).then_some(data));
        mounted.map_err(|error| Failed::call(&format!("mounting {at}"), error))?;
    }
    Ok(())
}

/// Mounts the verified device.
pub(crate) fn mount(device: &Path) -> Result<(), Failed> {
    directory(ROOT)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    attach(Some(device), ROOT, Some("squashfs"), flags, NOTHING)
        .map_err(|error| Failed::call("mounting the root", error))
}

/// The image's `/etc` with a writable layer in memory: every boot begins with what the image says.
pub(crate) fn overlay_etc() -> Result<(), Failed> {
    directory(LAYER)?;
    attach(Some("tmpfs"), LAYER, Some("tmpfs"), SAFE, Some("mode=0755"))
        .map_err(|error| Failed::call("mounting memory for /etc", error))?;
    let (upper, work, etc) = (format!("{LAYER}/upper"), format!("{LAYER}/work"), format!("{ROOT}/etc"));
    directory(&upper)?;
    directory(&work)?;
    let layers = format!("lowerdir={etc},upperdir={upper},workdir={work}");
    attach(Some("overlay"), etc.as_str(), Some("overlay"), SAFE, Some(layers.as_str()))
        .map_err(|error| Failed::call("mounting /etc", error))?;
    // The overlay holds on to its layers; nobody else needs to see them.
    umount2(LAYER, MntFlags::MNT_DETACH).map_err(|error| Failed::call("hiding the layer of /etc", error))
}

/// Makes the root `/` and becomes systemd.
pub(crate) fn switch() -> Result<Infallible, Failed> {
    for (at, ..) in VIRTUAL {
        attach(Some(at), format!("{ROOT}{at}").as_str(), NOTHING, MsFlags::MS_MOVE, NOTHING)
            .map_err(|error| Failed::call(&format!("moving {at}"), error))?;
    }
    // Memory that nobody can reach any more once the root is in front of it.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
    let moved = chdir(ROOT)
        .and_then(|()| attach(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"));
    moved.map_err(|error| Failed::call("switching to the root", error))?;
    execv(c"/sbin/init", &[c"/sbin/init"]).map_err(|error| Failed::call("starting /sbin/init", error))
}

fn directory(path: &str) -> Result<(), Failed> {
    fs::create_dir_all(path).map_err(|error| Failed::call(&format!("making {path}"), error))
}
