//! The image the end-to-end suites boot: baked once per `cargo selftest`, named to the tests by an environment variable.

use std::path::PathBuf;

use anyhow::Context;
use pgkiln::bake;
use pgkiln::progress::Ui;

use crate::workspace;

/// Names the root image to the suites.
pub const VARIABLE: &str = "PGKILN_TEST_IMAGE";

/// The root image, for a suite that boots it. Without one (plain `cargo test`) the suite says so and does nothing; under
/// `cargo selftest` the variable is always set, so nothing is left out by accident.
pub fn baked() -> Option<PathBuf> {
    let image = std::env::var_os(VARIABLE).map(PathBuf::from);
    if image.is_none() {
        eprintln!("left out: it boots a baked image; run `cargo selftest`, or set {VARIABLE} to a root image");
    }
    image
}

/// Names the image's own etcd to the tests that talk to a real one.
pub const ETCD_VARIABLE: &str = "PGKILN_TEST_ETCD";

/// Names the image's own HAProxy likewise.
pub const HAPROXY_VARIABLE: &str = "PGKILN_TEST_HAPROXY";

/// Bakes `debian-13`; everything that did not change comes from the cache. The root image and the tree it was made from.
pub fn bake(ui: &Ui) -> anyhow::Result<(PathBuf, PathBuf)> {
    let out = workspace::root().join("target/selftest/debian-13");
    let options = bake::Options { relock: true, ..bake::Options::new(workspace::image("debian-13"), out) };
    let baked = bake::bake(&options, ui).context("baking the image the tests boot")?;
    if baked.relocked {
        ui.warn("the archive no longer has every locked package; newer ones were taken, for this run only");
    }
    let root = fs_err::canonicalize(&baked.root).context("looking for the baked image")?;
    Ok((root, baked.tree))
}
