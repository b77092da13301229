//! A part of a file, as HTTP asks for it: one range of RFC 9110, §14.1.2.

use std::ops::Range;

/// Which bytes of a file are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `a-`
    From(u64),
    /// `a-b`, both inclusive.
    Between(u64, u64),
    /// `-n`: the last `n` bytes.
    Last(u64),
}

impl ByteRange {
    /// Reads the value of a `Range` header. `None` for what the RFC says to ignore: other units, several
    /// ranges, anything malformed.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let digits = |text: &str| -> Option<u64> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        let (first, last) = header.strip_prefix("bytes=")?.trim().split_once('-')?;
        match (first, last) {
            ("", last) => digits(last).map(Self::Last),
            (first, "") => digits(first).map(Self::From),
            (first, last) => {
                let (first, last) = (digits(first)?, digits(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The bytes that it means in a file of this size; `None` where it begins at or after the end.
    #[must_use]
    pub fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first) => first..size,
            Self::Between(first, last) => first..last.saturating_add(1).min(size),
            Self::Last(0) => return None,
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (header, range) in [
            ("bytes=0-", Some(ByteRange::From(0))),
            ("bytes=5-9", Some(ByteRange::Between(5, 9))),
            ("bytes=-3", Some(ByteRange::Last(3))),
            ("bytes=99999999999999999999-", Some(ByteRange::From(u64::MAX))),
            ("bytes=9-5", None),
            ("bytes=-", None),
            ("bytes=0-1,3-4", None),
            ("bytes=+1-2", None),
            ("lines=1-2", None),
            ("", None),
        ] {
            assert_eq!(ByteRange::parse(header), range, "{header}");
        }
    }

    #[test]
    fn ranges_mean_bytes_that_exist() {
        for (range, bytes) in [
            (ByteRange::From(0), Some(0..10)),
            (ByteRange::From(9), Some(9..10)),
            (ByteRange::From(10), None),
            (ByteRange::Between(2, 4), Some(2..5)),
            (ByteRange::Between(2, u64::MAX), Some(2..10)),
            (ByteRange::Between(10, 12), None),
            (ByteRange::Last(3), Some(7..10)),
            (ByteRange::Last(30), Some(0..10)),
            (ByteRange::Last(0), None),
        ] {
            assert_eq!(range.within(10), bytes, "{range:?}");
        }
        assert!(ByteRange::From(0).within(0).is_none());
    }

    proptest! {
        #[test]
        fn no_range_leaves_the_file(header in "bytes=[0-9]{0,20}-[0-9]{0,20}", size: u64) {
            if let Some(range) = ByteRange::parse(&header).and_then(|range| range.within(size)) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
