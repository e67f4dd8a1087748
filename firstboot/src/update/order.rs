//! The order in which systemd-boot tries images, so that an update is certain to be the next boot's choice.
//!
//! `strverscmp_improved` of systemd (`src/fundamental/string-util-fundamental.c`), by which the boot loader compares file
//! names; systemd's manual calls it the "Version Format Specification" (UAPI.10).

use std::cmp::Ordering;

/// Compares two versions as the boot loader does.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip(a, |byte| !is_known(byte));
        b = skip(b, |byte| !is_known(byte));
        match lower(a, b, b'~') {
            Ordering::Equal if a.first() == Some(&b'~') => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            Ordering::Equal => {}
            order => return order,
        }
        if a.is_empty() || b.is_empty() {
            return a.len().min(1).cmp(&b.len().min(1));
        }
        for mark in [b'-', b'^', b'.'] {
            match lower(a, b, mark) {
                Ordering::Equal if a.first() == Some(&mark) => (a, b) = (&a[1..], &b[1..]),
                Ordering::Equal => {}
                order => return order,
            }
        }
        let digits = a.first().is_some_and(u8::is_ascii_digit) || b.first().is_some_and(u8::is_ascii_digit);
        let is = |byte: u8| if digits { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
        let (rest_a, rest_b) = (skip(a, is), skip(b, is));
        let (part_a, part_b) = (&a[..a.len() - rest_a.len()], &b[..b.len() - rest_b.len()]);
        let order = if digits { numbers(part_a, part_b) } else { part_a.cmp(part_b) };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn is_known(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'~' | b'-' | b'^' | b'.')
}

fn skip(text: &[u8], over: impl Fn(u8) -> bool) -> &[u8] {
    &text[text.iter().take_while(|byte| over(**byte)).count()..]
}

/// The one that has `mark` here is the lower one.
fn lower(a: &[u8], b: &[u8], mark: u8) -> Ordering {
    (a.first() != Some(&mark)).cmp(&(b.first() != Some(&mark)))
}

/// A number is newer than none; leading zeros do not count.
fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let strip = |digits: &'_ [u8]| digits.iter().take_while(|digit| **digit == b'0').count();
    let (short_a, short_b) = (&a[strip(a)..], &b[strip(b)..]);
    let some = (!a.is_empty()).cmp(&!b.is_empty());
    some.then(short_a.len().cmp(&short_b.len())).then_with(|| short_a.cmp(short_b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_systemd_compares() {
        // Ascending; the examples of systemd's own test, and ours.
        let sorted = [
            ["1~rc1", "1"],
            ["1", "1^post"],
            ["1^post", "1.1"],
            ["123-9", "123.1-1"],
            ["123.a", "123a"],
            ["a.9", "a.10"],
            ["009", "10"],
            ["ab", "b"],
            ["debian-13_20261125.ffff.efi", "debian-13_20261125.1e5f.efi"],
            ["debian-13_20261125.ffff.efi", "debian-13_20261125.ffff_1_20261125.1e5f.efi"],
            ["debian-13_20261125.ff12.efi", "debian-13_20261125.ff12_1_20261125.1e5f.efi"],
            ["debian-13_20261125.ff12_9_20261125.1e5f.efi", "debian-13_20261125.ff12_10_20261125.0000.efi"],
            ["debian-13_20261125.ff12_10_20261125.1e5f.efi", "debian-13_20261126.0000.efi"],
        ];
        for [a, b] in sorted {
            assert_eq!(compare(a, b), Ordering::Less, "{a} {b}");
            assert_eq!(compare(b, a), Ordering::Greater, "{b} {a}");
            assert_eq!(compare(a, a), Ordering::Equal);
        }
        assert_eq!(compare("1_", "1"), Ordering::Equal);
    }

    proptest::proptest! {
        #[test]
        fn it_is_an_order_and_ends(a in "[a-b0-1~^._-]{0,8}", b in "[a-b0-1~^._-]{0,8}") {
            proptest::prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        }
    }
}
