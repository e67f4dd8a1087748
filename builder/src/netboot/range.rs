//! `Range: bytes=…` (RFC 9110, section 14): one range; what asks for several, or for something else, gets the whole.

use std::ops::Range;

/// What part of `length` bytes is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// All.
    Whole,
    /// These bytes; never empty.
    Some(Range<u64>),
    /// Nothing that exists.
    Beyond,
}

/// Reads the header.
pub(super) fn parse(header: Option<&str>, length: u64) -> Part {
    let Some((first, last)) = header.and_then(|text| text.trim().strip_prefix("bytes=")?.split_once('-')) else {
        return Part::Whole;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            None => Part::Whole,
            Some(0) => Part::Beyond,
            Some(_) if length == 0 => Part::Beyond,
            Some(suffix) => Part::Some(length.saturating_sub(suffix)..length),
        },
        (first, "") => match number(first) {
            None => Part::Whole,
            Some(first) if first >= length => Part::Beyond,
            Some(first) => Part::Some(first..length),
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first > last => Part::Whole,
            (Some(first), Some(_)) if first >= length => Part::Beyond,
            (Some(first), Some(last)) => Part::Some(first..last.saturating_add(1).min(length)),
            _ => Part::Whole,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_rfc_has_it() {
        for (header, part) in [
            (None, Part::Whole),
            (Some("bytes=0-0"), Part::Some(0..1)),
            (Some("bytes=2-"), Part::Some(2..10)),
            (Some("bytes=-3"), Part::Some(7..10)),
            (Some("bytes=-30"), Part::Some(0..10)),
            (Some("bytes=5-99"), Part::Some(5..10)),
            (Some("bytes=5-18446744073709551615"), Part::Some(5..10)),
            (Some("bytes=10-"), Part::Beyond),
            (Some("bytes=-0"), Part::Beyond),
            (Some("bytes=5-4"), Part::Whole),
            (Some("bytes=0-1,4-5"), Part::Whole),
            (Some("bytes=+1-2"), Part::Whole),
            (Some("bytes=99999999999999999999-"), Part::Whole),
            (Some("items=0-1"), Part::Whole),
        ] {
            assert_eq!(parse(header, 10), part, "{header:?}");
        }
        assert_eq!(parse(Some("bytes=-1"), 0), Part::Beyond);
    }
}
