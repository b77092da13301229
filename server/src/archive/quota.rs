//! Which archives go: those that nobody came back for, and of too many the oldest of who has most. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use crate::conversation::Owner;

/// An archive in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Its name in the store.
    pub(super) name: String,
    pub(super) written: SystemTime,
    pub(super) bytes: u64,
}

/// Those that are older than `keep`. The others stay for now.
pub(super) fn outdated(kept: &mut Vec<Kept>, keep: Duration, now: SystemTime) -> Vec<Kept> {
    // One of the future, by the store's clock, is a new one.
    let age = |archive: &Kept| now.duration_since(archive.written).unwrap_or_default();
    kept.extract_if(.., |archive| age(archive) > keep).collect()
}

/// Those that have to go so that no more than `total` bytes are left: again and again the oldest one of the
/// owner who has most, so that nobody's archives make way for another's that has more. Those of nobody knows whom are one
/// owner's.
pub(super) fn too_many(kept: Vec<Kept>, total: u64, owner_of: impl Fn(&Kept) -> Option<Owner>) -> Vec<Kept> {
    let mut sum = size_of(&kept);
    let mut owned: BTreeMap<Option<Owner>, Vec<Kept>> = BTreeMap::new();
    for archive in kept {
        owned.entry(owner_of(&archive)).or_default().push(archive);
    }
    let mut by_size = BTreeSet::new();
    for (owner, archives) in &mut owned {
        // By name where the time is the same, so that all servers choose alike.
        archives.sort_by(|a, b| b.written.cmp(&a.written).then_with(|| a.name.cmp(&b.name)));
        by_size.insert((size_of(archives), *owner));
    }
    let mut go = Vec::new();
    while sum > u128::from(total)
        && let Some((size, owner)) = by_size.pop_last()
    {
        let Some(oldest) = owned.get_mut(&owner).and_then(Vec::pop) else {
            continue;
        };
        sum -= u128::from(oldest.bytes);
        by_size.insert((size - u128::from(oldest.bytes), owner));
        go.push(oldest);
    }
    go
}

/// No store is as large as this can be, but what it says is not ours.
pub(super) fn size_of(archives: &[Kept]) -> u128 {
    archives.iter().map(|archive| u128::from(archive.bytes)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn kept((name, age, bytes): &(&str, i64, u64)) -> Kept {
        let ago = Duration::from_secs(age.unsigned_abs());
        Kept {
            name: (*name).to_owned(),
            written: if *age < 0 { now() + ago } else { now() - ago },
            bytes: *bytes,
        }
    }

    #[test]
    fn the_old_go() {
        let there = [("a", 0, 5), ("b", 100, 5), ("c", 101, 5), ("d", -50, 5)];
        let mut archives: Vec<Kept> = there.iter().map(kept).collect();
        let go = outdated(&mut archives, Duration::from_secs(100), now());
        assert_eq!(names(&go), ["c"]);
        assert_eq!(archives.len(), 3);
    }

    fn names(archives: &[Kept]) -> Vec<&str> {
        archives.iter().map(|archive| archive.name.as_str()).collect()
    }

    #[test]
    fn the_oldest_of_who_has_most_go() {
        // The first letter of a name is its owner's; nobody knows whose those are that begin with x.
        let owner = |archive: &Kept| match archive.name.as_bytes()[0] {
            b'x' => None,
            letter => Some(Owner([letter; Owner::BYTES])),
        };
        for (there, total, go) in [
            (&[][..], 10, &[][..]),
            (&[("a1", 0, 5), ("a2", 100, 5)], 10, &[]),
            (&[("a1", 3, 4), ("a2", 2, 4), ("a3", 1, 4)], 10, &["a1"]),
            (&[("a1", 3, 1), ("a2", 2, 6), ("a3", 1, 6)], 10, &["a1", "a2"]),
            (&[("a1", 1, 11)], 10, &["a1"]),
            (&[("a2", 1, 6), ("a1", 1, 6)], 10, &["a2"]),
            (&[("a1", -50, 6), ("a2", 1, 6)], 10, &["a2"]),
            (
                &[("a1", 1, 5), ("a2", 2, u64::MAX), ("a3", 3, 7)],
                10,
                &["a3", "a2"],
            ),
            // The oldest of all stays: its owner has little.
            (
                &[("a1", 9, 4), ("b1", 3, 4), ("b2", 2, 4), ("b3", 1, 4)],
                12,
                &["b1"],
            ),
            (
                &[("a1", 9, 4), ("b1", 3, 4), ("b2", 2, 4), ("b3", 1, 4)],
                8,
                &["b1", "b2"],
            ),
            // Once they have the same, either may have to go.
            (
                &[("a1", 9, 4), ("b1", 3, 4), ("b2", 2, 4), ("b3", 1, 4)],
                4,
                &["b1", "b2", "b3"],
            ),
            (&[("a1", 9, 4), ("x1", 3, 4), ("x2", 2, 4)], 10, &["x1"]),
            (
                &[("a1", 9, 3), ("b1", 8, 3), ("x1", 3, 4), ("c1", 2, 3)],
                9,
                &["x1"],
            ),
        ] {
            let archives = there.iter().map(kept).collect();
            let gone = too_many(archives, total, owner);
            assert_eq!(names(&gone), go, "{there:?} {total}");
        }
    }
}
