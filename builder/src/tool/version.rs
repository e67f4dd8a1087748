//! Version numbers as programs print them, compared number by number.

use std::fmt;

/// The numeric part of a program's version (`apt 2.6.1 (amd64)` is 2.6.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u64>);

impl Version {
    /// The first number in `text`, with its dotted parts.
    pub fn find_in(text: &str) -> Option<Self> {
        let start = text.find(|c: char| c.is_ascii_digit())?;
        let number: &str = text[start..].split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let parts: Result<Vec<u64>, _> = number.split('.').filter(|part| !part.is_empty()).map(str::parse).collect();
        parts.ok().map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_number_in_what_programs_print() {
        for (text, version) in [
            ("apt 2.6.1 (amd64)", "2.6.1"),
            ("systemd 252 (252.30-1~deb12u2)\n+PAM", "252"),
            ("gpgv (GnuPG) 2.2.40", "2.2.40"),
            ("ip utility, iproute2-6.1.0", "2"),
            ("mmdebstrap 1.3.5", "1.3.5"),
        ] {
            assert_eq!(Version::find_in(text).unwrap().to_string(), version, "{text}");
        }
        assert_eq!(Version::find_in("none here"), None);
    }

    #[test]
    fn compares_numbers_not_text() {
        let version = |text| Version::find_in(text).unwrap();
        assert!(version("2.10") > version("2.9.9"));
        assert!(version("2.2") < version("2.2.1"));
    }
}
