//! The events of one run: written once, read by any number of followers, each at its own pace.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use greenroom_protocol::{RunError, RunEvent, RunEventKind, RunOutcome, limits::EVENT_BYTES};
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use crate::{agent::lock, lease::whole_ms};

/// Lines are gathered into one piece up to here: a short run is one or two HTTP/2 frames, and a long one
/// is not copied into ever larger ones.
const GATHER: usize = 64 << 10;

/// How long the first lines of a run wait for company. A run that is over by then is one frame all in all,
/// which saves each program on the way to the server a turn; nothing that anybody waits for is held back.
pub(super) const COMPANY: Duration = Duration::from_millis(5);

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
    /// Whether there is anything but that the run was accepted and started.
    telling: bool,
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
        self.telling |= !matches!(kind, RunEventKind::Accepted { .. } | RunEventKind::Started { .. });
        let mut event = RunEvent {
            seq: self.lines.len() as u64,
            at_ms,
            kind,
        };
        let mut line = line(&event);
        if line.len() > EVENT_BYTES {
            event.kind = shortened(event.kind, line.len());
            line = self::line(&event);
        }
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

fn line(event: &RunEvent) -> Vec<u8> {
    // Strings and numbers always serialise; a line that did not would leave a gap that followers see.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}

/// An event that fits into a line in place of one of `size` bytes that does not. Kernels keep bounds of their
/// own; what gets here is text that JSON makes six times as long, such as control characters.
fn shortened(kind: RunEventKind, size: usize) -> RunEventKind {
    let left_out = format!("left out: {size} bytes, an event has at most {EVENT_BYTES}");
    match kind {
        RunEventKind::Output {
            stream,
            text,
            late,
            omitted,
        } => RunEventKind::Output {
            stream,
            text: String::new(),
            late,
            omitted: omitted + text.len() as u64,
        },
        RunEventKind::Display { path, .. } => RunEventKind::Display {
            data: [("text/plain".to_owned(), left_out)].into(),
            path,
        },
        RunEventKind::Finished(outcome) => RunEventKind::Finished(RunOutcome {
            result: outcome.result.map(|_| left_out.clone()),
            error: outcome.error.map(|error| RunError {
                message: left_out,
                traceback: String::new(),
                ..error
            }),
            ..outcome
        }),
        small @ (RunEventKind::Accepted { .. }
        | RunEventKind::Queued { .. }
        | RunEventKind::Started { .. }) => small,
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

    /// As [`next`](Self::next), but lines that tell nothing yet wait a little for others.
    pub(crate) async fn first(&mut self) -> Option<Piece> {
        let telling = async {
            loop {
                let mut more = std::pin::pin!(self.log.more.notified());
                more.as_mut().enable();
                if lock(&self.log.inner).telling {
                    return;
                }
                more.await;
            }
        };
        // Out of time: then they go alone.
        drop(timeout(COMPANY, telling).await);
        self.next().await
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
    use greenroom_protocol::{KernelFate, Language, RunId, RunStatus, Standing, Stream, StreamSummary};

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
            background_ended: 0,
            lost: None,
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
    async fn first_lines_wait_a_little_for_company() {
        let accepted = RunEventKind::Accepted {
            standing: Standing::Existing,
        };
        for (after, held, lines) in [
            (Duration::from_millis(2), Duration::from_millis(2), 2),
            (Duration::from_secs(9), COMPANY, 1),
        ] {
            let log = Arc::new(Log::new());
            log.push([accepted.clone()]);
            let mut follower = Follower::new(Arc::clone(&log), 0, None);
            let begin = Instant::now();
            let later = tokio::spawn(async move {
                tokio::time::sleep(after).await;
                log.push([finished()]);
            });
            let piece = follower.first().await.unwrap();
            assert_eq!((begin.elapsed(), seqs(&piece).len()), (held, lines));
            later.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_line_is_longer_than_a_guest_reads() {
        let control = "\u{1}".repeat(EVENT_BYTES / 5);
        let RunEventKind::Finished(mut outcome) = finished() else {
            unreachable!()
        };
        outcome.result = Some(control.clone());
        outcome.error = Some(RunError {
            name: "E".into(),
            message: "m".into(),
            traceback: control.clone(),
        });
        let log = Arc::new(Log::new());
        log.push([
            output(control.clone()),
            RunEventKind::Display {
                data: [("text/plain".to_owned(), control.clone())].into(),
                path: None,
            },
            RunEventKind::Finished(outcome),
        ]);
        let mut follower = Follower::new(log, 0, None);
        let mut lines = Vec::new();
        while let Some(piece) = follower.next().await {
            lines.extend(piece.bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec));
        }
        assert_eq!(lines.len(), 3);
        let told = |line: &[u8], what: &str| {
            assert!(line.len() <= EVENT_BYTES);
            let text = std::str::from_utf8(line).unwrap();
            assert!(text.contains(what), "{text}");
        };
        told(&lines[0], &format!("\"omitted\":{}", control.len()));
        told(&lines[1], "left out: ");
        told(&lines[2], "\"result\":\"left out: ");
        told(&lines[2], "\"name\":\"E\"");
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
