//! What has to be done with one condemned sandbox before it may be forgotten. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::policy;

/// Empty looks at the engine after which a sandbox whose create went wrong counts as gone.
const EMPTY_LOOKS: u8 = 2;
/// First wait after a failed destroy, and the longest.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_CAP: Duration = Duration::from_secs(60);

/// What is known of the create that was asked of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// It was never asked.
    Never,
    /// It is under way.
    Pending,
    /// It succeeded.
    Done,
    /// It was refused.
    Refused,
    /// Nobody knows; if it took effect, that shows by then.
    Lost {
        /// When.
        by: Instant,
    },
}

/// A condemned sandbox's way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sentence {
    created: Created,
    work: Work,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Its create is under way: what is destroyed now could still appear.
    Awaiting,
    /// To be destroyed at this time.
    Due(Instant),
    /// A destroy is under way.
    Destroying,
    /// Destroyed; looks at the engine that were asked from `from` on and did not show it count.
    Looking {
        since: Instant,
        from: Instant,
        empty: u8,
    },
}

/// Whether a sandbox may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not yet.
    Held,
    /// The engine has nothing of it.
    Gone,
}

impl Sentence {
    pub(super) const fn new(created: Created, now: Instant) -> Self {
        let work = match created {
            Created::Pending => Work::Awaiting,
            Created::Never | Created::Done | Created::Refused | Created::Lost { .. } => Work::Due(now),
        };
        Self {
            created,
            work,
            failures: 0,
        }
    }

    /// The pending create came to an end.
    pub(super) fn settled(&mut self, created: Created, now: Instant) {
        if self.created == Created::Pending {
            self.created = created;
            self.work = Work::Due(now);
        }
    }

    /// When a destroy is due, if one is.
    pub(super) const fn due(&self) -> Option<Instant> {
        match self.work {
            Work::Due(at) => Some(at),
            Work::Awaiting | Work::Destroying | Work::Looking { .. } => None,
        }
    }

    pub(super) const fn is_destroying(&self) -> bool {
        matches!(self.work, Work::Destroying)
    }

    pub(super) const fn begin_destroy(&mut self) {
        self.work = Work::Destroying;
    }

    /// A destroy succeeded: of a sandbox that was certainly created nothing is left.
    pub(super) fn destroyed(&mut self, now: Instant) -> Verdict {
        let from = match self.created {
            Created::Never | Created::Done => return Verdict::Gone,
            Created::Lost { by } => by.max(now),
            Created::Pending | Created::Refused => now,
        };
        // Race: a create that went wrong can show up after a destroy found nothing, so the engine is looked
        // at twice more before the id is forgotten.
        self.failures = 0;
        self.work = Work::Looking {
            since: now,
            from,
            empty: 0,
        };
        Verdict::Held
    }

    /// A destroy failed: it is tried again, for ever.
    pub(super) fn not_destroyed(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        self.work = Work::Due(now + policy::delay(self.failures, RETRY_BASE, RETRY_CAP, jitter));
    }

    /// From when on looks at the engine are of use.
    pub(super) const fn looks_from(&self) -> Option<Instant> {
        match self.work {
            Work::Looking { from, .. } => Some(from),
            Work::Awaiting | Work::Due(_) | Work::Destroying => None,
        }
    }

    /// The engine, asked at `asked`, did or did not show it.
    pub(super) fn looked(&mut self, asked: Instant, shown: bool, now: Instant) -> Verdict {
        let Work::Looking { since, from, empty } = &mut self.work else {
            return Verdict::Held;
        };
        // Race: a list asked for before the destroy was over says nothing about after.
        if shown && asked >= *since {
            self.work = Work::Due(now);
        } else if !shown && asked >= *from {
            *empty += 1;
            if *empty >= EMPTY_LOOKS {
                return Verdict::Gone;
            }
        }
        Verdict::Held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_created_one_is_gone_once_destroyed() {
        let now = Instant::now();
        let mut sentence = Sentence::new(Created::Done, now);
        assert_eq!(sentence.due(), Some(now));
        sentence.begin_destroy();
        assert_eq!(sentence.due(), None);
        assert_eq!(sentence.destroyed(now), Verdict::Gone);
    }

    #[test]
    fn a_hung_create_is_awaited_then_destroyed_then_looked_for_twice() {
        let now = Instant::now();
        let mut sentence = Sentence::new(Created::Pending, now);
        assert_eq!(sentence.due(), None, "it could appear after a destroy");
        sentence.settled(
            Created::Lost {
                by: now + 40 * SECOND,
            },
            now + SECOND,
        );
        assert_eq!(sentence.due(), Some(now + SECOND));
        sentence.begin_destroy();
        assert_eq!(sentence.destroyed(now + 2 * SECOND), Verdict::Held);
        let looks = [
            (39, false, Verdict::Held),
            (40, false, Verdict::Held),
            (41, false, Verdict::Gone),
        ];
        for (at, shown, verdict) in looks {
            let at = now + at * SECOND;
            assert_eq!(sentence.looked(at, shown, at), verdict);
        }
    }

    #[test]
    fn one_that_shows_up_late_is_destroyed_again() {
        let now = Instant::now();
        let mut sentence = Sentence::new(Created::Refused, now);
        sentence.begin_destroy();
        assert_eq!(sentence.destroyed(now + SECOND), Verdict::Held);
        assert_eq!(sentence.looked(now, true, now + SECOND), Verdict::Held);
        assert_eq!(sentence.due(), None, "that list was older than the destroy");
        assert_eq!(sentence.looked(now + SECOND, false, now + SECOND), Verdict::Held);
        assert_eq!(
            sentence.looked(now + SECOND, true, now + 2 * SECOND),
            Verdict::Held
        );
        assert_eq!(sentence.due(), Some(now + 2 * SECOND));
        sentence.begin_destroy();
        assert_eq!(sentence.destroyed(now + 3 * SECOND), Verdict::Held);
        for (asked, verdict) in [(3, Verdict::Held), (4, Verdict::Gone)] {
            let asked = now + asked * SECOND;
            assert_eq!(sentence.looked(asked, false, asked), verdict);
        }
    }

    #[test]
    fn a_failed_destroy_is_tried_again_ever_more_slowly() {
        let now = Instant::now();
        let mut sentence = Sentence::new(Created::Done, now);
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            sentence.begin_destroy();
            sentence.not_destroyed(now, 1.0);
            assert_eq!(sentence.due(), Some(now + seconds * SECOND));
        }
    }
}
