//! What tests of machines share whose root is in memory, live ones and installers: the outputs they boot, and a boot loader's part.

use std::io::Write;
use std::path::{Path, PathBuf};

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
    let script = Script::read(outputs)?;
    let initrd = dir.join("initrd");
    let mut file = fs_err::File::create(&initrd)?;
    for archive in &script.archives {
        std::io::copy(&mut fs_err::File::open(archive)?, &mut file)?;
    }
    file.flush()?;
    Ok(Kernel { image: script.kernel, initrd, command_line: format!("{} {words}", script.line) })
}

/// The same kernel and initrd for a machine that has its root on a disk.
pub fn without_root(outputs: &Outputs, words: &str) -> anyhow::Result<Kernel> {
    let script = Script::read(outputs)?;
    let line: Vec<&str> = script.line.split(' ').filter(|word| *word != "pgkiln.live").collect();
    let initrd = script.archives.into_iter().next().context("an initrd in the script")?;
    Ok(Kernel { image: script.kernel, initrd, command_line: format!("{} {words}", line.join(" ")) })
}

/// The script of a `pxe` set.
struct Script {
    kernel: PathBuf,
    archives: Vec<PathBuf>,
    line: String,
}

impl Script {
    fn read(outputs: &Outputs) -> anyhow::Result<Self> {
        let text = fs_err::read_to_string(outputs.file(".ipxe")?)?;
        let line = text.lines().find_map(|line| line.strip_prefix("kernel ")).context("a kernel in the script")?;
        let mut parts = line.split_whitespace();
        let kernel = outputs.file(parts.next().context("its name")?)?.to_owned();
        let line: Vec<&str> = parts.filter(|word| !word.starts_with("initrd=") && !word.starts_with("${")).collect();
        let archives = text.lines().filter_map(|line| line.strip_prefix("initrd "));
        let archives = archives.map(|name| Ok(outputs.file(name)?.to_owned()));
        Ok(Self { kernel, archives: archives.collect::<anyhow::Result<_>>()?, line: line.join(" ") })
    }
}
