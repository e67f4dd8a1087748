//! The engine `nspawn`: the image's own systemd as PID 1 under systemd-nspawn.
//!
//! The node's process mounts what only this boot of the node has (`/etc` = the image's with a writable layer in memory) in a
//! mount namespace of its own and then becomes systemd-nspawn, so a node that is gone has left nothing mounted.

use std::path::Path;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::config::Options;
use super::{cgroup, net};
use crate::tool::{Cmd, table};

/// What systemd-nspawn exits with when the node rebooted: its caller is to start it again.
pub(super) const EXIT_REBOOT: i32 = 133;

/// Becomes the node's systemd-nspawn.
pub(super) fn run(options: &Options, index: usize) -> anyhow::Result<()> {
    let slot = &options.nodes[index].slot;
    unshare(CloneFlags::CLONE_NEWNS).context("making the node's mount namespace")?;
    let image = options.scratch().join("image");
    let own = options.scratch().join(slot);
    mount_etc(&image, &own)?;
    Err(command(options, index, &image, &own)?.exec())
}

/// The image's `/etc` with a writable layer that lasts as long as this boot.
fn mount_etc(image: &Path, own: &Path) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), own, Some("tmpfs"), flags, Some("mode=0755")).context("mounting the node's tmpfs")?;
    let [etc, upper, work] = ["etc", "upper", "work"].map(|name| own.join(name));
    for dir in [&etc, &upper, &work] {
        fs_err::create_dir(dir)?;
    }
    let lower = image.join("etc");
    let layers = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &etc, Some("overlay"), flags, Some(layers.as_str())).context("mounting the node's /etc")
}

fn command(options: &Options, index: usize, image: &Path, own: &Path) -> anyhow::Result<Cmd> {
    let slot = &options.nodes[index].slot;
    let var = options.node_dir(slot).join("var");
    Ok(Cmd::new(&table::NSPAWN)
        .args(["--quiet", "--boot", "--settings=no", "--console=read-only"])
        // There is no machined to talk to, and the cgroup is already the node's own.
        .args(["--keep-unit", "--register=no", "--link-journal=no"])
        // The node's agent configures all of these.
        .args(["--resolv-conf=off", "--timezone=off"])
        // systemd's own poweroff, so that services stop in order.
        .arg("--kill-signal=SIGRTMIN+4")
        .arg(format!("--machine={}", options.machine_name(index)))
        .arg(format!("--hostname={slot}"))
        // The host's firmware identity would be the same for all nodes; this becomes the machine id at first boot.
        .arg(format!("--uuid={}", options.machine_id(slot)?))
        .arg(format!("--network-bridge={}", net::BRIDGE))
        .arg(format!("--directory={}", image.display()))
        .arg("--read-only")
        .arg(format!("--bind={}:/etc", own.join("etc").display()))
        .arg(format!("--bind={}:/var", var.display()))
        .arg("--setenv=SYSTEMD_COLORS=0"))
}

/// PID 1 of the node in `cgroup`, once it is the image's systemd.
pub(super) fn find_init(cgroup: &Path) -> Option<i32> {
    cgroup::processes(&cgroup.join("payload")).into_iter().find(|pid| {
        let read = |file: &str| fs_err::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        is_node_init(&read("status")) && read("comm").trim() == "systemd"
    })
}

/// Two numbers, the lab's and the node's, and the latter is 1.
fn is_node_init(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    matches!(numbers.as_slice(), [_, "1"])
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_nodes_own_pid_1_counts() {
        assert!(super::is_node_init("Name:\tsystemd\nNSpid:\t57\t1\n"));
        assert!(!super::is_node_init("NSpid:\t58\t2\n"));
        assert!(!super::is_node_init("NSpid:\t1\n"));
        assert!(!super::is_node_init("NSpid:\t60\t9\t1\n"));
    }
}
