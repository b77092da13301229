//! Which bytes of a file a request wants: RFC 9110, §14.

use std::ops::Range;

use axum::http::{HeaderMap, header};
use greenroom_protocol::ByteRange;

/// The bytes that a request wants of a file with this tag and size; `None` for the whole.
///
/// # Errors
/// They begin at or after the end.
pub(in crate::http) fn wanted(headers: &HeaderMap, tag: &str, size: u64) -> Result<Option<Range<u64>>, ()> {
    asked(headers, tag)
        .map(|range| range.within(size).ok_or(()))
        .transpose()
}

fn asked(headers: &HeaderMap, tag: &str) -> Option<ByteRange> {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // A part of another state of the file is of no use to whoever has the first part of an earlier one.
    if headers.contains_key(header::IF_RANGE) && value(header::IF_RANGE) != Some(tag) {
        return None;
    }
    value(header::RANGE).and_then(ByteRange::parse)
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
            assert_eq!(wanted(&headers, "\"x\"", 10), of_ten, "{header}");
        }
        let from_0 = HeaderMap::from_iter([(header::RANGE, "bytes=0-".parse().unwrap())]);
        assert_eq!(wanted(&from_0, "\"x\"", 0), Err(()));
        assert_eq!(wanted(&HeaderMap::new(), "\"x\"", 0), Ok(None));
    }

    #[test]
    fn a_part_is_of_the_state_that_was_asked_for() {
        let headers = |tag: &str| {
            HeaderMap::from_iter([
                (header::RANGE, "bytes=1-2".parse().unwrap()),
                (header::IF_RANGE, tag.parse().unwrap()),
            ])
        };
        assert_eq!(asked(&headers("\"x\""), "\"x\""), Some(ByteRange::Between(1, 2)));
        assert_eq!(asked(&headers("\"y\""), "\"x\""), None);
    }
}
