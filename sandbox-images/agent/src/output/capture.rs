//! One output stream of a kernel: the pipe behind its descriptor, and what of it goes to whom.

use std::{io, os::fd::OwnedFd};

use greenroom_protocol::{
    Stream, StreamSummary,
    limits::{OUTPUT_HEAD, OUTPUT_TAIL},
};
use rustix::{
    io::{Errno, ioctl_fionread},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use tokio::net::unix::pipe;

use super::{
    HeadTail, Spill,
    overwrite::Overwrite,
    text::{After, continuation, plain},
};
use crate::kernel::KernelEvent;

/// Read at once; and what a pipe holds, so that a writer seldom waits for us.
const BUFFER: usize = 256 << 10;
/// Bytes at each end of what arrives between two runs.
const LATE: usize = 8 << 10;

/// The reading end of a stream, from the start of its kernel to the kernel's end.
///
/// Reading goes on between runs: a process left in the background must not block on a full pipe.
#[derive(Debug)]
pub(crate) struct Capture {
    stream: Stream,
    pipe: pipe::Receiver,
    buffer: Box<[u8]>,
    state: State,
    ended: bool,
}

#[derive(Debug)]
enum State {
    Between(HeadTail),
    Run(Box<Record>),
}

/// What is kept of one run.
#[derive(Debug)]
struct Record {
    overwrite: Overwrite,
    kept: HeadTail,
    /// Bytes of the head that have become events.
    sent: usize,
    spill: Spill,
}

impl Capture {
    /// A pipe for a kernel that is about to start, and its writing end. Within a tokio runtime.
    pub(crate) fn new(stream: Stream) -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // Less is slower and just as right.
        let _ = fcntl_setpipe_size(&writer, BUFFER);
        let capture = Self {
            stream,
            pipe: pipe::Receiver::from_owned_fd(reader)?,
            buffer: vec![0; BUFFER].into(),
            state: State::between(),
            ended: false,
        };
        Ok((capture, writer))
    }

    /// Waits until [`take`](Self::take) has something to do. Cancel safe.
    pub(crate) async fn readable(&self) {
        if self.ended || self.pipe.readable().await.is_err() {
            std::future::pending().await
        }
    }

    /// Takes what one read gives.
    pub(crate) async fn take(&mut self) {
        match self.pipe.try_read(&mut self.buffer) {
            Ok(0) => self.ended = true,
            Ok(length) => self.keep(length).await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
    }

    /// Takes what is in the pipe now, and not what comes into it meanwhile: whatever was written before this
    /// call is in, and a writer without end does not hold us.
    pub(crate) async fn drain(&mut self) {
        let mut left = ioctl_fionread(&self.pipe).unwrap_or(0);
        while left > 0 && !self.ended {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            // Past the runtime's idea of readiness, which may be older than the bytes.
            match rustix::io::read(&self.pipe, &mut self.buffer[..most]) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    left -= length as u64;
                    self.keep(length).await;
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    async fn keep(&mut self, length: usize) {
        let bytes = &self.buffer[..length];
        match &mut self.state {
            State::Between(late) => late.push(bytes),
            State::Run(record) => record.push(bytes).await,
        }
    }

    /// Begins a run's record, and gives what arrived before it.
    pub(crate) async fn begin(&mut self, spill: Spill) -> Vec<KernelEvent> {
        self.drain().await;
        let record = State::Run(Box::new(Record {
            overwrite: Overwrite::new(),
            kept: HeadTail::new(OUTPUT_HEAD, OUTPUT_TAIL),
            sent: 0,
            spill,
        }));
        match std::mem::replace(&mut self.state, record) {
            State::Between(mut late) => events(self.stream, &mut late, 0, Arrival::Late),
            State::Run(_) => Vec::new(),
        }
    }

    /// Whether [`fresh`](Self::fresh) would give something.
    pub(crate) fn has_fresh(&self) -> bool {
        matches!(&self.state, State::Run(record) if record.sent < record.kept.head().len())
    }

    /// What has come into the head since the last call.
    pub(crate) fn fresh(&mut self) -> Option<KernelEvent> {
        let State::Run(record) = &mut self.state else {
            return None;
        };
        let (text, taken) = plain(&record.kept.head()[record.sent..], After::More);
        record.sent += taken;
        output(self.stream, text, Arrival::InTime, 0)
    }

    /// Ends the run's record with what is in the pipe now, and gives what no event has carried yet.
    pub(crate) async fn finish(&mut self) -> (Vec<KernelEvent>, StreamSummary) {
        self.drain().await;
        let State::Run(mut record) = std::mem::replace(&mut self.state, State::between()) else {
            return (Vec::new(), StreamSummary::default());
        };
        let held = record.overwrite.release();
        record.keep(&held).await;
        let events = events(self.stream, &mut record.kept, record.sent, Arrival::InTime);
        let spilled = record.spill.finish().await;
        let summary = StreamSummary {
            bytes: record.kept.total() + record.overwrite.overwritten(),
            omitted: record.kept.omitted(),
            path: spilled.path,
            spilled: spilled.first,
        };
        (events, summary)
    }

    /// The last of what arrived outside of runs, as text for a person.
    pub(crate) async fn last_words(&mut self) -> String {
        self.drain().await;
        match &mut self.state {
            State::Between(late) => {
                let mut bytes = late.head().to_vec();
                bytes.extend_from_slice(late.tail());
                plain(&bytes, After::End).0
            }
            State::Run(_) => String::new(),
        }
    }
}

impl State {
    fn between() -> Self {
        Self::Between(HeadTail::new(LATE, LATE))
    }
}

impl Record {
    async fn push(&mut self, bytes: &[u8]) {
        let passed = self.overwrite.pass(bytes);
        self.keep(&passed).await;
    }

    async fn keep(&mut self, bytes: &[u8]) {
        if self.kept.omitted() == 0 && bytes.len() > self.kept.room() {
            // The first byte that will be gone: from here on the file has it all.
            self.spill.write(self.kept.head()).await;
            self.spill.write(self.kept.tail()).await;
            self.spill.write(bytes).await;
        } else if self.kept.omitted() > 0 {
            self.spill.write(bytes).await;
        }
        self.kept.push(bytes);
    }
}

/// When bytes arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    InTime,
    Late,
}

/// What of `kept` was not sent yet.
fn events(stream: Stream, kept: &mut HeadTail, sent: usize, arrival: Arrival) -> Vec<KernelEvent> {
    let omitted = kept.omitted();
    let mut rest = kept.head()[sent..].to_vec();
    if omitted == 0 {
        rest.extend_from_slice(kept.tail());
        return output(stream, plain(&rest, After::End).0, arrival, 0)
            .into_iter()
            .collect();
    }
    let head = output(stream, plain(&rest, After::End).0, arrival, 0);
    let tail = kept.tail();
    let cut = continuation(tail);
    let tail = output(
        stream,
        plain(&tail[cut..], After::End).0,
        arrival,
        omitted + cut as u64,
    );
    head.into_iter().chain(tail).collect()
}

fn output(stream: Stream, text: String, arrival: Arrival, omitted: u64) -> Option<KernelEvent> {
    (!text.is_empty() || omitted > 0).then_some(KernelEvent::Output {
        stream,
        text,
        late: arrival == Arrival::Late,
        omitted,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write, path::PathBuf, sync::Arc};

    use greenroom_protocol::AgentConfig;

    use super::*;
    use crate::child::Quarters;

    fn unspilled() -> Spill {
        let quarters = Quarters::new(&AgentConfig::default(), PathBuf::from("/nonexistent"));
        Spill::new(Arc::new(quarters), String::new(), 0)
    }

    fn texts(events: &[KernelEvent]) -> Vec<(String, bool, u64)> {
        events
            .iter()
            .map(|event| match event {
                KernelEvent::Output {
                    text, late, omitted, ..
                } => (text.clone(), *late, *omitted),
                KernelEvent::Display { .. } => panic!("a stream displays nothing"),
            })
            .collect()
    }

    #[tokio::test]
    async fn a_character_in_two_writes_is_one() {
        let (mut capture, writer) = Capture::new(Stream::Stdout).unwrap();
        let mut writer = File::from(writer);
        assert!(capture.begin(unspilled()).await.is_empty());
        writer.write_all(b"caf\xc3").unwrap();
        capture.drain().await;
        assert_eq!(
            texts(&capture.fresh().into_iter().collect::<Vec<_>>()),
            [("caf".to_owned(), false, 0)]
        );
        writer.write_all(b"\xa9!").unwrap();
        let (events, summary) = capture.finish().await;
        assert_eq!(texts(&events), [("é!".to_owned(), false, 0)]);
        assert_eq!((summary.bytes, summary.omitted), (6, 0));
    }

    #[tokio::test]
    async fn what_arrives_between_runs_is_late() {
        let (mut capture, writer) = Capture::new(Stream::Stderr).unwrap();
        let mut writer = File::from(writer);
        capture.begin(unspilled()).await;
        assert!(capture.finish().await.0.is_empty());
        writer.write_all(b"left behind").unwrap();
        let late = capture.begin(unspilled()).await;
        assert_eq!(texts(&late), [("left behind".to_owned(), true, 0)]);
        writer.write_all(b"now").unwrap();
        assert_eq!(texts(&capture.finish().await.0), [("now".to_owned(), false, 0)]);
    }

    #[tokio::test]
    async fn the_middle_is_counted() {
        let (mut capture, writer) = Capture::new(Stream::Stdout).unwrap();
        let mut writer = File::from(writer);
        capture.begin(unspilled()).await;
        // Two bytes each, so that the tail begins within a character.
        let chunk = "é".repeat(5_000).into_bytes();
        for _ in 0..20 {
            writer.write_all(&chunk).unwrap();
            capture.drain().await;
        }
        writer.write_all(b".").unwrap();
        let (events, summary) = capture.finish().await;
        let texts = texts(&events);
        assert_eq!(summary.bytes, 200_001);
        assert_eq!(summary.omitted, 200_001 - (OUTPUT_HEAD + OUTPUT_TAIL) as u64);
        assert_eq!(texts[0].0.len(), OUTPUT_HEAD);
        assert_eq!(
            (texts[1].0.len(), texts[1].2),
            (OUTPUT_TAIL - 1, summary.omitted + 1)
        );
        assert!(texts[1].0.ends_with("é."));
    }
}
