//! How many sandboxes to boot now, and how long to hold back after failures: plain data in, plain data out.

use std::time::Duration;

use tokio::time::Instant;

/// First wait after a failed boot: a hiccup of the engine is over by then.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Longest wait between boots that keep failing: an engine that came back is found within it.
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// Longest wait while a claim stands in the queue: somebody is there to hear of a success.
const BACKOFF_CAP_CLAIMED: Duration = Duration::from_secs(2);

/// `base · 2^(attempts − 1)`, at most `cap`, and of that between a half and all: `jitter` is in 0..1.
pub(super) fn delay(attempts: u32, base: Duration, cap: Duration, jitter: f64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    base.saturating_mul(1 << doublings)
        .min(cap)
        .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// Failures in a row, and until when they hold the next attempt back.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    streak: u32,
    failed_at: Option<Instant>,
    wait: Duration,
}

impl Backoff {
    pub(super) const fn new() -> Self {
        Self {
            streak: 0,
            failed_at: None,
            wait: Duration::ZERO,
        }
    }

    /// One more failure.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) {
        self.streak = self.streak.saturating_add(1);
        self.failed_at = Some(now);
        self.wait = delay(self.streak, BACKOFF_BASE, BACKOFF_CAP, jitter);
    }

    /// It works again.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Failures since the last success.
    pub(super) const fn streak(&self) -> u32 {
        self.streak
    }

    /// When the next attempt may begin; `None`: at any time.
    pub(super) fn until(&self, claims_wait: bool) -> Option<Instant> {
        let wait = if claims_wait {
            self.wait.min(BACKOFF_CAP_CLAIMED)
        } else {
            self.wait
        };
        self.failed_at.map(|at| at + wait)
    }
}

/// First wait after packages could not be installed, and the longest: each try fetches and builds, and mostly it is the
/// list that is wrong, which another start or a changed configuration sets right.
const INSTALL_BASE: Duration = Duration::from_secs(60);
const INSTALL_CAP: Duration = Duration::from_secs(30 * 60);

/// Installations of a pool's packages that failed in a row.
#[derive(Clone, Debug)]
pub(super) struct Installs {
    failed: u32,
    reason: String,
    from: Option<Instant>,
}

impl Installs {
    pub(super) const fn new() -> Self {
        Self {
            failed: 0,
            reason: String::new(),
            from: None,
        }
    }

    /// One more failure.
    pub(super) fn failed(&mut self, reason: String, now: Instant, jitter: f64) {
        self.failed = self.failed.saturating_add(1);
        self.reason = reason;
        self.from = Some(now + delay(self.failed, INSTALL_BASE, INSTALL_CAP, jitter));
    }

    /// They are installed.
    pub(super) fn done(&mut self) {
        *self = Self::new();
    }

    /// When the next may begin; `None`: at any time.
    pub(super) const fn from(&self) -> Option<Instant> {
        self.from
    }

    /// Why the last failed, until one succeeds.
    pub(super) fn reason(&self) -> Option<&str> {
        (self.failed > 0).then_some(self.reason.as_str())
    }
}

/// What decides about boots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Demand {
    /// Claims in the queue.
    pub(super) waiting: usize,
    /// Warm sandboxes that are not about to be replaced.
    pub(super) warm: usize,
    /// Boots under way, for whomever.
    pub(super) booting: usize,
    /// Warm ones to keep.
    pub(super) target: usize,
    /// Boots that may be under way at once.
    pub(super) parallel: usize,
    /// Slots that the engine had free when it was last asked; a reserve may not take the last.
    pub(super) free: usize,
}

/// How many boots to begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Boots {
    /// For waiting claims: these may take the last slot of the engine.
    pub(super) claims: usize,
    /// For the reserve: these leave one slot free.
    pub(super) reserve: usize,
}

