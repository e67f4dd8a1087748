//! Where the sources are.

use std::path::{Path, PathBuf};

/// The workspace's root directory.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// An image's directory.
pub fn image(name: &str) -> PathBuf {
    root().join("images").join(name)
}
