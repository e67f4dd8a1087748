//! The one table that knows distributions: official archives, keyrings, snapshot services. To add a distribution, add a row.

/// A distribution and its archives.
#[derive(Debug, PartialEq, Eq)]
pub struct Distribution {
    /// `distribution` in `image.toml`, and `ID` in the host's `os-release`.
    pub id: &'static str,
    /// Its own archives.
    pub archives: &'static [OfficialArchive],
}

/// An archive run by the distribution itself.
#[derive(Debug, PartialEq, Eq)]
pub struct OfficialArchive {
    /// Its id in recipes; by convention also the last part of a mirror's path.
    pub id: &'static str,
    /// What follows the codename in its suites (`trixie-updates`): tells which of the host's sources are mirrors of it.
    pub suite_suffixes: &'static [&'static str],
    /// Used when the host has no mirror of it.
    pub fallback: &'static str,
    /// Keyring with its signing keys.
    pub keyring: &'static str,
    /// Package that has the keyring.
    pub keyring_package: &'static str,
    /// Snapshot service; the time and a slash follow.
    pub snapshot: Option<&'static str>,
}

/// All known distributions.
pub static DISTRIBUTIONS: &[Distribution] = &[
    Distribution {
        id: "debian",
        archives: &[
            OfficialArchive {
                id: "debian",
                suite_suffixes: &["", "-updates", "-backports"],
                fallback: "http://ftp.debian.org/debian",
                keyring: "/usr/share/keyrings/debian-archive-keyring.gpg",
                keyring_package: "debian-archive-keyring",
                snapshot: Some("http://snapshot.debian.org/archive/debian/"),
            },
            OfficialArchive {
                id: "debian-security",
                suite_suffixes: &["-security"],
                fallback: "http://security.debian.org/debian-security",
                keyring: "/usr/share/keyrings/debian-archive-keyring.gpg",
                keyring_package: "debian-archive-keyring",
                snapshot: Some("http://snapshot.debian.org/archive/debian-security/"),
            },
        ],
    },
    Distribution {
        id: "ubuntu",
        archives: &[
            OfficialArchive {
                id: "ubuntu",
                suite_suffixes: &["", "-updates", "-backports"],
                fallback: "http://archive.ubuntu.com/ubuntu",
                keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
                keyring_package: "ubuntu-keyring",
                snapshot: Some("http://snapshot.ubuntu.com/ubuntu/"),
            },
            OfficialArchive {
                id: "ubuntu-security",
                suite_suffixes: &["-security"],
                fallback: "http://security.ubuntu.com/ubuntu",
                keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
                keyring_package: "ubuntu-keyring",
                snapshot: Some("http://snapshot.ubuntu.com/ubuntu/"),
            },
        ],
    },
];

impl Distribution {
    /// The row for `id`.
    pub fn find(id: &str) -> Option<&'static Self> {
        DISTRIBUTIONS.iter().find(|distribution| distribution.id == id)
    }

    /// Its archive called `id`.
    pub fn archive(&self, id: &str) -> Option<&'static OfficialArchive> {
        self.archives.iter().find(|archive| archive.id == id)
    }
}
