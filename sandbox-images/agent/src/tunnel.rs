//! Byte tunnels to ports inside the sandbox: loopback only, half-closes kept, buffers bounded.

use std::{io, net::Ipv4Addr, time::Duration};

use greenroom_protocol::{Refusal, RefusalKind};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    net::TcpStream,
    time::timeout,
};

/// A listener on loopback that has not accepted by now has its backlog full.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Bytes that each direction holds at most: enough for a long pipe, little against many tunnels. As large as the frames
/// that a server takes; half of it costs a download a fifth more of the sandbox's processor.
const BUFFER: usize = 128 << 10;

/// Reads the target of a `CONNECT`: `127.0.0.1:port`, and nothing else.
///
/// # Errors
/// `BadRequest` for any other host, and for what is no port.
pub fn port_of(authority: &str) -> Result<u16, Refusal> {
    authority
        .strip_prefix("127.0.0.1:")
        // `parse` alone would take a plus sign.
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|port| port.parse().ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| Refusal {
            kind: RefusalKind::BadRequest,
            message: "a tunnel leads to 127.0.0.1:port with a port from 1 to 65535".to_owned(),
        })
}

/// Connects to a port inside the sandbox. Cancel safe.
///
/// # Errors
/// `NotFound` where nobody listens, `Conflict` where the listener does not accept in time.
pub async fn connect(port: u16) -> Result<TcpStream, Refusal> {
    let refuse = |kind, message| Refusal { kind, message };
    match timeout(CONNECT_TIME, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await {
        Ok(Ok(stream)) => {
            // Small writes are what a tunnel carries; without it nothing breaks, it is only slower.
            drop(stream.set_nodelay(true));
            Ok(stream)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(refuse(
            RefusalKind::NotFound,
            format!("nothing listens on port {port} of 127.0.0.1 inside the sandbox"),
        )),
        Ok(Err(error)) => Err(refuse(
            RefusalKind::Internal,
            format!("cannot connect to port {port} inside the sandbox: {error}"),
        )),
        Err(_) => Err(refuse(
            RefusalKind::Conflict,
            format!(
                "port {port} inside the sandbox did not accept within {} s",
                CONNECT_TIME.as_secs()
            ),
        )),
    }
}

/// Copies both ways until both sides have closed, or either has broken. The end of one direction is
/// passed on, and the other goes on. Returns the bytes (into the sandbox, out of it).
///
/// # Errors
/// A side broke; both are closed when the streams are dropped.
pub async fn splice<O, I>(outside: &mut O, inside: &mut I) -> io::Result<(u64, u64)>
where
    O: AsyncRead + AsyncWrite + Unpin,
    I: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(outside, inside, BUFFER, BUFFER).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_a_port_is_a_target() {
        assert_eq!(port_of("127.0.0.1:8080").unwrap(), 8080);
        assert_eq!(port_of("127.0.0.1:65535").unwrap(), 65_535);
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "127.0.0.1:+80",
            "127.0.0.1:80 ",
            "127.0.0.1:8\u{0660}",
            "127.0.0.2:80",
            "127.0.0.1.evil:80",
            "localhost:80",
            "[::1]:80",
            "0.0.0.0:80",
            "169.254.169.254:80",
            "user@127.0.0.1:80",
        ] {
            assert_eq!(port_of(bad).unwrap_err().kind, RefusalKind::BadRequest, "{bad}");
        }
    }
}
