//! Lines over a stream: bounded, and one at a time.

use std::io;

use futures_util::StreamExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use super::{GREETING, GREETING_BYTES};

/// Bytes of one message: what rmcp takes on a pipe.
pub(super) const MESSAGE_BYTES: usize = 16 << 20;

/// Reads lines.
pub(super) type Lines<R> = FramedRead<R, AnyDelimiterCodec>;

pub(super) fn lines<R: AsyncRead>(from: R, most: usize) -> Lines<R> {
    FramedRead::new(
        from,
        AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), most),
    )
}

/// What the next line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message, without its end.
    Line(bytes::Bytes),
    /// One that was too long; the rest of it has been skipped.
    TooLong,
    /// There are no more.
    Over,
}

/// The next line that holds anything. Cancel safe: what has been read of a line is kept.
pub(super) async fn next<R: AsyncRead + Unpin>(lines: &mut Lines<R>) -> Next {
    loop {
        match lines.next().await {
            Some(Ok(line)) if line.trim_ascii().is_empty() => {}
            Some(Ok(line)) => return Next::Line(line),
            Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                // The reader says once that it is over after each error, and then goes on.
                let over = lines.next().await;
                debug_assert!(over.is_none());
                return Next::TooLong;
            }
            Some(Err(AnyDelimiterCodecError::Io(_))) | None => return Next::Over,
        }
    }
}

/// Writes a line.
pub(super) async fn write<W: AsyncWrite + Unpin>(to: &mut W, line: &[u8]) -> io::Result<()> {
    to.write_all(line).await?;
    to.write_all(b"\n").await?;
    to.flush().await
}

pub(super) async fn say<W: AsyncWrite + Unpin, T: Serialize>(to: &mut W, what: &T) -> io::Result<()> {
    write(to, &serde_json::to_vec(what)?).await
}

/// Hears the other side's first line. Nothing that follows it is taken: that is for whoever reads on.
pub(super) async fn hear<R: AsyncRead + Unpin, T: DeserializeOwned>(from: &mut R) -> io::Result<T> {
    let line = timeout(GREETING, line(from, GREETING_BYTES))
        .await
        .map_err(io::Error::from)??;
    Ok(serde_json::from_slice(&line)?)
}

/// One line and not a byte more, a byte at a time: for what comes once.
pub(super) async fn line<R: AsyncRead + Unpin>(from: &mut R, most: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        match from.read_u8().await? {
            b'\n' => return Ok(line),
            _ if line.len() == most => return Err(io::ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_go_on_after_one_that_was_not() {
        let text: &[u8] = b"one\n\n   \r\ntwo is far too long\nthree\nfo";
        let mut lines = lines(text, 8);
        assert_eq!(next(&mut lines).await, Next::Line("one".into()));
        assert_eq!(next(&mut lines).await, Next::TooLong);
        assert_eq!(next(&mut lines).await, Next::Line("three".into()));
        assert_eq!(next(&mut lines).await, Next::Line("fo".into()));
        assert_eq!(next(&mut lines).await, Next::Over);
    }

    #[tokio::test(start_paused = true)]
    async fn a_greeting_is_short_and_comes_in_time() {
        let mut good: &[u8] = b"\"hi\"\nrest";
        assert_eq!(hear::<_, String>(&mut good).await.unwrap(), "hi");
        assert_eq!(good, b"rest");
        let long = vec![b'x'; GREETING_BYTES + 2];
        assert!(hear::<_, String>(&mut &long[..]).await.is_err());
        assert!(hear::<_, String>(&mut &b"\"cut"[..]).await.is_err());
        let (mut silent, _other) = tokio::io::duplex(8);
        let error = hear::<_, String>(&mut silent).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
