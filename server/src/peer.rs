//! How a TCP connection that was accepted is kept: small writes leave at once, and a peer that vanished is noticed.
//!
//! A peer that is cut off or switched off says no goodbye. An open stream holds its sandbox's idle clock, so without
//! this one that nobody reads any more would hold a sandbox to the end of its lifetime.

use std::{io, time::Duration};

use rustix::net::sockopt::{
    set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
};
use tokio::net::TcpStream;

/// A connection on which nothing moves is asked about after this time …
const IDLE: Duration = Duration::from_secs(60);
/// … again after this …
const INTERVAL: Duration = Duration::from_secs(15);
/// … and is broken after so many questions without an answer.
const QUESTIONS: u32 = 4;
/// The same for one that takes nothing of what is sent to it. The kernel goes by it for the questions, too: equal.
const STALLS: Duration = Duration::from_secs(120);

/// What becomes of a peer that is there and reads nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// It is cut off: others need its place.
    Prompt,
    /// It may take its time, as one that a person pages through may.
    Slow,
}

/// Prepares a connection. What cannot be set is left as it is.
pub(crate) fn prepare(stream: &TcpStream, reader: Reader) {
    if let Err(error) = set(stream, reader) {
        tracing::debug!(%error, "a connection could not be prepared");
    }
}

fn set(stream: &TcpStream, reader: Reader) -> io::Result<()> {
    // An answer goes out in two small parts; without this the second waits 40 ms for the client's delayed ACK.
    stream.set_nodelay(true)?;
    set_tcp_keepidle(stream, IDLE)?;
    set_tcp_keepintvl(stream, INTERVAL)?;
    set_tcp_keepcnt(stream, QUESTIONS)?;
    set_socket_keepalive(stream, true)?;
    if reader == Reader::Prompt {
        set_tcp_user_timeout(stream, u32::try_from(STALLS.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::net::sockopt::{
        socket_keepalive, tcp_keepcnt, tcp_keepidle, tcp_keepintvl, tcp_nodelay, tcp_user_timeout,
    };
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_vanished_is_noticed() {
        for (reader, stalls) in [(Reader::Prompt, 120_000), (Reader::Slow, 0)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            prepare(&stream, reader);
            assert!(socket_keepalive(&stream).unwrap() && tcp_nodelay(&stream).unwrap());
            assert_eq!(tcp_keepidle(&stream).unwrap(), IDLE);
            assert_eq!(tcp_keepintvl(&stream).unwrap(), INTERVAL);
            assert_eq!(tcp_keepcnt(&stream).unwrap(), QUESTIONS);
            assert_eq!(tcp_user_timeout(&stream).unwrap(), stalls, "{reader:?}");
        }
        assert_eq!(
            IDLE + INTERVAL * QUESTIONS,
            STALLS,
            "the kernel takes the last for all"
        );
    }
}
