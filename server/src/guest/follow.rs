//! A run's events, in order and without gaps, whatever happens to the channel meanwhile.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use greenroom_protocol::{RunEvent, RunEventKind, RunId, limits};
use http::Method;
use hyper::body::Incoming;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Guest,
    bounds::Bounded as _,
    call::{Ask, Slashes, encode, next_data, parse, target},
    error::{GuestError, Lost},
};

/// Attempts to get a broken event stream back, without an event in between. With the pauses between them
/// they outlast a restart of the engine, which takes seconds.
const ATTEMPTS: u32 = 10;
/// The pause after the second failure; it doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The events of one run. Dropping it stops following and leaves the run alone.
#[derive(Debug)]
pub struct RunFollow {
    guest: Guest,
    id: RunId,
    /// How to start the run, until its first event has shown that it was.
    start: Option<Ask>,
    /// The next event's number.
    next: u64,
    /// When to stop, where only some time was asked for.
    until: Option<Instant>,
    stream: Stream,
    attempts: u32,
    /// Bytes of events that may still come: an agent keeps no more of one run.
    budget: usize,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Stream {
    /// To be opened, again or for the first time, not before a pause is over.
    Closed(Instant),
    Open(Lines),
    /// The last event was seen, or the time is over.
    Over,
}

impl RunFollow {
    pub(super) fn start(guest: Guest, id: RunId, start: Ask, permit: OwnedSemaphorePermit) -> Self {
        Self {
            guest,
            id,
            start: Some(start),
            next: 0,
            until: None,
            stream: Stream::Closed(Instant::now()),
            attempts: 0,
            budget: limits::KEPT_BYTES,
            _permit: permit,
        }
    }

    pub(super) fn replay(
        guest: Guest,
        id: RunId,
        from: u64,
        wait: Duration,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            start: None,
            next: from,
            until: Some(Instant::now() + wait),
            ..Self::start(guest, id, Ask::new("a run", Method::GET, ""), permit)
        }
    }

    /// The run.
    #[must_use]
    pub const fn id(&self) -> &RunId {
        &self.id
    }

    /// The next event, or `None` after the last one or when the time to follow is over. A channel that
    /// breaks is opened again and the stream goes on where it was, a bounded number of times.
    ///
    /// A started run is followed for as long as it runs: how long to wait is the caller's patience.
    /// Cancel safe: no event is lost.
    ///
    /// # Errors
    /// [`GuestError`]; of a run that was accepted, [`GuestError::Lost`] leaves open how it went on.
    pub async fn next(&mut self) -> Result<Option<RunEvent>, GuestError> {
        loop {
            let lines = match &mut self.stream {
                Stream::Over => return Ok(None),
                Stream::Closed(not_before) => {
                    sleep_until(*not_before).await;
                    match self.open().await {
                        Ok(lines) => self.stream = Stream::Open(lines),
                        Err(error) => self.broken(error)?,
                    }
                    continue;
                }
                Stream::Open(lines) => lines,
            };
            let line = match self.until {
                // Some grace, so that it is the agent who ends the stream.
                Some(until) => match timeout_at(until + super::CALL, lines.next()).await {
                    Ok(line) => line,
                    Err(_) => Ok(None),
                },
                None => lines.next().await,
            };
            match line {
                Ok(Some(line)) => {
                    if let Some(event) = self.take(&line)? {
                        return Ok(Some(event));
                    }
                }
                Ok(None) if self.is_late() => self.stream = Stream::Over,
                Ok(None) => {
                    self.broken(GuestError::Lost(Lost::broke("a run's events end before the run")))?
                }
                Err(error) => self.broken(error)?,
            }
        }
    }

