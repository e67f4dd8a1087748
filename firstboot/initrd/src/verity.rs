//! The head of the hash tree: read and judged before the kernel is asked, so that a disk that was altered or belongs to
//! another image is called that, instead of an input/output error.
//!
//! Format: the kernel's `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's wiki page "DMVerity".

use fs_err::File;
use fs_err::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::fail::Failed;

/// Of data and of hashes; what `pgkiln bake` writes.
pub(crate) const BLOCK: u64 = 4096;
const SUPERBLOCK: usize = 512;
const MAX_SALT: usize = 256;

/// What the kernel needs to know about a hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Its identifier, hexadecimal.
    pub(crate) uuid: String,
    /// How many blocks of data it covers.
    pub(crate) data_blocks: u64,
    /// What every hash begins with.
    pub(crate) salt: Vec<u8>,
}

/// Reads the superblock at byte `at` and checks the block at the top of the tree against the root hash.
pub(crate) fn read(device: &Path, at: u64, root_hash: &[u8; 32]) -> Result<Tree, Failed> {
    let remedy =
        "write the image to this disk again; over the network: take kernel, initrd and root archive of one version";
    let altered = |what: &str| Failed::new(format!("{} {what}", device.display()), remedy);
    let mut bytes = vec![0; 2 * BLOCK as usize];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut bytes, at));
    read.map_err(|error| altered(&format!("cannot be read: {error}")))?;
    let tree = parse(&bytes).ok_or_else(|| altered("is not a hash tree of this image: it was altered"))?;
    let top: [u8; 32] = Sha256::new().chain_update(&tree.salt).chain_update(&bytes[BLOCK as usize..]).finalize().into();
    if top != *root_hash {
        return Err(altered("does not have the root hash of the command line: it was altered, or is another image's"));
    }
    Ok(tree)
}

fn parse(bytes: &[u8]) -> Option<Tree> {
    let head = bytes.get(..SUPERBLOCK)?;
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let good = head.starts_with(b"verity\0\0")
        && u32_at(8)? == 1
        && u32_at(12)? == 1
        && head[32..64].starts_with(b"sha256\0")
        && u64::from(u32_at(64)?) == BLOCK
        && u64::from(u32_at(68)?) == BLOCK;
    let salt_size = usize::from(u16::from_le_bytes(head[80..82].try_into().ok()?));
    let tree = Tree {
        uuid: head[16..32].iter().map(|byte| format!("{byte:02x}")).collect(),
        data_blocks: u64::from_le_bytes(head[72..80].try_into().ok()?),
        salt: head.get(88..88 + salt_size.min(MAX_SALT))?.to_vec(),
    };
    (good && salt_size <= MAX_SALT && tree.data_blocks > 0).then_some(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> (Vec<u8>, [u8; 32]) {
        let mut bytes = vec![7; 2 * BLOCK as usize];
        bytes[..SUPERBLOCK].fill(0);
        bytes[..8].copy_from_slice(b"verity\0\0");
        (bytes[8], bytes[12]) = (1, 1);
        bytes[32..38].copy_from_slice(b"sha256");
        (bytes[65], bytes[69]) = (16, 16);
        (bytes[72], bytes[80]) = (9, 2);
        bytes[88..90].copy_from_slice(b"na");
        let hash = Sha256::new().chain_update(b"na").chain_update(&bytes[BLOCK as usize..]).finalize().into();
        (bytes, hash)
    }

    #[test]
    fn a_tree_is_believed_only_with_its_root_hash() {
        let dir = std::env::temp_dir().join(format!("pgkiln-verity-{}", std::process::id()));
        let (mut bytes, hash) = image();
        let judged = |bytes: &[u8]| {
            fs_err::write(&dir, bytes).unwrap();
            read(&dir, 0, &hash)
        };
        let tree = judged(&bytes).unwrap();
        assert_eq!((tree.data_blocks, tree.salt.as_slice(), tree.uuid.len()), (9, b"na".as_slice(), 32));
        bytes[5000] ^= 1;
        assert!(format!("{:?}", judged(&bytes).unwrap_err()).contains("root hash of the command line"));
        bytes[5000] ^= 1;
        bytes[32] = b'm';
        assert!(format!("{:?}", judged(&bytes).unwrap_err()).contains("not a hash tree"));
        assert!(format!("{:?}", judged(&bytes[..600]).unwrap_err()).contains("cannot be read"));
        fs_err::remove_file(&dir).unwrap();
    }
}
