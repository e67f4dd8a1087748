//! The lab's cgroups: one per node, so that one write kills a whole node at once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::mount::{MsFlags, mount};

use super::registry;

const MOUNT_POINT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "pgkiln-lab.";
/// `cgroup.kill` is asynchronous; the kernel needs milliseconds, a machine under load a little more.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Mounts cgroup2 in this (private) mount namespace, also where the host still has the v1 hierarchies there.
pub(super) fn mount_fresh() -> anyhow::Result<()> {
    let none: Option<&str> = None;
    mount(Some("cgroup2"), MOUNT_POINT, Some("cgroup2"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, none)
        .context("mounting cgroup2 on /sys/fs/cgroup of the lab")
}

/// The cgroup of lab `name`: beside our own process, so that on a systemd host it is within our delegated scope.
pub(super) fn of_lab(name: &str) -> anyhow::Result<PathBuf> {
    Ok(own()?.join(format!("{PREFIX}{name}")))
}

fn own() -> anyhow::Result<PathBuf> {
    let text = fs_err::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).context("this kernel has no cgroup2")?;
    Ok(Path::new(MOUNT_POINT).join(path))
}

/// Moves this process into `cgroup`.
pub(super) fn join(cgroup: &Path) -> anyhow::Result<()> {
    Ok(fs_err::write(cgroup.join("cgroup.procs"), "0")?)
}

/// Kills every process below `cgroup`; returns when the last one is gone.
pub(super) fn kill(cgroup: &Path) -> anyhow::Result<()> {
    let Ok(()) = fs_err::write(cgroup.join("cgroup.kill"), "1") else { return Ok(()) };
    let deadline = Instant::now() + KILL_LIMIT;
    while fs_err::read_to_string(cgroup.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1")) {
        anyhow::ensure!(Instant::now() < deadline, "processes of {} survived being killed", cgroup.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Removes `cgroup` and everything below it; it must have no process left.
pub(super) fn remove(cgroup: &Path) {
    let dirs = walkdir::WalkDir::new(cgroup).contents_first(true).into_iter().filter_map(Result::ok);
    for entry in dirs.filter(|entry| entry.file_type().is_dir()) {
        let _ = fs_err::remove_dir(entry.path());
    }
}

/// Removes the cgroups of labs whose warden was killed before it could.
pub(super) fn sweep_stale() -> anyhow::Result<()> {
    for entry in fs_err::read_dir(own()?)?.filter_map(Result::ok) {
        let file_name = entry.file_name();
        let Some(name) = file_name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        if !registry::in_use(name)? {
            kill(&entry.path())?;
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Processes below `cgroup`, numbered as this process's PID namespace does.
pub(super) fn processes(cgroup: &Path) -> Vec<i32> {
    let dirs = walkdir::WalkDir::new(cgroup).into_iter().filter_map(Result::ok);
    let files = dirs.filter(|entry| entry.file_name() == "cgroup.procs");
    let texts = files.filter_map(|file| fs_err::read_to_string(file.path()).ok());
    texts.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}
