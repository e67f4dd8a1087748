//! What the image says about itself (`/usr/lib/pgkiln/image.json`, written by the builder): versions, units and paths
//! of its components, so that nothing here names a distribution.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::Layout;
use crate::problem::Problem;

/// The image a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Version of this file's format.
    pub schema: u32,
    /// Name of the recipe.
    pub name: String,
    /// Version of the image.
    pub version: String,
    /// `cloud` or `metal`.
    pub variant: String,
    /// dm-verity root hash, if the image is verified.
    pub root_hash: Option<String>,
    /// Components by name: `postgresql`, `patroni`, `etcd`, `haproxy` …
    pub components: BTreeMap<String, Component>,
    /// Version of the C library (collations depend on it).
    #[serde(default)]
    pub glibc: Option<String>,
    /// Version of ICU (collations depend on it).
    #[serde(default)]
    pub icu: Option<String>,
}

/// One component of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Package it comes from.
    pub package: String,
    /// Version of the package.
    pub version: String,
    /// systemd unit, if it has one.
    #[serde(default)]
    pub unit: Option<String>,
    /// Named paths (`bin_dir`, `etcdctl`).
    #[serde(default)]
    pub paths: BTreeMap<String, PathBuf>,
}

impl ImageInfo {
    /// Reads the image's description.
    pub fn load(layout: &Layout) -> Result<Self> {
        let path = layout.image_json();
        let info: Option<Self> = crate::durable::read_json(&path)?;
        let info = info.ok_or_else(|| {
            Problem::new(
                "this system does not say which image it is",
                path.display().to_string(),
                "run the agent inside an image made by `pgkiln bake`",
            )
        })?;
        anyhow::ensure!(info.schema == 1, "{}: schema {} is not known", path.display(), info.schema);
        Ok(info)
    }

    /// A component; an error names the one the image lacks.
    pub fn component(&self, name: &str) -> Result<&Component> {
        self.components.get(name).with_context(|| format!("image {} has no component `{name}`", self.name))
    }

    /// Version of a component as numbers, upstream part only: `1:4.0.7-2` is `(4, 0, 7)`.
    pub fn version_of(&self, name: &str) -> Result<(u32, u32, u32)> {
        let version = &self.component(name)?.version;
        Ok(upstream(version))
    }

    /// The same as text.
    pub fn upstream_of(&self, name: &str) -> Result<String> {
        let (major, minor, patch) = self.version_of(name)?;
        Ok(format!("{major}.{minor}.{patch}"))
    }

    /// PostgreSQL's major version.
    pub fn postgresql_major(&self) -> Result<u32> {
        Ok(self.version_of("postgresql")?.0)
    }

    /// Whether Patroni says who streams (`replication_state` of a node, state `streaming` of a member): from 3.0.4 on.
    pub fn patroni_says_streaming(&self) -> Result<bool> {
        Ok(self.version_of("patroni")? >= (3, 0, 4))
    }

    /// The unit of a component.
    pub fn unit(&self, name: &str) -> Result<&str> {
        self.component(name)?.unit.as_deref().with_context(|| format!("component `{name}` has no unit"))
    }

    /// A named path of a component.
    pub fn path(&self, name: &str, key: &str) -> Result<&PathBuf> {
        self.component(name)?.paths.get(key).with_context(|| format!("component `{name}` has no path `{key}`"))
    }
}

/// Upstream's part of a package version.
pub fn upstream(version: &str) -> (u32, u32, u32) {
    let without_epoch = version.split_once(':').map_or(version, |(_, rest)| rest);
    // `2.45-1` has no third number; what follows the last hyphen is the package's own.
    let upstream = without_epoch.rsplit_once('-').map_or(without_epoch, |(upstream, _)| upstream);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_version() {
        assert_eq!(upstream("17.12-0+deb13u1"), (17, 12, 0));
        assert_eq!(upstream("1:4.0.7-2"), (4, 0, 7));
        assert_eq!(upstream("3.5.16-4+b5"), (3, 5, 16));
        assert_eq!(upstream("2.45-1"), (2, 45, 0), "the package's own revision is none of upstream's");
        assert_eq!(upstream("15.18-0+deb12u1"), (15, 18, 0));
    }

    #[test]
    fn who_streams_is_said_from_3_0_4_on() {
        let says = |version: &str| {
            let mut image: ImageInfo = serde_json::from_str(crate::fixtures::IMAGE).unwrap();
            image.components.get_mut("patroni").unwrap().version = version.to_owned();
            image.patroni_says_streaming().unwrap()
        };
        assert!(!says("3.0.2-1") && !says("3.0.3-1") && says("3.0.4-1") && says("4.0.7-1"));
    }
}
