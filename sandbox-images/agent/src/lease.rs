//! Whose the sandbox is and when it ends: a pure state machine, told the time with every question.
//!
//! ```text
//! Unbound ──grant──▶ Bound(key) ──▶ Ending(why)
//!    └── no live channel for long ──────┘
//! ```
//! Every call settles first what time has decided, so a call that races an expiry either finds the lease
//! alive and holds it open, or finds [`LeaseError::Ending`]: there is no third way. Nothing leaves
//! `Ending`.

use std::time::Duration;

use greenroom_protocol::{EndReason, Ended, KeyDigest, LeaseRequest, LeaseState, LeaseView, Standing};
use tokio::time::Instant;

/// The longest time that a lease or a run can be asked for; more is read as this. It keeps arithmetic on
/// instants from overflowing.
pub(crate) const FOREVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// A number of milliseconds from outside, bounded by [`FOREVER`].
pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms).min(FOREVER)
}

/// The lease of one sandbox.
#[derive(Debug)]
pub(crate) struct Lease {
    state: State,
    unbound: Duration,
    revision: u64,
}

#[derive(Debug)]
enum State {
    /// `alone_since` counts only while there is no channel.
    Unbound {
        channels: u32,
        alone_since: Instant,
    },
    Bound(Bound),
    Ending(EndReason),
}

#[derive(Debug)]
struct Bound {
    key: KeyDigest,
    standing: Standing,
    /// Whether a run, tunnel or transfer has begun.
    used: bool,
    bound_at: Instant,
    idle: Duration,
    lifetime: Duration,
    /// Open runs, tunnels and transfers: the idle clock stands still while there are any.
    open: u32,
    /// When the idle clock last stood at nought; read only while nothing is open.
    idle_since: Instant,
}

/// Why a lease is not granted, not held open or not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LeaseError {
    /// It has decided to end.
    #[error("the sandbox ends: {}", .0.as_str())]
    Ending(EndReason),
    /// Another session has it.
    #[error("the sandbox belongs to another session")]
    OtherKey,
    /// It is nobody's yet.
    #[error("the sandbox has no lease yet")]
    Unbound,
    /// Somebody is at work in it, or was too recently.
    #[error("the sandbox has not been idle for that long")]
    NotIdle,
}

impl Lease {
    /// A lease that nobody holds, with no channel yet.
    pub(crate) const fn new(unbound: Duration, now: Instant) -> Self {
        Self {
            state: State::Unbound {
                channels: 0,
                alone_since: now,
            },
            unbound,
            revision: 0,
        }
    }

    /// Counts the changes that somebody may wait for: bound, other terms, told, ending, channels. Open
    /// and closed activities are none, so a run wakes nobody.
    pub(crate) const fn revision(&self) -> u64 {
        self.revision
    }

    /// A server holds a channel.
    pub(crate) fn channel_opened(&mut self, now: Instant) {
        self.settle(now);
        if let State::Unbound { channels, .. } = &mut self.state {
            *channels += 1;
            self.revision += 1;
        }
    }

    /// A channel that was counted is gone.
    pub(crate) fn channel_closed(&mut self, now: Instant) {
        self.settle(now);
        if let State::Unbound {
            channels,
            alone_since,
        } = &mut self.state
        {
            *channels = channels.saturating_sub(1);
            *alone_since = now;
            self.revision += 1;
        }
    }

    /// Binds it, or finds it bound to the same key: that restarts the idle clock and may change its
    /// length. The lifetime is fixed by the first grant. News of a loss replaces an untold `new`.
    pub(crate) fn grant(&mut self, request: &LeaseRequest, now: Instant) -> Result<Standing, LeaseError> {
        self.settle(now);
        let news = match request.restarted {
            Some(reason) => Standing::Restarted {
                reason,
                files: request.files,
            },
            None => Standing::New,
        };
        match &mut self.state {
            State::Ending(reason) => return Err(LeaseError::Ending(*reason)),
            State::Bound(bound) if bound.key != request.key => return Err(LeaseError::OtherKey),
            State::Bound(bound) => {
                bound.idle = millis(request.idle_ms);
                bound.idle_since = now;
                if bound.standing == Standing::New {
                    bound.standing = news;
                }
                self.revision += 1;
                return Ok(bound.said());
            }
            State::Unbound { .. } => {}
        }
        self.state = State::Bound(Bound {
            key: request.key.clone(),
            standing: news.clone(),
            used: false,
            bound_at: now,
            idle: millis(request.idle_ms),
            lifetime: millis(request.lifetime_ms),
            open: 0,
            idle_since: now,
        });
        self.revision += 1;
        Ok(news)
    }

