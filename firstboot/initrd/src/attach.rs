//! A file as a block device: two ioctls of `linux/loop.h` instead of losetup.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::fail::Failed;

const GET_FREE: libc::Ioctl = 0x4c82;
/// Linux 5.8 and later.
const CONFIGURE: libc::Ioctl = 0x4c0a;
/// `struct loop_config`: descriptor, size of a block, `struct loop_info64`, reserved.
const CONFIG: usize = 304;
/// Of `lo_flags` in it.
const FLAGS_AT: usize = 8 + 52;
const READ_ONLY: u32 = 1;

/// Attaches a file, read-only, to a free device.
pub(crate) fn loop_device(file: &Path) -> Result<PathBuf, Failed> {
    let failed = |error: String| Failed::call("attaching the image file", error);
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
    let control = control.map_err(|error| failed(format!("/dev/loop-control: {error}")))?;
    #[expect(unsafe_code, reason = "ioctl has no safe form")]
    // SAFETY: this request has no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
    let number = nix::errno::Errno::result(number).map_err(|error| failed(error.to_string()))?;
    let path = Path::new("/dev").join(format!("loop{number}"));
    let device = fs_err::File::open(&path).map_err(|error| failed(error.to_string()))?;
    let file = fs_err::File::open(file).map_err(|error| failed(error.to_string()))?;
    let config = config(file.file());
    #[expect(unsafe_code, reason = "ioctl has no safe form")]
    // SAFETY: the kernel reads one `struct loop_config`, which is what `config` has the size of.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, config.as_ptr()) };
    nix::errno::Errno::result(result).map_err(|error| failed(error.to_string()))?;
    Ok(path)
}

fn config(file: &File) -> [u8; CONFIG] {
    let mut bytes = [0; CONFIG];
    bytes[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    bytes[FLAGS_AT..FLAGS_AT + 4].copy_from_slice(&READ_ONLY.to_ne_bytes());
    bytes
}
