//! The device-mapper, asked directly: three ioctls of `linux/dm-ioctl.h` instead of libcryptsetup and udev.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::disk::Found;
use crate::fail::Failed;
use crate::verity::{BLOCK, Tree};

const DEV_CREATE: u8 = 3;
/// Also resumes, which is what it is used for here.
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const READ_ONLY: u32 = 1;
/// `struct dm_ioctl`, of which `data_start` says where the parameters begin.
const HEAD: usize = 312;
/// `struct dm_target_spec`.
const TARGET: usize = 40;
const SECTOR: u64 = 512;
/// For the kernel to show a device it has confirmed.
const APPEARS: Duration = Duration::from_secs(5);

/// What the kernel does when a block does not have its hash. Not `restart_on_corruption`: a panic stays on the console and in
/// pstore, with `panic=10` on the command line the machine then restarts all the same, and nothing of it ever serves data from
/// an altered root.
const ON_CORRUPTION: &str = "panic_on_corruption";

/// Makes the verified device and returns its path.
pub(crate) fn open_verity(found: &Found, tree: &Tree, root_hash: &[u8; 32]) -> Result<PathBuf, Failed> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/mapper/control");
    let control = control.map_err(|error| Failed::call("opening the device-mapper", error))?;
    let call = |number, what: &str, uuid: &str, target: &[u8]| {
        let mut message = message(uuid, target);
        ioctl(&control, number, &mut message).map_err(|error| Failed::call(what, error))?;
        Ok(device_number(&message))
    };
    let number = call(DEV_CREATE, "making the verified device", &format!("CRYPT-VERITY-{}-root", tree.uuid), &[])?;
    call(TABLE_LOAD, "setting up verification of the root", "", &target(found, tree, root_hash))?;
    call(DEV_SUSPEND, "starting verification of the root", "", &[])?;
    let device = Path::new("/dev").join(format!("dm-{}", libc::minor(number)));
    let started = Instant::now();
    while !device.exists() {
        if started.elapsed() > APPEARS {
            return Err(Failed::call("the verified device", "does not appear"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(device)
}

/// A request for the device `root`: the head every one has, and a target if it loads one. Only the one that makes the device
/// names its identifier: the kernel finds a device by one of both, never by two.
fn message(uuid: &str, target: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &4u32.to_ne_bytes());
    put(12, &((HEAD + target.len()) as u32).to_ne_bytes());
    put(16, &(HEAD as u32).to_ne_bytes());
    put(20, &u32::from(!target.is_empty()).to_ne_bytes());
    put(28, &READ_ONLY.to_ne_bytes());
    put(48, b"root");
    put(176, uuid.as_bytes());
    bytes.extend(target);
    bytes
}

/// One target over the whole device: what `verity` is to check, and with what.
fn target(found: &Found, tree: &Tree, root_hash: &[u8; 32]) -> Vec<u8> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let salt = if tree.salt.is_empty() { "-".to_owned() } else { hex(&tree.salt) };
    let parameters = format!(
        "1 {} {} {BLOCK} {BLOCK} {} {} sha256 {} {salt} 1 {ON_CORRUPTION}\0",
        found.root.display(),
        found.hashes.display(),
        tree.data_blocks,
        // After the superblock.
        found.hashes_at / BLOCK + 1,
        hex(root_hash)
    );
    let mut bytes = vec![0; TARGET];
    bytes[8..16].copy_from_slice(&(tree.data_blocks * (BLOCK / SECTOR)).to_ne_bytes());
    bytes[24..30].copy_from_slice(b"verity");
    bytes.extend(parameters.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn device_number(message: &[u8]) -> libc::dev_t {
    let packed = u64::from_ne_bytes(std::array::from_fn(|n| message[40 + n]));
    // The kernel's huge_encode_dev.
    libc::makedev(((packed >> 8) & 0xfff) as u32, ((packed & 0xff) | ((packed >> 12) & 0xfff00)) as u32)
}

fn ioctl(control: &File, number: u8, message: &mut [u8]) -> nix::Result<()> {
    let request = nix::request_code_readwrite!(0xfd, number, HEAD);
    #[expect(unsafe_code, reason = "ioctl has no safe form")]
    // SAFETY: the kernel reads and writes at most the number of bytes that the message's own head states, which is its length.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) };
    nix::errno::Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_layout_of_the_header_file() {
        let found = Found { disk: None, root: "/dev/a".into(), hashes: "/dev/b".into(), hashes_at: 8192, var: None };
        let tree = Tree { uuid: "00".repeat(16), data_blocks: 3, salt: vec![0xab] };
        let message = message("CRYPT-VERITY-x-root", &target(&found, &tree, &[1; 32]));
        assert_eq!(message.len() % 8, 0);
        assert_eq!(u32::from_ne_bytes(message[12..16].try_into().unwrap()) as usize, message.len());
        assert_eq!(u64::from_ne_bytes(message[HEAD + 8..HEAD + 16].try_into().unwrap()), 24);
        let text = String::from_utf8_lossy(&message[HEAD + TARGET..]);
        let hash = "01".repeat(32);
        assert_eq!(
            text.trim_end_matches('\0'),
            format!("1 /dev/a /dev/b 4096 4096 3 3 sha256 {hash} ab 1 panic_on_corruption")
        );
        let mut answer = vec![0; HEAD];
        answer[40..48].copy_from_slice(&0x0010_fd02u64.to_ne_bytes());
        assert_eq!((libc::major(device_number(&answer)), libc::minor(device_number(&answer))), (0xfd, 0x102));
    }
}
