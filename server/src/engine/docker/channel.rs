//! A channel as an exec stream: the relay's standard streams behind one `AsyncRead + AsyncWrite`.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bollard::{container::LogOutput, errors::Error, exec::StartExecResults};
use bytes::{Buf, Bytes};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::call::bounded;

/// Bytes of the relay's complaints that are kept for an error.
const COMPLAINT: usize = 1024;
/// What is read from the engine at once. It frames at 32 KiB, so this is two frames.
pub(super) const READ_BYTES: usize = 64 << 10;

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// Both directions of an attached exec. Dropping it closes the connection; the engine then closes the
/// relay's standard input, and the relay ends.
///
/// One frame of the engine's is held at most: what is not read stays in the connection, and in the end
/// the writer inside waits.
pub(super) struct ExecStream {
    output: Output,
    input: Input,
    unread: Bytes,
    /// It has written to its standard output.
    spoke: bool,
    complaint: Vec<u8>,
}

impl ExecStream {
    /// Takes over a started exec; `None` if it came detached.
    pub(super) fn attached(started: StartExecResults) -> Option<Self> {
        match started {
            StartExecResults::Attached { output, input } => Some(Self {
                output,
                input,
                unread: Bytes::new(),
                spoke: false,
                complaint: Vec::new(),
            }),
            StartExecResults::Detached => None,
        }
    }

    /// The end of the relay's output. A relay that ends before it said anything has complained instead.
    fn ended(&self) -> io::Result<()> {
        if self.spoke || self.complaint.is_empty() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&self.complaint);
        Err(io::Error::other(format!("the relay: {}", bounded(&complaint))))
    }

    /// Takes in one frame. What the relay writes to its standard error is for people.
    fn accept(&mut self, frame: LogOutput) -> io::Result<()> {
        match frame {
            LogOutput::StdOut { message } => {
                self.spoke = true;
                self.unread = message;
                Ok(())
            }
            LogOutput::StdErr { message } => {
                let room = COMPLAINT.saturating_sub(self.complaint.len());
                self.complaint
                    .extend_from_slice(&message[..room.min(message.len())]);
                Ok(())
            }
            // Without a terminal every byte comes in a frame of one of the two.
            LogOutput::StdIn { .. } | LogOutput::Console { .. } => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the engine sent bytes of no stream",
            )),
        }
    }
}

impl AsyncRead for ExecStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.output.as_mut().poll_next(cx)) {
                Some(Ok(frame)) => self.accept(frame)?,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(self.ended()),
            }
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ExecStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(cx)
    }
}

impl fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStream")
            .field("unread", &self.unread.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn stdout(text: &[u8]) -> Result<LogOutput, Error> {
        Ok(LogOutput::StdOut {
            message: Bytes::copy_from_slice(text),
        })
    }

    fn stderr(text: &str) -> Result<LogOutput, Error> {
        Ok(LogOutput::StdErr {
            message: Bytes::copy_from_slice(text.as_bytes()),
        })
    }

    fn attached(frames: Vec<Result<LogOutput, Error>>) -> ExecStream {
        ExecStream::attached(StartExecResults::Attached {
            output: Box::pin(stream::iter(frames)),
            input: Box::pin(tokio::io::sink()),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn standard_output_is_the_stream_and_nothing_else_is() {
        let frames = vec![stdout(b"a"), stderr("a warning"), stdout(b""), stdout(b"bc")];
        let mut stream = attached(frames);
        let mut read = String::new();
        stream.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "abc");
        stream.write_all(b"x").await.unwrap();
    }

    #[tokio::test]
    async fn a_frame_is_read_in_pieces_of_any_size() {
        let mut stream = attached(vec![stdout(b"abcde")]);
        let mut piece = [0; 2];
        for expected in [&b"ab"[..], b"cd", b"e", b""] {
            let length = stream.read(&mut piece).await.unwrap();
            assert_eq!(&piece[..length], expected);
        }
    }

    #[tokio::test]
    async fn a_relay_that_fails_is_quoted() {
        let mut stream = attached(vec![stderr("no such socket\x1b[0m")]);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), r"the relay: no such socket\u{1b}[0m");
    }

    #[tokio::test]
    async fn complaints_are_bounded() {
        let mut stream = attached((0..100).map(|_| stderr(&"x".repeat(1000))).collect());
        stream.read_u8().await.unwrap_err();
        assert_eq!(stream.complaint.len(), COMPLAINT);
    }

    #[tokio::test]
    async fn bytes_of_no_stream_break_the_channel() {
        let frames = vec![Ok(LogOutput::Console {
            message: Bytes::from_static(b"?"),
        })];
        let mut stream = attached(frames);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
