//! The engine `nspawn`: the image's own systemd as PID 1 under systemd-nspawn.
//!
//! The node's process mounts what only this boot of the node has (`/etc` = the image's with a writable layer in memory) in a
//! mount namespace of its own and then becomes systemd-nspawn, so a node that is gone has left nothing mounted. So does the
//! root of a version that the node's agent has put into its other slot (`slots`).

use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::config::Options;
use super::slots::{self, Choice};
use super::{cgroup, net};
use crate::tool::{Cmd, table};

/// What systemd-nspawn exits with when the node rebooted: its caller is to start it again.
pub(super) const EXIT_REBOOT: i32 = 133;

/// Becomes the node's systemd-nspawn.
pub(super) fn run(options: &Options, index: usize) -> anyhow::Result<()> {
    let slot = &options.nodes[index].slot;
    unshare(CloneFlags::CLONE_NEWNS).context("making the node's mount namespace")?;
    let own = options.scratch().join(slot);
    mount_own(&own)?;
    let choice = slots::choose(&options.node_dir(slot).join("boot"))?;
    let image = match &choice.other {
        None => options.scratch().join("image"),
        Some(other) => mount_root(&other.root, &own)?,
    };
    mount_etc(&image, &own)?;
    Err(command(options, index, &image, &own, &choice)?.exec())
}

/// Memory for what lasts as long as this boot.
fn mount_own(own: &Path) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), own, Some("tmpfs"), flags, Some("mode=0755")).context("mounting the node's tmpfs")
}

/// The root of another version; the loop device goes with the mount.
fn mount_root(root: &Path, own: &Path) -> anyhow::Result<PathBuf> {
    let target = own.join("root");
    fs_err::create_dir(&target)?;
    Cmd::new(&table::MOUNT).args(["-o", "loop,ro"]).arg(root).arg(&target).run().context("mounting the other slot")?;
    Ok(target)
}

/// The image's `/etc` with a writable layer that lasts as long as this boot.
fn mount_etc(image: &Path, own: &Path) -> anyhow::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let [etc, upper, work] = ["etc", "upper", "work"].map(|name| own.join(name));
    for dir in [&etc, &upper, &work] {
        fs_err::create_dir(dir)?;
    }
    let lower = image.join("etc");
    let layers = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &etc, Some("overlay"), flags, Some(layers.as_str())).context("mounting the node's /etc")
}

fn command(options: &Options, index: usize, image: &Path, own: &Path, choice: &Choice) -> anyhow::Result<Cmd> {
    let slot = &options.nodes[index].slot;
    let [var, boot] = ["var", "boot"].map(|name| options.node_dir(slot).join(name));
    let mut cmd = Cmd::new(&table::NSPAWN)
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
        .arg(format!("--bind={}:/boot", boot.display()))
        .arg("--setenv=SYSTEMD_COLORS=0");
    // PID 1's command line, as a machine's kernel would hand it over.
    if let Some(other) = &choice.other {
        cmd = cmd.arg(format!("roothash={}", other.root_hash));
        // On a machine systemd-bless-boot asks for it.
        cmd = if other.counts { cmd.arg("systemd.wants=boot-complete.target") } else { cmd };
    }
    Ok(cmd)
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
