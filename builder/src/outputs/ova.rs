//! `ova`: the VMDK with a description of a machine around it (DMTF DSP0243), in one archive.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;

use super::{Inputs, vmdk};
use crate::digest::Sha256;
use crate::disk::Disk;

/// The machine: an operator changes it after the import.
const CPUS: u32 = 2;
const MEMORY_MB: u32 = 4096;

/// Writes the archive: description first, as importers that stream it need.
pub(super) fn make(inputs: &Inputs<'_>, disk: &Disk) -> anyhow::Result<Vec<PathBuf>> {
    let kept = inputs.path("vmdk").exists();
    let vmdk = vmdk::make(inputs, disk)?;
    let (name, path) = (inputs.name.as_str(), inputs.path("ova"));
    let bytes = vmdk.metadata()?.len();
    let description = include_str!("machine.ovf")
        .replace("@NAME@", name)
        .replace("@VERSION@", inputs.version)
        .replace("@BYTES@", &bytes.to_string())
        .replace("@CAPACITY@", &disk.raw.metadata()?.len().to_string())
        .replace("@CPUS@", &CPUS.to_string())
        .replace("@MEMORY@", &MEMORY_MB.to_string());
    let sums = format!(
        "SHA256({name}.ovf)= {}\nSHA256({name}.vmdk)= {}\n",
        Sha256::of(&description),
        Sha256::of_file(&vmdk)?.0
    );
    let mut archive = tar::Builder::new(fs_err::File::create(&path)?);
    let mut add = |file: &str, length: u64, content: &mut dyn Read| -> anyhow::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(length);
        header.set_mode(0o644);
        header.set_mtime(inputs.epoch);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, file, content).with_context(|| format!("adding {file}"))
    };
    add(&format!("{name}.ovf"), description.len() as u64, &mut description.as_bytes())?;
    add(&format!("{name}.mf"), sums.len() as u64, &mut sums.as_bytes())?;
    let mut content: File = fs_err::File::open(&vmdk)?.into_parts().0;
    add(&format!("{name}.vmdk"), bytes, &mut content)?;
    archive.into_inner()?;
    if !kept {
        fs_err::remove_file(vmdk)?;
    }
    Ok(vec![path])
}
