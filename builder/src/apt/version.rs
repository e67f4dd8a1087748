//! Debian's version order, as deb-version(7) defines it; a property test holds it against `dpkg --compare-versions`.

use std::cmp::Ordering;
use std::fmt;

/// A parsed version: `[epoch:]upstream[-revision]`. Equality is that of the order (`1.0` equals `1.0-0`).
#[derive(Debug, Clone)]
pub struct Version {
    epoch: u32,
    upstream: String,
    revision: String,
    text: String,
}

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(&'static str);

impl Version {
    /// Reads a version with the rules dpkg applies.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) => (epoch.parse().map_err(|_| Malformed("the epoch is not a number"))?, rest),
            None => (0, text),
        };
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        if rest.ends_with('-') {
            return Err(Malformed("the revision is empty"));
        }
        if !upstream.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(Malformed("it does not start with a digit"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || ".+~".contains(c);
        if !upstream.chars().all(|c| plain(c) || c == '-' || c == ':') || !revision.chars().all(plain) {
            return Err(Malformed("it has a character other than a-z, A-Z, 0-9, `.`, `+`, `-`, `~`, `:`"));
        }
        Ok(Self { epoch, upstream: upstream.to_owned(), revision: revision.to_owned(), text: text.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.epoch.cmp(&other.epoch))
            .then_with(|| compare_part(self.upstream.as_bytes(), other.upstream.as_bytes()))
            .then_with(|| compare_part(self.revision.as_bytes(), other.revision.as_bytes()))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version {}

/// `~` before the end, the end before letters, letters before everything else.
fn weight(byte: Option<u8>) -> i32 {
    match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_digit() => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(byte),
        Some(byte) => i32::from(byte) + 256,
    }
}

/// Alternates between a stretch of non-digits, compared by weight, and a number.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let digit = |text: &[u8]| text.first().is_some_and(u8::is_ascii_digit);
    while !a.is_empty() || !b.is_empty() {
        while (!a.is_empty() && !digit(a)) || (!b.is_empty() && !digit(b)) {
            match weight(a.first().copied()).cmp(&weight(b.first().copied())) {
                Ordering::Equal => (a, b) = (a.get(1..).unwrap_or(&[]), b.get(1..).unwrap_or(&[])),
                unequal => return unequal,
            }
        }
        let (left, right) = (number(&mut a), number(&mut b));
        match left.len().cmp(&right.len()).then_with(|| left.cmp(right)) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

/// Takes the leading digits off, without leading zeros: longer is then larger, whatever its length.
fn number<'t>(text: &mut &'t [u8]) -> &'t [u8] {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tool::{Cmd, table};

    /// Versions near each other, so that every rule decides somewhere.
    fn version() -> impl Strategy<Value = String> {
        ("([0-2]:)?", "[0-9][0-9a-cA~+.-]{0,6}", "(-[0-9a-c~+.]{1,3})?").prop_map(|(e, u, r)| e + &u + &r)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        #[test]
        fn the_order_is_dpkg_s((a, b) in (version(), version())) {
            let dpkg = |relation: &str| {
                Cmd::new(&table::DPKG).args(["--compare-versions", &a, relation, &b]).captured().unwrap()
            };
            match (Version::parse(&a), Version::parse(&b)) {
                (Ok(left), Ok(right)) => {
                    let relation = match left.cmp(&right) {
                        Ordering::Less => "lt",
                        Ordering::Equal => "eq",
                        Ordering::Greater => "gt",
                    };
                    let done = dpkg(relation);
                    prop_assert!(done.status.success(), "dpkg does not find that {} {} {}", a, relation, b);
                }
                _ => {
                    let told = String::from_utf8_lossy(&dpkg("eq").stderr).into_owned();
                    prop_assert!(told.contains("bad syntax"), "dpkg accepts {} and {}: {}", a, b, told);
                }
            }
        }
    }

    #[test]
    fn known_pairs() {
        let ordered = ["1.0~rc1", "1.0", "1.0-1", "1.0-1+b1", "1.0-1.1", "1.0a", "1.0+x", "1.0.1", "1.1", "1:0.1"];
        let versions: Vec<Version> = ordered.iter().map(|text| Version::parse(text).unwrap()).collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
        assert_eq!(Version::parse("1.0").unwrap(), Version::parse("0:1.00-0").unwrap());
        for bad in ["", "a", "1.0-", ":1", "x:1", "1 0", "1_0"] {
            assert!(Version::parse(bad).is_err(), "{bad}");
        }
    }
}
