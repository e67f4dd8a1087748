//! The image's kernel: there must be exactly one.

use std::path::{Path, PathBuf};

use crate::image::Image;
use crate::problem::Problem;

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    /// `6.12.118+deb13-cloud-amd64`.
    pub(super) release: String,
    /// The kernel itself.
    pub(super) image: PathBuf,
    /// Directory of its modules.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Looks for it where all distributions have it.
    pub(super) fn find(image: &Image, tree: &Path) -> anyhow::Result<Self> {
        let Some(package) = &image.kernel else {
            let remedy = "name one in [kernel], or bake only the output `tree`";
            return Err(
                Problem::new("the recipe has no kernel to boot", image.file.display().to_string(), remedy).into()
            );
        };
        let mut found = Vec::new();
        for entry in fs_err::read_dir(tree.join("usr/lib/modules"))? {
            let modules = entry?.path();
            let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let image = tree.join("boot").join(format!("vmlinuz-{release}"));
            if image.is_file() {
                found.push(Self { release, image, modules });
            }
        }
        match found.pop() {
            Some(kernel) if found.is_empty() => Ok(kernel),
            other => {
                let count = found.len() + usize::from(other.is_some());
                let what = format!("the image has {count} kernels; it boots exactly one");
                let remedy = format!("see which packages depend on another kernel than `{}`", package.value);
                Err(Problem::new(what, image.at(package.line), remedy).into())
            }
        }
    }
}
