//! NoCloud: a seed directory, or a volume labelled `cidata` (ISO 9660 or FAT).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Seed;
use crate::layout::Layout;
use crate::problem::Problem;
use crate::spec::tree;

const DIRECTORIES: [&str; 2] = ["/var/lib/cloud/seed/nocloud", "/var/lib/cloud/seed/nocloud-net"];
const LABELS: [&str; 2] = ["cidata", "CIDATA"];

/// The first seed directory with both files, else the labelled volume.
pub(super) fn read(layout: &Layout) -> Result<Option<Seed>, Problem> {
    for directory in DIRECTORIES {
        let path = layout.at(directory);
        // `meta-data` or `user-data` alone is a seed somebody has not finished: broken, not absent.
        if path.join("user-data").exists() || path.join("meta-data").exists() {
            let mut seed = read_directory(&path, directory)?;
            seed.wipeable = Some(path.join("user-data"));
            return Ok(Some(seed));
        }
    }
    for label in LABELS {
        let path = layout.at("/dev/disk/by-label").join(label);
        if path.is_dir() {
            return read_directory(&path, &format!("volume {label}")).map(Some);
        }
    }
    if layout.is_live() { read_volume() } else { Ok(None) }
}

fn read_directory(path: &Path, name: &str) -> Result<Seed, Problem> {
    let file = |file: &str| match fs::read(path.join(file)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Problem::new(format!("unreadable: {e}"), format!("{name}/{file}"), "repair the seed")),
    };
    let needed = |what: &str, bytes: Option<Vec<u8>>| {
        bytes.ok_or_else(|| {
            let remedy = "a seed needs both `user-data` and `meta-data`; write it again with `pgkiln cluster seed`";
            Problem::new(format!("the seed has no `{what}`"), name, remedy)
        })
    };
    let user_data = needed("user-data", file("user-data")?)?;
    let meta_data = needed("meta-data", file("meta-data")?)?;
    let network_config = file("network-config")?;
    assemble(name, Documents { user_data, meta_data, network_config }, &BTreeMap::new())
}

/// The documents of a seed, wherever they come from.
#[derive(Debug)]
pub(super) struct Documents {
    pub(super) user_data: Vec<u8>,
    pub(super) meta_data: Vec<u8>,
    pub(super) network_config: Option<Vec<u8>>,
}

/// A seed of documents; `given` are metadata that count more than the document's.
pub(super) fn assemble(name: &str, documents: Documents, given: &BTreeMap<String, String>) -> Result<Seed, Problem> {
    let text = |bytes: Vec<u8>, file: &str| {
        let bad = |_| Problem::new("not UTF-8", format!("{name}/{file}"), "save it as UTF-8");
        String::from_utf8(bytes).map_err(bad)
    };
    let place = format!("{name}/meta-data");
    let meta = tree::parse(&text(documents.meta_data, "meta-data")?, &place)?;
    let value = |key: &str| given.get(key).cloned().or_else(|| meta.get(key).and_then(tree::Node::scalar));
    let instance_id = value("instance-id").ok_or_else(|| {
        Problem::new("`instance-id` is missing", &place, "add `instance-id:` with any value that names this instance")
    })?;
    let network_config = documents.network_config.map(|bytes| text(bytes, "network-config")).transpose()?;
    Ok(Seed {
        source: format!("NoCloud, {name}"),
        place: format!("{name}/user-data"),
        instance_id,
        hostname: value("local-hostname"),
        user_data: documents.user_data,
        network_config: network_config.filter(|text| !text.trim().is_empty()),
        wipeable: None,
        network: false,
    })
}

/// Mounts the labelled block device read-only for as long as it takes to read it.
fn read_volume() -> Result<Option<Seed>, Problem> {
    let Some(device) = labelled_device() else { return Ok(None) };
    let broken = |e: anyhow::Error| {
        Problem::new(format!("unreadable: {e:#}"), device.display().to_string(), "attach the seed volume again")
    };
    let point = tempfile::tempdir_in("/run").map_err(|e| broken(e.into()))?;
    mount_read_only(&device, point.path()).map_err(broken)?;
    let seed = read_directory(point.path(), &format!("volume {}", device.display()));
    if let Err(e) = umount2(point.path(), MntFlags::MNT_DETACH) {
        tracing::warn!("unmounting {}: {e}", point.path().display());
    }
    seed.map(Some)
}

/// Volumes appear when udev has seen them; on a machine without udev there are none.
fn labelled_device() -> Option<PathBuf> {
    let present = || LABELS.iter().map(|l| Path::new("/dev/disk/by-label").join(l)).find(|p| p.exists());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        // The queue file exists while udev has events to handle.
        let busy = Path::new("/run/udev/queue").exists();
        match present() {
            Some(device) => return Some(device),
            None if busy && std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            None => return None,
        }
    }
}

fn mount_read_only(device: &Path, point: &Path) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let iso = mount(Some(device), point, Some("iso9660"), flags, None::<&str>);
    iso.or_else(|_| mount(Some(device), point, Some("vfat"), flags, None::<&str>))
        .with_context(|| format!("mounting {}", device.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_not_here_broken() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert_eq!(read(&layout).unwrap(), None);

        let volume = root.path().join("dev/disk/by-label/CIDATA");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("user-data"), "#cloud-config\n").unwrap();
        let broken = read(&layout).unwrap_err();
        assert!(broken.what.contains("no `meta-data`"), "{broken}");
        fs::write(volume.join("meta-data"), "instance-id: i-1\n").unwrap();
        let seed = read(&layout).unwrap().unwrap();
        assert_eq!((seed.instance_id.as_str(), seed.wipeable), ("i-1", None));

        // A broken seed directory wins over the volume: it never falls through.
        let directory = root.path().join("var/lib/cloud/seed/nocloud");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("user-data"), "#cloud-config\n").unwrap();
        fs::write(directory.join("meta-data"), "instance-id: [\n").unwrap();
        let broken = read(&layout).unwrap_err();
        assert!(broken.place.starts_with("/var/lib/cloud/seed/nocloud/meta-data"), "{broken}");
    }
}
