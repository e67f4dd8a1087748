//! The archive format of an initramfs (`newc`; the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Everything belongs to root, has no time, and is numbered in order: two archives of the same files are equal.

const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_755;
const CONSOLE: u32 = 0o020_600;
const ALIGNMENT: usize = 4;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents come first.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, 0o100_000 | permissions, (0, 0), content);
    }

    /// Adds the console's device node: what a program started by the kernel writes to.
    pub(super) fn console(&mut self, path: &str) {
        self.entry(path, CONSOLE, (5, 1), &[]);
    }

    /// Adds the head of a file of `bytes` bytes, and ends the buffer: the content, in whole words of four bytes, and [`end`] are written by the caller,
    /// because a file may be too large for memory.
    pub(crate) fn into_head_of(mut self, path: &str, bytes: u32) -> Vec<u8> {
        self.head(path, 0o100_644, (0, 0), bytes);
        self.bytes
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.head(path, mode, device, content.len() as u32);
        self.bytes.extend(content);
        self.pad();
    }

    fn head(&mut self, path: &str, mode: u32, device: (u32, u32), size: u32) {
        self.entries += 1;
        let number = if path == TRAILER { 0 } else { self.entries };
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let name_size = path.len() as u32 + 1;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [number, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").as_bytes()));
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// What follows an archive's last file.
pub(crate) fn end() -> Vec<u8> {
    Archive::default().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_a_trailer() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.console("dev/console");
        archive.file("init", 0o755, b"abc");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000041ed000000000000000000000002"), "{}", &text[..60]);
        let file = text.find("\x30707010000000300").map_or(&text[..], |at| &text[at..]);
        assert!(file.contains("000081ed"), "{file}");
        assert!(text.contains("init\0\0abc\0"), "{text:?}");
        assert!(text.contains("TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