/// Claims first, then the reserve, within what may be under way at once. A boot is not bound to its claim:
/// whatever becomes warm goes to whoever waits longest.
///
/// Race: two boots for one free slot would both create, each see the other, and both give up, again and
/// again. So no more are begun than there were slots free. As what was seen grows old, one claim may always
/// try; the reserve waits for the next look.
pub(super) fn boots(demand: &Demand) -> Boots {
    let Demand {
        waiting,
        warm,
        booting,
        target,
        parallel,
        free,
    } = *demand;
    let supply = warm + booting;
    let open = |slots: usize| parallel.min(slots).saturating_sub(booting);
    let claims = waiting.saturating_sub(supply).min(open(free.max(1)));
    let left = open(free.saturating_sub(1)).saturating_sub(claims);
    let reserve = (waiting + target).saturating_sub(supply + claims).min(left);
    Boots { claims, reserve }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn claims_come_before_the_reserve() {
        for (waiting, warm, booting, target, parallel, claims, reserve) in [
            (0, 0, 0, 2, 2, 0, 2),
            (0, 2, 0, 2, 2, 0, 0),
            (0, 1, 0, 2, 2, 0, 1),
            (0, 0, 2, 2, 2, 0, 0),
            (1, 0, 0, 0, 2, 1, 0),
            (1, 0, 0, 2, 2, 1, 1),
            (16, 0, 0, 4, 2, 2, 0),
            (16, 0, 1, 4, 2, 1, 0),
            (1, 0, 1, 0, 2, 0, 0),
            (0, 5, 0, 2, 2, 0, 0),
            (3, 0, 0, 0, 1, 1, 0),
        ] {
            let demand = Demand {
                waiting,
                warm,
                booting,
                target,
                parallel,
                free: usize::MAX,
            };
            assert_eq!(boots(&demand), Boots { claims, reserve }, "{demand:?}");
        }
    }

    #[test]
    fn no_two_boots_for_one_slot() {
        for (waiting, booting, free, claims, reserve) in [
            (2, 0, 1, 1, 0),
            (2, 0, 0, 1, 0),
            (2, 0, 2, 2, 0),
            (1, 0, 2, 1, 0),
            (0, 0, 2, 0, 1),
            (0, 0, 3, 0, 2),
            (0, 0, 0, 0, 0),
            (0, 0, 1, 0, 0),
            (0, 1, 2, 0, 0),
            (2, 1, 1, 0, 0),
        ] {
            let demand = Demand {
                waiting,
                booting,
                free,
                warm: 0,
                target: 4,
                parallel: 2,
            };
            assert_eq!(boots(&demand), Boots { claims, reserve }, "{demand:?}");
        }
    }

    #[test]
    fn a_failing_boot_waits_longer_each_time_and_a_claim_shortens_it() {
        let now = Instant::now();
        let mut backoff = Backoff::new();
        assert_eq!(backoff.until(false), None);
        for (millis, claimed) in [(500, 500), (1000, 1000), (2000, 2000), (4000, 2000)] {
            backoff.failed(now, 1.0);
            assert_eq!(backoff.until(false), Some(now + Duration::from_millis(millis)));
            assert_eq!(backoff.until(true), Some(now + Duration::from_millis(claimed)));
        }
        for _ in 0..100 {
            backoff.failed(now, 1.0);
        }
        assert_eq!(backoff.until(false), Some(now + BACKOFF_CAP));
        backoff.reset();
        assert_eq!((backoff.until(true), backoff.streak()), (None, 0));
    }

    proptest! {
        #[test]
        fn never_more_boots_than_allowed_or_wanted(
            waiting in 0_usize..40, warm in 0_usize..40, booting in 0_usize..40,
            target in 0_usize..40, parallel in 0_usize..8, free in 0_usize..8,
        ) {
            let demand = Demand { waiting, warm, booting, target, parallel, free };
            let Boots { claims, reserve } = boots(&demand);
            prop_assert!(booting + claims + reserve <= parallel.max(booting));
            prop_assert!(booting + claims + reserve <= free.max(1).max(booting));
            prop_assert!(claims <= waiting);
            prop_assert!(claims + reserve == 0 || warm + booting + claims + reserve <= waiting + target);
            // And enough: an idle pool that lacks something and has room begins something.
            let lacks = warm < waiting + target && booting == 0 && parallel > 0 && free > 1;
            prop_assert!(!lacks || claims + reserve > 0);
        }

        #[test]
        fn a_delay_stays_in_its_bounds(attempts in 0_u32..1000, jitter in 0.0..1.0_f64) {
            let delay = delay(attempts, BACKOFF_BASE, BACKOFF_CAP, jitter);
            prop_assert!(delay >= BACKOFF_BASE / 2 && delay <= BACKOFF_CAP);
        }
    }
}
