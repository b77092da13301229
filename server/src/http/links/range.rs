//! Which bytes of a file a request wants: RFC 9110, §14.

use std::ops::Range;

use axum::http::{HeaderMap, header};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it; also where the RFC says to ignore a range: other units, several ones, malformed ones.
    Whole,
    /// `a-`
    From(u64),
    /// `a-b`, both inclusive.
    Between(u64, u64),
    /// `-n`: the last `n` bytes.
    Last(u64),
}

impl Asked {
    /// Reads the headers of a request for a file that has this tag.
    pub(super) fn of(headers: &HeaderMap, tag: &str) -> Self {
        let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // A part of another state of the file is of no use to whoever has the first part of an earlier one.
        if headers.contains_key(header::IF_RANGE) && value(header::IF_RANGE) != Some(tag) {
            return Self::Whole;
        }
        value(header::RANGE).and_then(Self::parse).unwrap_or(Self::Whole)
    }

    fn parse(header: &str) -> Option<Self> {
        let number = |text: &str| -> Option<u64> {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        let (first, last) = header.strip_prefix("bytes=")?.trim().split_once('-')?;
        match (first, last) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// The bytes that it means in a file of this size; `None` for the whole.
    ///
    /// # Errors
    /// It begins at or after the end.
    pub(super) fn within(self, size: u64) -> Result<Option<Range<u64>>, ()> {
        let range = match self {
            Self::Whole => return Ok(None),
            Self::From(first) => first..size,
            Self::Between(first, last) => first..last.saturating_add(1).min(size),
            Self::Last(0) => return Err(()),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        if range.start < range.end {
            Ok(Some(range))
        } else {
            Err(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_mean_bytes_that_exist() {
        for (header, of_ten) in [
            ("bytes=0-", Ok(Some(0..10))),
            ("bytes=9-", Ok(Some(9..10))),
            ("bytes=10-", Err(())),
            ("bytes=2-4", Ok(Some(2..5))),
            ("bytes=2-99999999999999999999", Ok(Some(2..10))),
            ("bytes=-3", Ok(Some(7..10))),
            ("bytes=-30", Ok(Some(0..10))),
            ("bytes=-0", Err(())),
            ("bytes=4-2", Ok(None)),
            ("bytes=0-1,3-4", Ok(None)),
            ("bytes=+1-2", Ok(None)),
            ("lines=1-2", Ok(None)),
            ("", Ok(None)),
        ] {
            let headers = HeaderMap::from_iter([(header::RANGE, header.parse().unwrap())]);
            assert_eq!(Asked::of(&headers, "\"x\"").within(10), of_ten, "{header}");
        }
        assert_eq!(Asked::From(0).within(0), Err(()));
        assert_eq!(Asked::Whole.within(0), Ok(None));
    }

    #[test]
    fn a_part_is_of_the_state_that_was_asked_for() {
        let headers = |tag: &str| {
            HeaderMap::from_iter([
                (header::RANGE, "bytes=1-2".parse().unwrap()),
                (header::IF_RANGE, tag.parse().unwrap()),
            ])
        };
        assert_eq!(Asked::of(&headers("\"x\""), "\"x\""), Asked::Between(1, 2));
        assert_eq!(Asked::of(&headers("\"y\""), "\"x\""), Asked::Whole);
    }
}
