//! The partition table, read by us: the kernel numbers partitions but does not say which identifiers they have.
//!
//! UEFI specification 2.10, section 5.3.

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As the kernel numbers it, from 1.
    pub(crate) number: u32,
    /// Its own identifier, bytes in the order of the text form.
    pub(crate) uuid: [u8; 16],
    /// Its name.
    pub(crate) name: String,
}

/// Where the entries are: byte offset, number, size of one.
pub(crate) struct Entries {
    pub(crate) offset: u64,
    count: u32,
    size: u32,
}

/// More entries or larger ones than anybody writes would only make us read garbage for long.
const MAX_COUNT: u32 = 1024;
const MAX_SIZE: u32 = 4096;

impl Entries {
    /// From the header, which is in the second sector.
    pub(crate) fn of_header(header: &[u8], sector_size: u64) -> Option<Self> {
        let found = header.get(..8)? == b"EFI PART";
        let entries = Self {
            offset: u64::from_le_bytes(header.get(72..80)?.try_into().ok()?).checked_mul(sector_size)?,
            count: u32::from_le_bytes(header.get(80..84)?.try_into().ok()?),
            size: u32::from_le_bytes(header.get(84..88)?.try_into().ok()?),
        };
        (found && entries.count <= MAX_COUNT && (128..=MAX_SIZE).contains(&entries.size)).then_some(entries)
    }

    /// How many bytes they take.
    pub(crate) fn length(&self) -> usize {
        self.count as usize * self.size as usize
    }

    /// The used ones.
    pub(crate) fn partitions(&self, bytes: &[u8]) -> Vec<Partition> {
        let used = |entry: &&[u8]| entry.len() >= 128 && entry[..16] != [0; 16];
        let numbered = bytes.chunks(self.size as usize).zip(1..).filter(|(entry, _)| used(entry));
        numbered
            .map(|(entry, number)| {
                let units = entry[56..128].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
                let name = char::decode_utf16(units.take_while(|unit| *unit != 0));
                let name = name.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
                Partition { number, uuid: text_order(&entry[16..32]), name }
            })
            .collect()
    }
}

/// GPT stores the first three fields of an identifier with the least significant byte first.
fn text_order(stored: &[u8]) -> [u8; 16] {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    ORDER.map(|n| stored[n])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_entries_with_number_identifier_and_name() {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[72] = 2;
        header[80] = 4;
        header[84] = 128;
        let entries = Entries::of_header(&header, 4096).unwrap();
        assert_eq!((entries.offset, entries.length()), (8192, 512));
        let mut bytes = vec![0; 512];
        bytes[256] = 1;
        bytes[272..288].copy_from_slice(&[4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16]);
        for (n, byte) in "var".bytes().enumerate() {
            bytes[312 + 2 * n] = byte;
        }
        let found = entries.partitions(&bytes);
        let uuid = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        assert_eq!(found, [Partition { number: 3, uuid, name: "var".into() }]);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(Entries::of_header(&[0; 512], 512).is_none());
        assert!(Entries::of_header(b"EFI PART", 512).is_none());
        let mut header = vec![0xff; 512];
        header[..8].copy_from_slice(b"EFI PART");
        assert!(Entries::of_header(&header, 512).is_none());
    }
}
