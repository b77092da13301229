//! Waiting for a run, or for a sandbox: patiently but not for ever, never in silence, and not for a caller who left.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::{caller::Caller, render::span, transcript::Transcript};
use crate::{
    config::LONGEST_CALL,
    guest::{GuestError, RunFollow},
};

/// Between progress messages: a client that resets its time-out on progress has one of at least ten seconds.
const TICK: Duration = Duration::from_secs(5);

/// Why waiting for a run is over.
#[derive(Debug)]
pub(super) enum Waited {
    /// The run is over, or the time to follow it.
    Through,
    /// Patience is.
    Patience,
    /// The caller has given up.
    Cancelled,
    /// The run cannot be followed.
    Failed(GuestError),
}

/// Why waiting for something else is over.
#[derive(Debug)]
pub(super) enum Await<T> {
    /// It is there.
    Ready(T),
    /// Patience is over.
    Patience,
    /// The caller has given up.
    Cancelled,
}

/// A call's clock.
#[derive(Clone, Copy)]
pub(super) struct Watch<'a> {
    caller: Caller<'a>,
    started: Instant,
    until: Instant,
}

impl<'a> Watch<'a> {
    /// Begins to wait for at most `patience`.
    pub(super) fn new(caller: Caller<'a>, patience: Duration) -> Self {
        let started = Instant::now();
        Self {
            caller,
            started,
            until: started + patience,
        }
    }

    /// The same clock, on which something may take until `wait` from now.
    pub(super) fn allowing(self, wait: Duration) -> Self {
        let latest = (Instant::now() + wait).min(self.started + LONGEST_CALL);
        Self {
            until: latest.max(self.until),
            ..self
        }
    }

    /// How long the call has been waiting.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for something that has no events of its own.
    pub(super) async fn wait<T>(&self, what: &str, ready: impl Future<Output = T>) -> Await<T> {
        let mut ready = std::pin::pin!(ready);
        let mut ticks = self.ticks();
        loop {
            tokio::select! {
                biased;
                value = &mut ready => return Await::Ready(value),
                () = self.caller.cancelled.cancelled() => return Await::Cancelled,
                () = sleep_until(self.until) => return Await::Patience,
                _ = ticks.tick() => self.tell(what.to_owned()).await,
            }
        }
    }

    /// Takes a run's events until `done` says that they suffice, the run is over, or nobody waits any more.
    pub(super) async fn follow(
        &self,
        run: &mut RunFollow,
        transcript: &mut Transcript,
        done: impl Fn(&Transcript) -> bool,
    ) -> Waited {
        let mut ticks = self.ticks();
        loop {
            tokio::select! {
                biased;
                event = run.next() => match event {
                    Ok(Some(event)) => transcript.push(event),
                    Ok(None) => return Waited::Through,
                    Err(error) => return Waited::Failed(error),
                },
                () = self.caller.cancelled.cancelled() => return Waited::Cancelled,
                () = sleep_until(self.until) => return Waited::Patience,
                _ = ticks.tick() => self.tell(transcript.last_line().unwrap_or_else(|| "running".to_owned())).await,
            }
            if done(transcript) {
                return Waited::Through;
            }
        }
    }

    /// Says how long it has been, and the last line.
    async fn tell(&self, line: String) {
        self.caller
            .progress
            .tell(format!("{} · {line}", span(self.started.elapsed())))
            .await;
    }

    fn ticks(&self) -> tokio::time::Interval {
        let elapsed = self.started.elapsed();
        let ticks = u32::try_from(elapsed.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
        let mut interval = interval_at(self.started + TICK * (ticks + 1), TICK);
        // After a stall one message is enough.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        interval
    }
}
