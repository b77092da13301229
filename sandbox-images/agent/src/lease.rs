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
            Some(reason) => Standing::Restarted { reason },
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
                return Ok(bound.standing.clone());
            }
            State::Unbound { .. } => {}
        }
        self.state = State::Bound(Bound {
            key: request.key.clone(),
            standing: news.clone(),
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
        Ok(self.bound(now)?.standing.clone())
    }

    /// A run, tunnel or transfer begins; [`closed`](Self::closed) must follow.
    pub(crate) fn opened(&mut self, now: Instant) -> Result<Standing, LeaseError> {
        let bound = self.bound(now)?;
        bound.open += 1;
        Ok(bound.standing.clone())
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
                    standing: bound.standing.clone(),
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
