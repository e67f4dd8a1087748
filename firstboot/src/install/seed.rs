//! The metadata goes with the image: as a seed directory on the new `/var`, which the first boot reads before it looks at any
//! volume, and wipes the secrets of once it has taken them. So the medium may be gone by then.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::datasource::Seed;
use crate::durable;

/// Below `/var` (`datasource/nocloud.rs`).
const DIRECTORY: &str = "lib/cloud/seed/nocloud";

/// Writes the seed to the file system on a partition.
pub fn put(seed: &Seed, partition: &Path, at: &Path) -> Result<()> {
    fs_err::create_dir_all(at)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(partition), at, Some("ext4"), flags, None::<&str>)
        .with_context(|| format!("mounting {}", partition.display()))?;
    let written = write(seed, at);
    // Not lazily: what is unmounted is on the disk.
    umount2(at, MntFlags::empty()).with_context(|| format!("unmounting {}", partition.display()))?;
    written.context("writing the metadata to the disk")
}

fn write(seed: &Seed, var: &Path) -> Result<()> {
    for (end, _) in DIRECTORY.match_indices('/') {
        durable::create_dir(&var.join(&DIRECTORY[..end]), 0o755)?;
    }
    let directory = var.join(DIRECTORY);
    durable::create_dir(&directory, 0o700)?;
    if let Some(network) = &seed.network_config {
        durable::write(&directory.join("network-config"), network.as_bytes(), 0o600)?;
    }
    durable::write(&directory.join("user-data"), &seed.user_data, 0o600)?;
    durable::write(&directory.join("meta-data"), meta_data(seed).as_bytes(), 0o600)
}

/// YAML, whose strings may be written as JSON's.
fn meta_data(seed: &Seed) -> String {
    let line = |key: &str, value: &str| format!("{key}: {}\n", serde_json::Value::from(value));
    let host = seed.hostname.as_ref().map(|name| line("local-hostname", name)).unwrap_or_default();
    line("instance-id", &seed.instance_id) + &host
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::datasource;
    use crate::layout::Layout;

    #[test]
    fn the_first_boot_finds_the_same_metadata_and_nobody_else_does() {
        let seed = Seed {
            instance_id: "i-\"1\": x".into(),
            hostname: Some("pg-1".into()),
            user_data: b"#cloud-config\npgkiln: {}\n".to_vec(),
            network_config: Some("version: 2\n".into()),
            ..Seed::default()
        };
        let root = tempfile::tempdir().unwrap();
        fs_err::create_dir(root.path().join("var")).unwrap();
        write(&seed, &root.path().join("var")).unwrap();
        let found = datasource::find(&Layout::new(root.path())).unwrap().unwrap();
        assert_eq!((&found.instance_id, &found.hostname), (&seed.instance_id, &seed.hostname));
        assert_eq!((&found.user_data, &found.network_config), (&seed.user_data, &seed.network_config));
        let mode = |path: &str| root.path().join("var").join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(DIRECTORY), mode("lib/cloud/seed/nocloud/user-data"), mode("lib")), (0o700, 0o600, 0o755));
    }
}
