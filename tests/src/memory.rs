//! What tests of machines share whose root is in memory, live ones and installers: the outputs they boot, and a boot loader's part.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pgkiln::bake;
use pgkiln::cli::default_cache_dir;
use pgkiln::outputs::Format;
use pgkiln::progress::Ui;

use crate::qemu::Kernel;
use crate::{image, workspace};

/// What the image is baked to, once for all such tests; nothing without a test image.
pub fn baked() -> anyhow::Result<Option<Vec<PathBuf>>> {
    if image::baked().is_none() {
        return Ok(None);
    }
    let out = workspace::root().join("target/selftest/debian-13-live");
    let options = bake::Options {
        formats: Some(vec![Format::Pxe, Format::Iso]),
        relock: true,
        ..bake::Options::new(workspace::image("debian-13"), out)
    };
    Ok(Some(bake::bake(&options, &Ui::silent(default_cache_dir()))?.outputs))
}

/// One of them.
pub fn output<'a>(outputs: &'a [PathBuf], ending: &str) -> anyhow::Result<&'a Path> {
    let found = outputs.iter().find(|path| path.to_string_lossy().ends_with(ending));
    Ok(found.with_context(|| format!("an output {ending}"))?)
}

/// What a boot loader would do with the script: both archives one behind the other, and the script's own command line.
pub fn loaded(outputs: &[PathBuf], dir: &Path, words: &str) -> anyhow::Result<Kernel> {
    let script = fs_err::read_to_string(output(outputs, ".ipxe")?)?;
    let line = script.lines().find_map(|line| line.strip_prefix("kernel ")).context("a kernel in the script")?;
    let mut parts = line.split_whitespace();
    let image = parts.next().context("its name")?;
    let line: Vec<&str> = parts.filter(|word| !word.starts_with("initrd=") && !word.starts_with("${")).collect();
    let initrd = dir.join("initrd");
    let mut file = fs_err::File::create(&initrd)?;
    for name in script.lines().filter_map(|line| line.strip_prefix("initrd ")) {
        std::io::copy(&mut fs_err::File::open(output(outputs, name)?)?, &mut file)?;
    }
    file.flush()?;
    let command_line = format!("{} {words}", line.join(" "));
    Ok(Kernel { image: output(outputs, image)?.to_owned(), initrd, command_line })
}
