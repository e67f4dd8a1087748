//! What tests of machines share whose root is in memory, live ones and installers: the outputs they boot, and a boot loader's part.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use pgkiln::outputs::Format;

use crate::disk::{self, Outputs};
use crate::image;
use crate::qemu::Kernel;

/// What the image is baked to for all such tests; nothing without a test image.
pub fn baked() -> anyhow::Result<Option<Outputs>> {
    image::baked().map(|_| disk::outputs("live", &[Format::Pxe, Format::Iso], None)).transpose()
}

/// What a boot loader would do with the script: both archives one behind the other, and the script's own command line.
pub fn loaded(outputs: &Outputs, dir: &Path, words: &str) -> anyhow::Result<Kernel> {
    let script = fs_err::read_to_string(outputs.file(".ipxe")?)?;
    let line = script.lines().find_map(|line| line.strip_prefix("kernel ")).context("a kernel in the script")?;
    let mut parts = line.split_whitespace();
    let image = parts.next().context("its name")?;
    let line: Vec<&str> = parts.filter(|word| !word.starts_with("initrd=") && !word.starts_with("${")).collect();
    let initrd = dir.join("initrd");
    let mut file = fs_err::File::create(&initrd)?;
    for name in script.lines().filter_map(|line| line.strip_prefix("initrd ")) {
        std::io::copy(&mut fs_err::File::open(outputs.file(name)?)?, &mut file)?;
    }
    file.flush()?;
    let command_line = format!("{} {words}", line.join(" "));
    Ok(Kernel { image: outputs.file(image)?.to_owned(), initrd, command_line })
}
