//! Which archives go: those that nobody came back for, and the oldest of too many. Pure.

use std::time::{Duration, SystemTime};

/// An archive in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Its name in the store.
    pub(super) name: String,
    pub(super) written: SystemTime,
    pub(super) bytes: u64,
}

/// The names of those that are older than `keep`, and of the oldest ones beyond `total` bytes.
pub(super) fn overdue(mut kept: Vec<Kept>, keep: Duration, total: u64, now: SystemTime) -> Vec<String> {
    // By name where the time is the same, so that all servers choose alike.
    kept.sort_by(|a, b| b.written.cmp(&a.written).then_with(|| a.name.cmp(&b.name)));
    let mut sum = 0_u64;
    let mut is_full = false;
    let mut go = Vec::new();
    for archive in kept {
        // One of the future, by the store's clock, is a new one.
        let age = now.duration_since(archive.written).unwrap_or_default();
        sum = sum.saturating_add(archive.bytes);
        is_full |= sum > total;
        if age > keep || is_full {
            go.push(archive.name);
        }
    }
    go
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_and_the_oldest_go() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let keep = Duration::from_secs(100);
        let kept = |(name, age, bytes): &(&str, i64, u64)| Kept {
            name: (*name).to_owned(),
            written: if *age < 0 {
                now + Duration::from_secs(age.unsigned_abs())
            } else {
                now - Duration::from_secs(age.unsigned_abs())
            },
            bytes: *bytes,
        };
        for (there, total, go) in [
            (&[][..], 10, &[][..]),
            (&[("a", 0, 5), ("b", 100, 5)], 10, &[]),
            (&[("a", 0, 5), ("b", 101, 5)], 10, &["b"]),
            (&[("a", 3, 4), ("b", 2, 4), ("c", 1, 4)], 10, &["a"]),
            (&[("a", 3, 1), ("b", 2, 6), ("c", 1, 6)], 10, &["b", "a"]),
            (&[("a", 1, 11)], 10, &["a"]),
            (&[("b", 1, 6), ("a", 1, 6)], 10, &["b"]),
            (&[("a", -50, 6), ("b", 1, 6)], 10, &["b"]),
            (&[("a", 1, 5), ("b", 2, u64::MAX), ("c", 3, 7)], 10, &["b", "c"]),
        ] {
            let archives = there.iter().map(kept).collect();
            assert_eq!(overdue(archives, keep, total, now), go, "{there:?} {total}");
        }
    }
}