    /// An answer with the news was written out: from now on the session is an existing one.
    pub(crate) fn told(&mut self, now: Instant) -> Result<(), LeaseError> {
        let bound = self.bound(now)?;
        if bound.standing != Standing::Existing {
            bound.standing = Standing::Existing;
            self.revision += 1;
        }
        Ok(())
    }

    /// A look that holds nothing open: what the caller must hear, as long as there is a session.
    pub(crate) fn standing(&mut self, now: Instant) -> Result<Standing, LeaseError> {
        Ok(self.bound(now)?.said())
    }

    /// A run, tunnel or transfer begins; [`closed`](Self::closed) must follow.
    pub(crate) fn opened(&mut self, now: Instant) -> Result<Standing, LeaseError> {
        let bound = self.bound(now)?;
        bound.open += 1;
        let said = bound.said();
        bound.used = true;
        Ok(said)
    }

    /// A run, tunnel or transfer is over.
    pub(crate) fn closed(&mut self, now: Instant) {
        self.settle(now);
        if let State::Bound(bound) = &mut self.state {
            bound.open = bound.open.saturating_sub(1);
            bound.idle_since = now;
        }
    }

    /// Ends a bound lease; with `idle`, only if nothing is open and nothing was for that long.
    pub(crate) fn end(
        &mut self,
        reason: EndReason,
        idle: Option<Duration>,
        now: Instant,
    ) -> Result<(), LeaseError> {
        let bound = self.bound(now)?;
        if idle.is_some_and(|wanted| bound.idle_for(now) < wanted || bound.open > 0) {
            return Err(LeaseError::NotIdle);
        }
        self.ending(reason);
        Ok(())
    }

    /// Ends it in any state, since there is nothing left that it could be of use for. One that is nobody's has failed:
    /// there is no session that could hear of it.
    pub(crate) fn app_over(&mut self, reason: EndReason, now: Instant) {
        if self.settle(now).is_some() {
            return;
        }
        self.ending(match self.state {
            State::Bound(_) => reason,
            State::Unbound { .. } | State::Ending(_) => EndReason::Failed,
        });
    }

    /// Lets time decide. Answers the reason once it has.
    pub(crate) fn settle(&mut self, now: Instant) -> Option<EndReason> {
        let due = match &self.state {
            State::Ending(reason) => return Some(*reason),
            State::Unbound {
                channels: 0,
                alone_since,
            } => (now >= *alone_since + self.unbound).then_some(EndReason::Unbound),
            State::Unbound { .. } => None,
            State::Bound(bound) => {
                let (at, reason) = bound.end(now);
                (now >= at).then_some(reason)
            }
        };
        if let Some(reason) = due {
            self.ending(reason);
        }
        due
    }

    /// When to [`settle`](Self::settle) next if nothing but activities changes: never too late, and too
    /// early only where something was open meanwhile. `None`: not before the revision changes.
    pub(crate) fn next_check(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::Unbound {
                channels: 0,
                alone_since,
            } => Some(*alone_since + self.unbound),
            State::Unbound { .. } | State::Ending(_) => None,
            State::Bound(bound) => Some(bound.end(now).0),
        }
    }

    /// The lease as others see it.
    pub(crate) fn view(&mut self, now: Instant) -> LeaseState {
        self.settle(now);
        match &self.state {
            State::Unbound { .. } => LeaseState::Unbound,
            State::Ending(reason) => LeaseState::Ending(Ended { reason: *reason }),
            State::Bound(bound) => {
                let (at, ends_by) = bound.end(now);
                LeaseState::Bound(LeaseView {
                    key: bound.key.clone(),
                    standing: bound.said(),
                    age_ms: whole_ms(now - bound.bound_at),
                    idle_ms: whole_ms(bound.idle_for(now)),
                    ends_in_ms: whole_ms(at - now),
                    ends_by,
                })
            }
        }
    }

    fn bound(&mut self, now: Instant) -> Result<&mut Bound, LeaseError> {
        self.settle(now);
        match &mut self.state {
            State::Bound(bound) => Ok(bound),
            State::Unbound { .. } => Err(LeaseError::Unbound),
            State::Ending(reason) => Err(LeaseError::Ending(*reason)),
        }
    }

    /// The one place where a lease ends.
    fn ending(&mut self, reason: EndReason) {
        self.state = State::Ending(reason);
        self.revision += 1;
    }
}

impl Bound {
    /// What a caller must hear. One that finds something from earlier here is not told that there is nothing, even if
    /// the answer never arrived that said `new`.
    fn said(&self) -> Standing {
        if self.used && self.standing == Standing::New {
            Standing::Existing
        } else {
            self.standing.clone()
        }
    }

