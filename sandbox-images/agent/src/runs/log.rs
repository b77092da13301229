//! The events of one run: written once, read by any number of followers, each at its own pace.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use greenroom_protocol::{RunEvent, RunEventKind};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{agent::lock, lease::whole_ms};

/// Lines are gathered into one piece up to here: a short run is one or two HTTP/2 frames, and a long one
/// is not copied into ever larger ones.
const GATHER: usize = 64 << 10;

/// A log that ends with the event that closes it.
#[derive(Debug)]
pub(crate) struct Log {
    began: Instant,
    inner: Mutex<Inner>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Event `n` as the line that goes out, newline included.
    lines: Vec<Bytes>,
    bytes: usize,
    closed: bool,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            inner: Mutex::default(),
            more: Notify::new(),
        }
    }

    /// How long ago it was begun, in milliseconds.
    pub(crate) fn age_ms(&self) -> u64 {
        whole_ms(self.began.elapsed())
    }

    /// The number of the next event.
    pub(crate) fn next(&self) -> u64 {
        lock(&self.inner).lines.len() as u64
    }

    /// Bytes of all events.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.inner).bytes
    }

    /// Appends events and wakes the followers once. After `finished` nothing is appended any more.
    pub(crate) fn push(&self, kinds: impl IntoIterator<Item = RunEventKind>) {
        let at_ms = self.age_ms();
        {
            let mut inner = lock(&self.inner);
            for kind in kinds {
                inner.push(at_ms, kind);
            }
        }
        self.more.notify_waiters();
    }
}

impl Inner {
    fn push(&mut self, at_ms: u64, kind: RunEventKind) {
        if self.closed {
            return;
        }
        self.closed = matches!(kind, RunEventKind::Finished(_));
        let event = RunEvent {
            seq: self.lines.len() as u64,
            at_ms,
            kind,
        };
        // Strings and numbers always serialise; a line that did not would leave a gap that followers see.
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        self.bytes += line.len();
        self.lines.push(line.into());
    }

    /// What is there from line `next` on, gathered, and the number after it.
    fn gather(&self, next: usize) -> Option<(Piece, usize)> {
        let lines = self.lines.get(next..).filter(|lines| !lines.is_empty())?;
        let mut size = 0;
        let count = lines
            .iter()
            .take_while(|line| {
                size += line.len();
                size <= GATHER
            })
            .count()
            .max(1);
        let bytes = if count == 1 {
            lines[0].clone()
        } else {
            let mut bytes = BytesMut::with_capacity(size.min(GATHER));
            lines[..count]
                .iter()
                .for_each(|line| bytes.extend_from_slice(line));
            bytes.freeze()
        };
        let last = self.closed && count == lines.len();
        Some((Piece { bytes, last }, next + count))
    }
}

/// Whole lines, one or more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The lines.
    pub(crate) bytes: Bytes,
    /// Whether the log ends with them.
    pub(crate) last: bool,
}

/// Somebody who reads a log. Dropping it changes nothing for the run.
#[derive(Debug)]
pub(crate) struct Follower {
    log: Arc<Log>,
    next: usize,
    until: Option<Instant>,
}

impl Follower {
    /// Reads from event `from`; waits for more until the log is closed or `until`.
    pub(crate) fn new(log: Arc<Log>, from: u64, until: Option<Instant>) -> Self {
        Self {
            log,
            next: usize::try_from(from).unwrap_or(usize::MAX),
            until,
        }
    }

    /// The next lines, as many as there are and fit; `None` at the end or when time is over.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            // Enabled before the look, so that an event pushed in between is not missed.
            let mut more = std::pin::pin!(self.log.more.notified());
            more.as_mut().enable();
            {
                let inner = lock(&self.log.inner);
                if let Some((piece, next)) = inner.gather(self.next) {
                    self.next = next;
                    return Some(piece);
                }
                if inner.closed {
                    return None;
                }
            }
            match self.until {
                Some(until) => timeout_at(until, more).await.ok()?,
                None => more.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use greenroom_protocol::{
        KernelFate, Language, RunId, RunOutcome, RunStatus, Standing, Stream, StreamSummary,
    };
    use std::time::Duration;

    fn queued(running_ms: u64) -> RunEventKind {
        RunEventKind::Queued {
            behind: RunId("a".into()),
            running_ms,
        }
    }

    fn output(text: String) -> RunEventKind {
        RunEventKind::Output {
            stream: Stream::Stdout,
            text,
            late: false,
            omitted: 0,
        }
    }

    fn finished() -> RunEventKind {
        RunEventKind::Finished(RunOutcome {
            status: RunStatus::Ok,
            language: Language::Python,
            duration_ms: 0.0,
            stdout: StreamSummary::default(),
            stderr: StreamSummary::default(),
            error: None,
            result: None,
            exit_code: None,
            kernel: KernelFate::Kept,
            files: Vec::new(),
            images_omitted: 0,
            standing: Standing::Existing,
        })
    }

    fn seqs(piece: &Piece) -> Vec<u64> {
        piece
            .bytes
            .split_inclusive(|b| *b == b'\n')
            .map(|line| serde_json::from_slice::<RunEvent>(line).unwrap().seq)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn followers_read_at_their_own_pace() {
        let log = Arc::new(Log::new());
        log.push([queued(0), queued(1)]);
        let mut early = Follower::new(Arc::clone(&log), 0, None);
        let mut late = Follower::new(Arc::clone(&log), 3, None);
        let piece = early.next().await.unwrap();
        assert_eq!((seqs(&piece), piece.last), (vec![0, 1], false));
        let waits = tokio::spawn(async move { (late.next().await, late.next().await) });
        tokio::task::yield_now().await;
        log.push([queued(2), queued(3)]);
        log.push([finished(), queued(4)]);
        assert_eq!(seqs(&early.next().await.unwrap()), [2, 3, 4]);
        assert_eq!(early.next().await, None);
        let (piece, end) = waits.await.unwrap();
        let piece = piece.unwrap();
        assert_eq!((seqs(&piece), piece.last), (vec![3, 4], true));
        assert_eq!(end, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_waits_no_longer_than_it_was_told() {
        let log = Arc::new(Log::new());
        log.push([queued(0)]);
        let begin = Instant::now();
        let mut replay = Follower::new(Arc::clone(&log), 0, Some(begin));
        assert!(replay.next().await.is_some());
        assert_eq!(replay.next().await, None);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let mut poll = Follower::new(log, 1, Some(begin + Duration::from_secs(7)));
        assert_eq!(poll.next().await, None);
        assert_eq!(begin.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_are_gathered_up_to_a_bound() {
        let log = Arc::new(Log::new());
        log.push([
            queued(0),
            output("x".repeat(GATHER)),
            queued(1),
            output("y".repeat(GATHER - 300)),
            queued(2),
        ]);
        let mut follower = Follower::new(log, 0, Some(Instant::now()));
        let mut pieces = Vec::new();
        while let Some(piece) = follower.next().await {
            pieces.push(seqs(&piece));
        }
        assert_eq!(pieces, [vec![0], vec![1], vec![2, 3, 4]]);
    }
}
