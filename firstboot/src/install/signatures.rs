//! What file systems and volumes leave on a disk, written as they would: for tests, also those with whole machines. The layouts
//! are libblkid's (`libblkid/src/superblocks` of util-linux), which checks more than the magic.

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

pub(crate) fn ext4(bytes: &mut [u8]) {
    put(bytes, 1024 + 56, &[0x53, 0xef]);
    // Revision 1, and extents, which ext3 has not.
    put(bytes, 1024 + 76, &[1]);
    put(bytes, 1024 + 96, &[0x40]);
}

pub(crate) fn xfs(bytes: &mut [u8]) {
    let blocks = bytes.len() as u64 / 4096;
    put(bytes, 0, b"XFSB");
    put(bytes, 4, &4096u32.to_be_bytes());
    put(bytes, 8, &blocks.to_be_bytes());
    // Real-time extents of one block; one allocation group.
    put(bytes, 80, &1u32.to_be_bytes());
    put(bytes, 84, &(blocks as u32).to_be_bytes());
    put(bytes, 88, &1u32.to_be_bytes());
    put(bytes, 100, &4u16.to_be_bytes());
    put(bytes, 102, &512u16.to_be_bytes());
    put(bytes, 104, &512u16.to_be_bytes());
    put(bytes, 106, &8u16.to_be_bytes());
    // Logarithms of block, sector, inode, inodes in a block, blocks of a group.
    put(bytes, 120, &[12, 9, 9, 3, 12]);
}

pub(crate) fn lvm(bytes: &mut [u8]) {
    let label = &mut bytes[512..1024];
    put(label, 0, b"LABELONE");
    put(label, 8, &1u64.to_le_bytes());
    put(label, 20, &32u32.to_le_bytes());
    put(label, 24, b"LVM2 001");
    put(label, 32, b"abcdefghijklmnopqrstuvwxyz012345");
    let mut sum = 0xf597_a6cf_u32;
    for byte in &label[20..] {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    put(label, 16, &sum.to_le_bytes());
}

pub(crate) fn mdraid(bytes: &mut [u8]) {
    let block = &mut bytes[4096..8192];
    put(block, 0, &0xa92b_4efc_u32.to_le_bytes());
    put(block, 4, &1u32.to_le_bytes());
    put(block, 16, &[7; 16]);
    put(block, 32, b"host:0");
    put(block, 92, &2u32.to_le_bytes());
    put(block, 144, &8u64.to_le_bytes());
    let words = block[..256].chunks(4).map(|word| u64::from(u32::from_le_bytes(std::array::from_fn(|n| word[n]))));
    let sum: u64 = words.sum();
    put(block, 216, &(((sum & 0xffff_ffff) + (sum >> 32)) as u32).to_le_bytes());
}

pub(crate) fn swap(bytes: &mut [u8]) {
    put(bytes, 1024, &1u32.to_le_bytes());
    let pages = (bytes.len() / 4096) as u32;
    put(bytes, 1028, &(pages - 1).to_le_bytes());
    put(bytes, 4086, b"SWAPSPACE2");
}

pub(crate) fn luks(bytes: &mut [u8]) {
    put(bytes, 0, b"LUKS\xba\xbe\0\x01");
}

pub(crate) fn table(bytes: &mut [u8]) {
    // One partition of type Linux, from sector 2048 on.
    put(bytes, 446, &[0, 0, 2, 0, 0x83, 0, 2, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    put(bytes, 510, &[0x55, 0xaa]);
}

/// Of a database without any file system that is known, at the other end.
pub(crate) fn unknown(bytes: &mut [u8]) {
    let end = bytes.len() - 4096;
    put(bytes, end, b"whose?");
}
