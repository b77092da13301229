//! Lines that are written over and over, as progress bars are: of each only what a terminal would show is kept, so
//! that an hour of a bar takes no more of a stream's memory than its last state.

use std::{borrow::Cow, time::Duration};

use tokio::time::Instant;

/// A line of a bar is not longer; what is, is text.
const HELD: usize = 4096;
/// So often a bar that goes on is let through, for those who watch it.
const SEEN: Duration = Duration::from_secs(5);

/// Holds back the end of a stream while the next bytes may overwrite it.
#[derive(Debug)]
pub(super) struct Overwrite {
    /// Begins with the carriage return that it follows, if there is anything.
    held: Vec<u8>,
    /// Whether another has come behind it: the next character overwrites all that is held.
    ended: bool,
    /// Bytes that are gone since others were written over them.
    overwritten: u64,
    seen: Instant,
}

impl Overwrite {
    pub(super) fn new() -> Self {
        Self {
            held: Vec::new(),
            ended: false,
            overwritten: 0,
            seen: Instant::now(),
        }
    }

    /// Bytes that are gone so far.
    pub(super) const fn overwritten(&self) -> u64 {
        self.overwritten
    }

    /// What of the next bytes, and of those held back, can be passed on.
    pub(super) fn pass<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.held.is_empty() && !bytes.contains(&b'\r') {
            return Cow::Borrowed(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = if self.held.is_empty() {
                self.begin(rest, &mut out)
            } else {
                self.go_on(rest, &mut out)
            };
        }
        if !self.held.is_empty() && self.seen.elapsed() >= SEEN {
            out.append(&mut self.release());
        }
        Cow::Owned(out)
    }

    /// What is held back, at the end of the stream.
    pub(super) fn release(&mut self) -> Vec<u8> {
        self.seen = Instant::now();
        if std::mem::take(&mut self.ended) {
            self.held.push(b'\r');
        }
        std::mem::take(&mut self.held)
    }

    /// Up to the first carriage return nothing can be overwritten.
    fn begin<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let at = bytes
            .iter()
            .position(|&byte| byte == b'\r')
            .unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at(at);
        out.extend_from_slice(text);
        match rest.split_first() {
            Some((_, rest)) => {
                self.held.push(b'\r');
                rest
            }
            None => rest,
        }
    }

    /// Behind one, what stands before the next is kept until something is written over it.
    fn go_on<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        match bytes[0] {
            b'\n' => {
                out.append(&mut self.release());
                out.push(b'\n');
                return &bytes[1..];
            }
            b'\r' => {
                // The second of two in a row says nothing.
                self.overwritten += u64::from(self.ended || self.held.len() == 1);
                self.ended = self.held.len() > 1;
                return &bytes[1..];
            }
            _ => {}
        }
        if std::mem::take(&mut self.ended) {
            self.overwritten += self.held.len() as u64;
            self.held.truncate(1);
        }
        let ends = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let at = bytes.iter().position(ends).unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at(at);
        if self.held.len() + text.len() > HELD {
            // No bar: a line like others.
            out.append(&mut self.held);
            out.extend_from_slice(text);
        } else {
            self.held.extend_from_slice(text);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> (Vec<u8>, u64) {
        let mut overwrite = Overwrite::new();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&overwrite.pass(chunk));
        }
        out.append(&mut overwrite.release());
        (out, overwrite.overwritten())
    }

    /// What a terminal shows of each line: what was written last.
    fn shown(bytes: &[u8]) -> Vec<&[u8]> {
        let lines = bytes.split(|&byte| byte == b'\n');
        lines
            .map(|line| {
                line.rsplit(|&byte| byte == b'\r')
                    .find(|part| !part.is_empty())
                    .unwrap_or_default()
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_bar_is_its_last_state() {
        for (chunks, out) in [
            (&[&b"plain\n"[..], b"text"][..], &b"plain\ntext"[..]),
            (&[b"\r 1%\r 2%", b"\r 3%\n", b"over\n"], b"\r 3%\nover\n"),
            (&[b"a\r\nb\r", b"\nc"], b"a\r\nb\r\nc"),
            (&[b"step 1\r", b"step 2\r", b"step 3\r"], b"step 1\rstep 3\r"),
            (&[b"x\r\r\ry"], b"x\ry"),
        ] {
            assert_eq!(all(chunks).0, out, "{chunks:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bar_that_goes_on_is_seen_now_and_then() {
        let mut overwrite = Overwrite::new();
        let mut passed = Vec::new();
        for second in 0..12 {
            passed.push(overwrite.pass(format!("\r{second}").as_bytes()).into_owned());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let seen: Vec<_> = passed.iter().filter(|passed| !passed.is_empty()).collect();
        assert_eq!(seen, [b"\r5".as_slice(), b"\r10"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_line_is_no_bar() {
        let long = [&b"\r"[..], &[b'x'; 10_000], b"\ry"].concat();
        assert_eq!(all(&[&long]).0, long);
        let pieces: Vec<&[u8]> = long.chunks(1000).collect();
        assert_eq!(all(&pieces).0, long);
    }

    proptest! {
        #[test]
        fn a_terminal_shows_the_same(chunks in prop::collection::vec("[ab\\r\\n]{0,12}", 0..8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let _guard = runtime.enter();
            let chunks: Vec<&[u8]> = chunks.iter().map(String::as_bytes).collect();
            let whole = chunks.concat();
            let (out, overwritten) = all(&chunks);
            prop_assert_eq!(out.len() as u64 + overwritten, whole.len() as u64);
            prop_assert_eq!(shown(&out), shown(&whole));
        }
    }
}