    /// Checks a line, and drops it where it was seen before.
    fn take(&mut self, line: &[u8]) -> Result<Option<RunEvent>, GuestError> {
        self.budget = self.budget.checked_sub(line.len()).ok_or_else(|| {
            GuestError::protocol(format!(
                "a run with more than {} bytes of events",
                limits::KEPT_BYTES
            ))
        })?;
        let mut event: RunEvent = parse(line)?;
        if event.seq < self.next {
            return Ok(None);
        }
        if event.seq > self.next {
            return Err(GuestError::protocol(format!(
                "event {} where {} was due",
                event.seq, self.next
            )));
        }
        event.kind = event.kind.bounded()?;
        self.next += 1;
        self.attempts = 0;
        self.start = None;
        if let RunEventKind::Finished(outcome) = &event.kind {
            self.stream = Stream::Over;
            let changes = u64::from(!outcome.files.is_empty());
            self.guest.stir(|stirrings| {
                stirrings.changes += changes;
                stirrings.runs += 1 - changes;
            });
        }
        Ok(Some(event))
    }

    /// Opens the stream: the request that starts the run, or once it has begun, the one that replays it.
    async fn open(&self) -> Result<Lines, GuestError> {
        let link = self.guest.runs_link();
        let body = match &self.start {
            Some(start) => start.stream(link).await?,
            None => self.replay_ask().stream(link).await?,
        };
        Ok(Lines::new(body))
    }

    fn replay_ask(&self) -> Ask {
        let id = encode(&self.id.0, Slashes::Encoded);
        let mut path = format!("/runs/{id}?from={}", self.next);
        if let Some(until) = self.until {
            let wait = until.saturating_duration_since(Instant::now());
            // Whole seconds, rounded up: a wait of 0 asks for what is there.
            path += &format!("&wait={}", wait.as_millis().div_ceil(1000));
        }
        Ask::new("a run", Method::GET, target(&path))
    }

    /// Whether the time to follow was over when the stream ended.
    fn is_late(&self) -> bool {
        // The agent counts whole seconds from a little later, and may round.
        self.until
            .is_some_and(|until| Instant::now() + Duration::from_secs(1) >= until)
    }

    /// Closes the stream, for another attempt where one may help.
    fn broken(&mut self, error: GuestError) -> Result<(), GuestError> {
        self.attempts += 1;
        if self.attempts >= ATTEMPTS || error.is_final() {
            self.stream = Stream::Over;
            return self.guest.note(Err(error));
        }
        tracing::debug!(sandbox = %self.guest.id(), run = %self.id.0, %error, "events broke off");
        self.stream = Stream::Closed(Instant::now() + pause_after(self.attempts));
        Ok(())
    }
}

/// The first failure is followed by an attempt at once: a channel that closed may be opened again.
fn pause_after(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => (PAUSE * (1 << (more - 2).min(10))).min(LONGEST_PAUSE),
    }
}

/// A body cut into lines of at most [`limits::EVENT_BYTES`].
#[derive(Debug)]
struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// Bytes of the buffer in which no line ends.
    searched: usize,
}

impl Lines {
    fn new(body: Incoming) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// Cancel safe: what was read stays in the buffer.
    async fn next(&mut self) -> Result<Option<Bytes>, GuestError> {
        loop {
            if let Some(line) = self.cut()? {
                return Ok(Some(line));
            }
            match next_data(&mut self.body).await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None if self.buffer.is_empty() => return Ok(None),
                // Half a line: the stream broke off inside an event, which will be replayed.
                None => {
                    self.buffer.clear();
                    return Ok(None);
                }
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Bytes>, GuestError> {
        let end = self.buffer[self.searched..].iter().position(|b| *b == b'\n');
        let Some(end) = end.map(|at| self.searched + at) else {
            self.searched = self.buffer.len();
            return if self.searched > limits::EVENT_BYTES {
                Err(GuestError::protocol(format!(
                    "an event of more than {} bytes",
                    limits::EVENT_BYTES
                )))
            } else {
                Ok(None)
            };
        };
        self.searched = 0;
        let mut line = self.buffer.split_to(end + 1).freeze();
        line.truncate(end);
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_outlast_an_engine_that_restarts() {
        assert_eq!(pause_after(1), Duration::ZERO);
        let all: Duration = (0..ATTEMPTS).map(pause_after).sum();
        assert!(
            all > Duration::from_secs(10) && all < Duration::from_secs(30),
            "{all:?}"
        );
        assert_eq!(pause_after(1_000), LONGEST_PAUSE);
    }
}