    fn idle_for(&self, now: Instant) -> Duration {
        if self.open > 0 {
            Duration::ZERO
        } else {
            now - self.idle_since
        }
    }

    /// When it ends if nothing more happens after `now`, and what ends it then.
    fn end(&self, now: Instant) -> (Instant, EndReason) {
        let lifetime = self.bound_at + self.lifetime;
        // While something is open the clock stands: the earliest idle end is still to come.
        let idle = if self.open > 0 {
            now + self.idle.max(Duration::from_millis(1))
        } else {
            self.idle_since + self.idle
        };
        if idle < lifetime {
            (idle, EndReason::Idle)
        } else {
            (lifetime, EndReason::Lifetime)
        }
    }
}

/// Whole milliseconds, as the protocol counts.
pub(crate) fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom_protocol::{FilesFate, RestartReason};
    use proptest::prelude::*;

    /// What happens to a lease, and at which second.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        ChannelOpened,
        ChannelClosed,
        /// By the session of this letter, with this idle time in seconds.
        Grant(char, u64),
        Opened,
        Closed,
        Told,
        /// Only if idle for so many seconds.
        End(Option<u64>),
        Look,
    }
    use Step::{ChannelClosed, ChannelOpened, Closed, End, Grant, Look, Opened, Told};

    const UNBOUND: Duration = Duration::from_secs(30);
    const LIFETIME: Duration = Duration::from_secs(100);

    fn request(letter: char, idle: u64, restarted: Option<RestartReason>) -> LeaseRequest {
        LeaseRequest {
            key: KeyDigest(letter.to_string()),
            idle_ms: idle * 1000,
            lifetime_ms: LIFETIME.as_millis() as u64,
            restarted,
            files: FilesFate::Gone,
        }
    }

    /// Takes a step and answers what was said, in a word.
    fn take(lease: &mut Lease, step: Step, now: Instant) -> String {
        let said = match step {
            ChannelOpened => {
                lease.channel_opened(now);
                Ok(None)
            }
            ChannelClosed => {
                lease.channel_closed(now);
                Ok(None)
            }
            Grant(letter, idle) => lease.grant(&request(letter, idle, None), now).map(Some),
            Opened => lease.opened(now).map(Some),
            Closed => {
                lease.closed(now);
                Ok(None)
            }
            Told => lease.told(now).map(|()| None),
            End(idle) => lease
                .end(EndReason::Reset, idle.map(Duration::from_secs), now)
                .map(|()| None),
            Look => lease.standing(now).map(Some),
        };
        match said {
            Ok(Some(standing)) => format!("{standing:?}").to_lowercase(),
            Ok(None) => "ok".to_owned(),
            Err(LeaseError::Ending(reason)) => reason.as_str().to_owned(),
            Err(other) => format!("{other:?}").to_lowercase(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn steps_and_answers() {
        let start = Instant::now();
        for (name, steps) in [
            (
                "alone it ends, and a channel keeps it",
                &[
                    (29, ChannelOpened, "ok"),
                    (500, Look, "unbound"),
                    (500, ChannelOpened, "ok"),
                    (501, ChannelClosed, "ok"),
                    (600, ChannelClosed, "ok"),
                    (629, Look, "unbound"),
                    (630, Look, "unbound"),
                    (630, ChannelOpened, "ok"),
                    (631, Look, "unbound"),
                ][..],
            ),
            (
                "nobody ever came",
                &[(30, ChannelOpened, "ok"), (31, Look, "unbound")],
            ),
            (
                "bound to one key",
                &[
                    (1, Grant('a', 10), "new"),
                    (2, Grant('b', 10), "otherkey"),
                    (3, Grant('a', 10), "new"),
                    (4, Told, "ok"),
                    (5, Grant('a', 10), "existing"),
                    (14, Look, "existing"),
                    (15, Look, "idle"),
                    (16, Grant('a', 10), "idle"),
                ],
            ),
            (
                "looks do not restart the clock, grants do",
                &[
                    (0, Grant('a', 10), "new"),
                    (9, Look, "new"),
                    (9, Told, "ok"),
                    (9, Grant('a', 20), "existing"),
                    (28, Look, "existing"),
                    (29, Opened, "idle"),
                ],
            ),
            (
                "the clock stands while anything is open",
                &[
                    (0, Grant('a', 10), "new"),
                    (5, Opened, "new"),
                    (6, Opened, "existing"),
                    (20, Closed, "ok"),
                    (60, Look, "existing"),
                    (60, Closed, "ok"),
                    (69, Look, "existing"),
                    (70, Look, "idle"),
                ],
            ),
            (
                "the lifetime stands for nobody",
                &[
                    (1, Grant('a', 1000), "new"),
                    (50, Opened, "new"),
                    (99, Grant('a', 1000), "existing"),
                    (100, Look, "existing"),
                    (101, Look, "lifetime"),
                    (101, Closed, "ok"),
                ],
            ),
            (
                "a channel that closes does not end a session",
                &[
                    (0, ChannelOpened, "ok"),
                    (0, Grant('a', 90), "new"),
                    (1, ChannelClosed, "ok"),
                    (89, Look, "new"),
                ],
            ),
            (
                "ended on request, if idle for so long",
                &[
                    (0, End(None), "unbound"),
                    (0, Grant('a', 50), "new"),
                    (5, End(Some(6)), "notidle"),
                    (5, Opened, "new"),
                    (20, End(Some(0)), "notidle"),
                    (20, Closed, "ok"),
                    (26, End(Some(6)), "ok"),
                    (27, End(None), "reset"),
                    (99, Look, "reset"),
                ],
            ),
            (
                "reset does not wait for anybody",
                &[
                    (0, Grant('a', 50), "new"),
                    (1, Opened, "new"),
                    (2, End(None), "ok"),
                    (3, Closed, "ok"),
                    (3, Look, "reset"),
                ],
            ),
        ] {
            let mut lease = Lease::new(UNBOUND, start);
            for (at, step, said) in steps {
                let now = start + Duration::from_secs(*at);
                assert_eq!(take(&mut lease, *step, now), *said, "{name}: {step:?} at {at}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_loss_replaces_new_and_nothing_else() {
        let now = Instant::now();
        let (idle, reset) = (Some(RestartReason::Idle), Some(RestartReason::Reset));
        let files = FilesFate::Gone;
        let restarted =
            |reason: Option<RestartReason>| reason.map(|reason| Standing::Restarted { reason, files });
        // Not even work in it keeps a loss from being told that nobody has heard of.
        let mut used = Lease::new(UNBOUND, now);
        used.grant(&request('a', 9, None), now).unwrap();
        used.opened(now).unwrap();
        assert_eq!(used.standing(now), Ok(Standing::Existing));
        assert_eq!(used.grant(&request('a', 9, idle), now).ok(), restarted(idle));
        for (first, told, second, standing) in [
            (None, false, idle, restarted(idle)),
            (None, true, idle, Some(Standing::Existing)),
            (idle, false, reset, restarted(idle)),
            (idle, false, None, restarted(idle)),
            (idle, true, None, Some(Standing::Existing)),
        ] {
            let mut lease = Lease::new(UNBOUND, now);
            lease.grant(&request('a', 9, first), now).unwrap();
            if told {
                lease.told(now).unwrap();
            }
            let found = lease.grant(&request('a', 9, second), now).unwrap();
            assert_eq!(Some(found), standing, "{first:?} {told} {second:?}");
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(ChannelOpened),
            Just(ChannelClosed),
            (prop_oneof![Just('a'), Just('b')], 1..60_u64).prop_map(|(key, idle)| Grant(key, idle)),
            Just(Opened),
            Just(Closed),
            Just(Told),
            proptest::option::of(0..20_u64).prop_map(End),
            Just(Look),
        ]
    }

    proptest! {
        /// Whatever happens: nothing leaves `Ending`, and who sleeps until `next_check`, and looks again
        /// whenever the revision changes, learns of an end at the very moment that time decides it.
        #[test]
        fn a_guardian_that_sleeps_misses_no_end(steps in proptest::collection::vec((0..40_u64, step()), 1..40)) {
            let start = Instant::now();
            let mut lease = Lease::new(UNBOUND, start);
            let mut now = start;
            let mut wakes = lease.next_check(now);
            let mut ended = None;
            for (pause, step) in steps {
                let until = now + Duration::from_secs(pause);
                // Second by second: the guardian asks when it is due, everybody else could ask at any time.
                while now < until {
                    now += Duration::from_secs(1);
                    let truth = match lease.view(now) {
                        LeaseState::Ending(Ended { reason }) => Some(reason),
                        LeaseState::Unbound | LeaseState::Bound(_) => None,
                    };
                    if truth.is_some() && ended.is_none() {
                        prop_assert!(wakes.is_some_and(|at| at <= now), "slept through {truth:?}");
                    }
                    if let Some(reason) = ended {
                        prop_assert_eq!(truth, Some(reason), "an end was taken back");
                    }
                    ended = truth;
                    if wakes.is_some_and(|at| at <= now) {
                        wakes = lease.next_check(now);
                    }
                }
                let revision = lease.revision();
                take(&mut lease, step, now);
                ended = lease.settle(now).or(ended);
                if lease.revision() != revision {
                    wakes = lease.next_check(now);
                }
            }
        }
    }
}
