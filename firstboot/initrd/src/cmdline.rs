//! What the kernel's command line asks for. In a signed image it is part of what is signed.

use std::time::Duration;

use crate::fail::Failed;

/// How long a root may take to appear, unless `pgkiln.wait=` says otherwise. Firmware of large disk controllers needs a minute.
const WAIT: Duration = Duration::from_secs(60);

/// What to do when the machine cannot boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OnFailure {
    /// Reboot: whatever was missing may be there then, and the boot loader counts tries. The default.
    #[default]
    Reboot,
    /// Power off: for machines somebody looks after by hand.
    PowerOff,
}

/// Where the root comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// From partitions of a disk of this image. The default.
    #[default]
    Disk,
    /// `pgkiln.live`: from one file in memory; a node whose `/var` alone is on a disk.
    Live,
    /// `pgkiln.mode=install`: the same, for as long as it takes to write the image to a disk.
    Install,
}

/// The options of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// `roothash=`: SHA-256 at the top of the root's hash tree.
    pub(crate) root_hash: [u8; 32],
    /// `pgkiln.live`, `pgkiln.mode=install` or neither.
    pub(crate) mode: Mode,
    /// `pgkiln.failure=reboot|poweroff`.
    pub(crate) on_failure: OnFailure,
    /// `pgkiln.wait=SECONDS`.
    pub(crate) wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { root_hash: [0; 32], mode: Mode::default(), on_failure: OnFailure::default(), wait: WAIT }
    }
}

impl Options {
    /// Reads `/proc/cmdline`.
    pub(crate) fn read() -> Result<Self, Failed> {
        let text = fs_err::read_to_string("/proc/cmdline").map_err(|error| Failed::call("/proc/cmdline", error))?;
        Self::parse(&text)
    }

    /// The last of several equal words counts, as everywhere on that line.
    fn parse(text: &str) -> Result<Self, Failed> {
        let value = |name: &str| text.split_whitespace().filter_map(|word| word.strip_prefix(name)).next_back();
        let remedy = "boot the image's own UKI, or give the command line of its manifest";
        let hash = value("roothash=").ok_or_else(|| Failed::new("the command line has no `roothash=`", remedy))?;
        let root_hash = parse_hash(hash)
            .ok_or_else(|| Failed::new(format!("`roothash={hash}` is not 64 hexadecimal digits"), remedy))?;
        let live = text.split_whitespace().any(|word| word == "pgkiln.live");
        let mode = match value("pgkiln.mode=") {
            Some("install") => Mode::Install,
            None if live => Mode::Live,
            None => Mode::Disk,
            Some(other) => {
                let remedy = "write `pgkiln.mode=install`, or leave the word out: then the machine is live";
                return Err(Failed::new(format!("`pgkiln.mode={other}` is not known"), remedy));
            }
        };
        let on_failure = match value("pgkiln.failure=") {
            Some("poweroff") => OnFailure::PowerOff,
            _ => OnFailure::Reboot,
        };
        let wait = value("pgkiln.wait=").and_then(|text| text.parse().ok()).map_or(WAIT, Duration::from_secs);
        Ok(Self { root_hash, mode, on_failure, wait })
    }
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let good = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut bytes = [0; 32];
    for (n, byte) in bytes.iter_mut().enumerate().filter(|_| good) {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    good.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_a_wrong_hash_is_refused() {
        let hash = "0123456789abcdef".repeat(4);
        let options = Options::parse(&format!("ro roothash=x roothash={hash} pgkiln.wait=5\n")).unwrap();
        assert_eq!((options.root_hash[0], options.root_hash[31]), (0x01, 0xef));
        assert_eq!((options.on_failure, options.wait), (OnFailure::Reboot, Duration::from_secs(5)));
        let options = Options::parse(&format!("pgkiln.failure=poweroff roothash={hash}")).unwrap();
        assert_eq!((options.on_failure, options.wait, options.mode), (OnFailure::PowerOff, WAIT, Mode::Disk));
        let install = "pgkiln.live pgkiln.mode=install";
        for (words, mode) in [("pgkiln.live", Mode::Live), ("pgkiln.lively", Mode::Disk), (install, Mode::Install)] {
            assert_eq!(Options::parse(&format!("roothash={hash} {words} x")).unwrap().mode, mode);
        }
        let unknown = format!("roothash={hash} pgkiln.mode=instal");
        for wrong in [unknown.as_str(), "", "roothash=", "roothash=12", &format!("roothash={}", "é".repeat(32))] {
            assert!(Options::parse(wrong).is_err(), "{wrong}");
        }
    }
}
