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

/// The names of the end-to-end suites (`cargo test --test NAME`), sorted.
///
/// # Errors
///
/// If their directory cannot be read.
pub fn suites() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(root().join("tests/tests"))? {
        let path = entry?.path();
        // Cargo's rule: a file, or a directory with a `main.rs`.
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file() {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
