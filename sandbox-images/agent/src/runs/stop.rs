//! When a run that is under way is stopped, and how hard: a pure state machine, told the time.

use std::time::Duration;

use greenroom_protocol::{EndReason, RunStatus};
use tokio::time::Instant;

/// From an interrupt to the kill, for code that cleans up and for code that ignores it.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// Whether and why a run is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It has until then.
    At(Instant),
    /// It was interrupted, and has until then to return.
    Interrupted(Why, Instant),
    /// Its kernel was killed.
    Killed(Why),
}

/// Why a run is stopped. The first reason counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its time was over.
    TimedOut,
    /// Somebody asked for it.
    Cancelled,
    /// The sandbox ends.
    Ending(EndReason),
}

/// What has to be done to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// As Ctrl-C does.
    Interrupt,
    /// With its whole descent.
    Kill,
}

impl Stop {
    /// When to ask [`due`](Self::due) next.
    pub(super) const fn next(self) -> Option<Instant> {
        match self {
            Self::At(at) | Self::Interrupted(_, at) => Some(at),
            Self::Killed(_) => None,
        }
    }

    /// Time has passed.
    pub(super) fn due(&mut self, now: Instant) -> Option<Act> {
        match *self {
            Self::At(at) if now >= at => {
                *self = Self::Interrupted(Why::TimedOut, now + GRACE);
                Some(Act::Interrupt)
            }
            Self::Interrupted(why, at) if now >= at => {
                *self = Self::Killed(why);
                Some(Act::Kill)
            }
            Self::At(_) | Self::Interrupted(..) | Self::Killed(_) => None,
        }
    }

    /// Somebody cancelled it.
    pub(super) fn cancel(&mut self, now: Instant) -> Option<Act> {
        match *self {
            Self::At(_) => {
                *self = Self::Interrupted(Why::Cancelled, now + GRACE);
                Some(Act::Interrupt)
            }
            Self::Interrupted(..) | Self::Killed(_) => None,
        }
    }

    /// The sandbox ends: there is no grace left to give.
    pub(super) fn end(&mut self, reason: EndReason) -> Option<Act> {
        let why = match *self {
            Self::At(_) => Why::Ending(reason),
            Self::Interrupted(why, _) => why,
            Self::Killed(_) => return None,
        };
        *self = Self::Killed(why);
        Some(Act::Kill)
    }

    /// Why it was stopped, if it was.
    pub(super) const fn why(self) -> Option<Why> {
        match self {
            Self::At(_) => None,
            Self::Interrupted(why, _) | Self::Killed(why) => Some(why),
        }
    }
}

impl Why {
    /// The word for it in an outcome.
    pub(super) const fn status(self) -> RunStatus {
        match self {
            Self::TimedOut => RunStatus::TimedOut,
            Self::Cancelled => RunStatus::Cancelled,
            Self::Ending(_) => RunStatus::KernelDied,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    enum Event {
        Due(u64),
        Cancel(u64),
        End,
    }
    use Event::{Cancel, Due, End};

    #[tokio::test(start_paused = true)]
    async fn a_run_is_interrupted_then_killed_and_the_first_reason_counts() {
        let start = Instant::now();
        let ending = Why::Ending(EndReason::Reset);
        // A run with ten seconds: what happens, what is done about it, and why in the end.
        for (events, acts, why) in [
            (&[Due(9)][..], &[][..], None),
            (&[Due(10), Due(12)], &[Act::Interrupt], Some(Why::TimedOut)),
            (
                &[Due(10), Due(13), Due(99)],
                &[Act::Interrupt, Act::Kill],
                Some(Why::TimedOut),
            ),
            (&[Cancel(1), Due(3)], &[Act::Interrupt], Some(Why::Cancelled)),
            (
                &[Cancel(1), Cancel(2), Due(4)],
                &[Act::Interrupt, Act::Kill],
                Some(Why::Cancelled),
            ),
            (
                &[Cancel(9), Due(11), Due(12)],
                &[Act::Interrupt, Act::Kill],
                Some(Why::Cancelled),
            ),
            (
                &[Due(10), Cancel(11), Due(13)],
                &[Act::Interrupt, Act::Kill],
                Some(Why::TimedOut),
            ),
            (&[End, End, Cancel(1), Due(10)], &[Act::Kill], Some(ending)),
            (
                &[Cancel(1), End, Due(4)],
                &[Act::Interrupt, Act::Kill],
                Some(Why::Cancelled),
            ),
        ] {
            let mut stop = Stop::At(start + Duration::from_secs(10));
            let done: Vec<_> = events
                .iter()
                .filter_map(|event| match *event {
                    Due(at) => stop.due(start + Duration::from_secs(at)),
                    Cancel(at) => stop.cancel(start + Duration::from_secs(at)),
                    End => stop.end(EndReason::Reset),
                })
                .collect();
            assert_eq!((done.as_slice(), stop.why()), (acts, why));
        }
    }
}
