//! When to look at the engine next. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::policy::delay;

/// The least time between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// While the pool is nearly full, when another server may soon want room.
const WATCHFUL: Duration = Duration::from_secs(2);
/// Otherwise: a list costs the engine a few milliseconds.
const CALM: Duration = Duration::from_secs(5);
/// Longest pause while looks fail.
const FAILING: Duration = Duration::from_secs(15);

/// Looks at the engine: one at a time.
#[derive(Debug)]
pub(super) struct Looks {
    state: State,
    failure: Option<String>,
    failures: u32,
    /// Looks in a row that saw the pool full.
    full: u32,
}

#[derive(Debug)]
enum State {
    Never,
    UnderWay,
    Idle { since: Instant, pause: Duration },
}

/// What looks are good for at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// Condemned sandboxes ask to be looked for from then on.
    pub(super) sentences_from: Option<Instant>,
    /// How the pool as a whole is to be watched.
    pub(super) watch: Watch,
}

/// How closely the pool is watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Watch {
    /// Nothing to see.
    #[default]
    None,
    /// For sandboxes that died without a word.
    Calm,
    /// Also for other servers' claims, as little room is left, or for room for the reserve.
    Watchful,
    /// No room is left.
    Full,
}

impl Looks {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Never,
            failure: None,
            failures: 0,
            full: 0,
        }
    }

    /// When the next look is due; `None`: when something changes.
    pub(super) fn next(&self, need: Need, now: Instant) -> Option<Instant> {
        let (since, pause) = match self.state {
            State::Never => return Some(now),
            State::UnderWay => return None,
            State::Idle { since, pause } => (since, pause),
        };
        let every = match need.watch {
            Watch::None => None,
            Watch::Calm => Some(CALM),
            Watch::Watchful => Some(WATCHFUL),
            Watch::Full => Some(PAUSE),
        };
        let watch = every.map(|every| since + every);
        let wanted = [watch, need.sentences_from].into_iter().flatten().min()?;
        Some(wanted.max(since + pause))
    }

    /// Begins a look if one is due.
    pub(super) fn begin(&mut self, need: Need, now: Instant) -> bool {
        let due = self.next(need, now).is_some_and(|at| at <= now);
        if due {
            self.state = State::UnderWay;
        }
        due
    }

    /// A look told something. Answers whether the pool has been full for two looks: one alone may have met
    /// boots that are about to see that there is no room for them.
    pub(super) fn told(&mut self, full: bool, now: Instant) -> bool {
        self.failure = None;
        self.failures = 0;
        self.full = if full { self.full.saturating_add(1) } else { 0 };
        self.state = State::Idle {
            since: now,
            pause: PAUSE,
        };
        self.full >= 2
    }

    pub(super) fn failed(&mut self, reason: String, now: Instant, jitter: f64) {
        self.failure = Some(reason);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Idle {
            since: now,
            pause: delay(self.failures, PAUSE, FAILING, jitter),
        };
    }

    /// Why the last look failed, if it did.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_as_often_as_there_is_something_to_see() {
        let now = Instant::now();
        let mut looks = Looks::new();
        assert!(looks.begin(Need::default(), now), "the first one at once");
        assert_eq!(looks.next(Need::default(), now), None, "one at a time");
        assert!(!looks.told(true, now));
        let second = Duration::from_secs(1);
        for (watch, sentences, seconds) in [
            (Watch::None, None, None),
            (Watch::Calm, None, Some(5)),
            (Watch::Watchful, None, Some(2)),
            (Watch::Full, None, Some(1)),
            (Watch::None, Some(now), Some(1)),
            (Watch::Calm, Some(now + 3 * second), Some(3)),
            (Watch::None, Some(now + 9 * second), Some(9)),
        ] {
            let need = Need {
                watch,
                sentences_from: sentences,
            };
            assert_eq!(
                looks.next(need, now),
                seconds.map(|s| now + s * second),
                "{need:?}"
            );
        }
        assert!(looks.told(true, now), "full twice in a row");
        looks.failed("no engine".into(), now, 1.0);
        looks.failed("no engine".into(), now, 1.0);
        let need = Need {
            watch: Watch::Full,
            sentences_from: None,
        };
        assert_eq!(looks.next(need, now), Some(now + 2 * second));
        assert_eq!(looks.failure(), Some("no engine"));
        assert!(!looks.told(false, now));
        assert_eq!(looks.failure(), None);
    }
}
