//! How many sandboxes to keep warm: as many as lately came at once, between two bounds.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Claims that come within this time are one burst: it takes about as long to boot the next few, so what is
/// claimed within it has to have been warm before.
const AT_ONCE: Duration = Duration::from_secs(10);

/// How long a burst is remembered: bursts of a classroom or a batch come again within minutes, and a warm sandbox
/// that nobody wants costs 95 MiB.
pub(super) const MEMORY: Duration = Duration::from_secs(10 * 60);

/// Claims that are remembered: more at once than any pool keeps warm.
const CLAIMS: usize = 1024;

/// The claims of the last while.
#[derive(Debug, Default)]
pub(super) struct Appetite {
    claims: VecDeque<Instant>,
}

impl Appetite {
    /// Somebody wanted a sandbox.
    pub(super) fn claimed(&mut self, now: Instant) {
        if self.claims.len() >= CLAIMS {
            self.claims.pop_front();
        }
        self.claims.push_back(now);
    }

    /// How many to keep warm: the largest burst that is remembered, but at least `warm` and at most `most`.
    pub(super) fn target(&mut self, warm: usize, most: usize, now: Instant) -> usize {
        while self.claims.front().is_some_and(|at| now - *at >= MEMORY) {
            self.claims.pop_front();
        }
        burst(&self.claims).min(most).max(warm)
    }

    /// When the target may change though nobody claims.
    pub(super) fn next(&self) -> Option<Instant> {
        self.claims.front().map(|at| *at + MEMORY)
    }
}

/// The most claims, which are in order, that came within [`AT_ONCE`].
fn burst(claims: &VecDeque<Instant>) -> usize {
    let mut first = 0;
    let mut most = 0;
    for (last, at) in claims.iter().enumerate() {
        while *at - claims[first] >= AT_ONCE {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(claims: &[u64], warm: usize, most: usize, seconds: u64) -> usize {
        let start = Instant::now();
        let mut appetite = Appetite::default();
        for at in claims {
            appetite.claimed(start + Duration::from_secs(*at));
        }
        appetite.target(warm, most, start + Duration::from_secs(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_kept_warm_for_until_it_is_forgotten() {
        for (claims, warm, most, seconds, expected) in [
            (&[][..], 2, 8, 0, 2),
            // One after the other needs no more than one.
            (&[0, 20, 40, 60], 1, 8, 60, 1),
            (&[0, 1, 2, 3, 4], 2, 8, 5, 5),
            (&[0, 1, 2, 3, 4], 2, 3, 5, 3),
            // Fixed, where both bounds are the same.
            (&[0, 1, 2, 3, 4], 2, 2, 5, 2),
            // The window slides: five within ten seconds, not two and three.
            (&[0, 8, 9, 11, 12, 17], 1, 8, 17, 5),
            (&[0, 1, 2, 300], 1, 8, 599, 3),
            (&[0, 1, 2, 300], 1, 8, 602, 1),
        ] {
            assert_eq!(
                after(claims, warm, most, seconds),
                expected,
                "{claims:?} at {seconds}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_target_keeps_to_its_bounds_and_never_outgrows_the_claims(
            mut claims in prop::collection::vec(0_u64..2000, 0..200),
            warm in 0_usize..8,
            more in 0_usize..32,
            later in 0_u64..2000,
        ) {
            claims.sort_unstable();
            let now = claims.last().copied().unwrap_or(0) + later;
            let target = after(&claims, warm, warm + more, now);
            prop_assert!((warm..=warm + more).contains(&target));
            let recent = claims.iter().filter(|at| now - **at < MEMORY.as_secs()).count();
            prop_assert!(target <= recent.max(warm));
            prop_assert_eq!(after(&claims, warm, warm + more, now + MEMORY.as_secs()), warm);
        }
    }
}
