//! Questions to the host. Each is answered by trying, where trying is cheap and leaves nothing behind.

use std::path::Path;

use crate::tool::{Cmd, table};

/// Whether packages are installed with apt here.
pub(super) fn is_debian_like() -> bool {
    let release = fs_err::read_to_string("/etc/os-release").unwrap_or_default();
    let families = release.lines().filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
    families.flat_map(|value| value.trim_matches('"').split(' ')).any(|id| id == "debian" || id == "ubuntu")
}

/// Whether `apt-get install` can know any package at all.
pub(super) fn has_package_lists() -> bool {
    let Ok(entries) = fs_err::read_dir("/var/lib/apt/lists") else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Whether this process may create the namespaces of the bake sandbox.
pub(super) fn namespaces_work() -> bool {
    let user: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    Cmd::new(&table::UNSHARE).args(user).args(["--mount", "--net", "--pid", "--fork", "true"]).run().is_ok()
}

/// Whether a fresh cgroup2 hierarchy can be mounted, in a mount namespace that ends with the attempt.
pub(super) fn cgroup2_works() -> bool {
    let mount = ["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"];
    Cmd::new(&table::UNSHARE).args(["--mount", "--propagation", "private"]).args(mount).run().is_ok()
}

/// Whether the kernel has this file system, built in or as a module it can load.
pub(super) fn filesystem(name: &str) -> bool {
    let known = fs_err::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().filter_map(|line| line.split_whitespace().last()).any(|known| known == name) {
        return true;
    }
    let release = fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    fs_err::read_to_string(modules).unwrap_or_default().contains(&format!("/{name}.ko"))
}

/// Bytes an ordinary user may still write below `path` (which need not exist yet).
pub(super) fn free_bytes(path: &Path) -> u64 {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}

/// Memory that programs can get without swapping.
pub(super) fn available_memory() -> u64 {
    let meminfo = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().split(' ').next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
