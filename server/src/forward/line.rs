//! `greenroom forward`: ports of this machine that lead to ports inside a conversation's sandbox, without a server in
//! between.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use crate::{
    alone::{Alone, AloneError},
    config::Config,
    conversation::SessionKey,
    guest::{GuestError, Tunnel},
    peer::{self, Reader},
    sessions::{OpenError, Sessions, Terms},
};

/// Connections at once; each is a stream of the agent's, which has 64.
const CONNECTIONS: usize = 48;
/// Bytes of each direction of a connection.
const BUFFER: usize = 64 << 10;
/// After a failed accept, so that a lack of descriptors does not spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// `[ADDRESS:]LOCAL:INSIDE`: where it is listened, and the port inside that this leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Here; loopback unless an address was named. Port 0 is any that is free.
    pub here: SocketAddr,
    /// Inside.
    pub inside: u16,
}

impl FromStr for Line {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not LOCAL:INSIDE: write 5432:5432, or 127.0.0.1:15432:5432");
        let (here, inside) = text.rsplit_once(':').ok_or_else(wrong)?;
        let inside = inside.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let here = match here.parse::<u16>() {
            Ok(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            Err(_) => here.parse().map_err(|_| wrong())?,
        };
        Ok(Self { here, inside })
    }
}

/// Why nothing is forwarded.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The conversation, or a server for it.
    #[error(transparent)]
    Alone(#[from] AloneError),
    /// The session.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The sandbox.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A port of this machine.
    #[error("{0} cannot be listened on: {1}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// Forwards until the process ends. `ready` is told where it is listened, once the conversation has a sandbox; one is
/// made where it has none.
///
/// # Errors
/// [`LineError`].
pub async fn forward(
    config: Config,
    pool: Option<&str>,
    conversation: &str,
    lines: &[Line],
    ready: impl FnOnce(&[Line]),
) -> Result<(), LineError> {
    let alone = Alone::start(config, pool, conversation).await?;
    let served = serve(&alone, lines, ready).await;
    alone.end().await;
    served
}

async fn serve(alone: &Alone, lines: &[Line], ready: impl FnOnce(&[Line])) -> Result<(), LineError> {
    let session = Arc::new(Caller {
        sessions: alone.sessions().clone(),
        key: alone.key.clone(),
        terms: alone.terms,
    });
    let (mut listeners, mut bound) = (Vec::new(), Vec::new());
    for line in lines {
        let failed = |error| LineError::Listen(line.here, error);
        let listener = TcpListener::bind(line.here).await.map_err(failed)?;
        let here = listener.local_addr().map_err(failed)?;
        bound.push(Line { here, ..*line });
        listeners.push((listener, line.inside));
    }
    drop(session.sessions.open(&session.key, session.terms).await?);
    ready(&bound);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let accepting = listeners
        .into_iter()
        .map(|(listener, inside)| accept(listener, inside, Arc::clone(&session), Arc::clone(&places)));
    let stop = tokio::signal::ctrl_c();
    tokio::select! {
        _ = futures_util::future::join_all(accepting) => {}
        // However that is said: the process is to end.
        _ = stop => {}
    }
    Ok(())
}

async fn accept(listener: TcpListener, inside: u16, caller: Arc<Caller>, places: Arc<Semaphore>) {
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        let caller = Arc::clone(&caller);
        tokio::spawn(async move {
            if let Err(error) = caller.carry(stream, inside).await {
                tracing::error!(port = inside, %error, "a connection was closed");
            }
            drop(place);
        });
    }
}

/// Whose sandbox it is.
struct Caller {
    sessions: Sessions,
    key: SessionKey,
    terms: Terms,
}

impl Caller {
    async fn carry(&self, mut stream: TcpStream, inside: u16) -> Result<(), LineError> {
        peer::prepare(&stream, Reader::Slow);
        let mut tunnel = self.tunnel(inside).await?;
        // Either side broke or both closed: it is over.
        drop(copy_bidirectional_with_sizes(&mut stream, &mut tunnel, BUFFER, BUFFER).await);
        Ok(())
    }

    /// A sandbox that was there a moment ago may have ended: then its next one is asked.
    async fn tunnel(&self, inside: u16) -> Result<Tunnel, LineError> {
        let session = self.sessions.open(&self.key, self.terms).await?;
        match session.guest.tunnel(inside).await {
            Err(error) if error.is_gone() => {}
            tunnel => return Ok(tunnel?),
        }
        let session = self.sessions.open(&self.key, self.terms).await?;
        Ok(session.guest.tunnel(inside).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_people_write_them() {
        for (text, expected) in [
            ("5432:5432", Some(("127.0.0.1:5432", 5432))),
            ("0:80", Some(("127.0.0.1:0", 80))),
            ("127.0.0.2:15432:5432", Some(("127.0.0.2:15432", 5432))),
            ("[::1]:15432:5432", Some(("[::1]:15432", 5432))),
            ("5432", None),
            ("5432:0", None),
            ("host:1:2", None),
            (":1", None),
            ("", None),
        ] {
            let line: Option<Line> = text.parse().ok();
            let shown = line.map(|line| (line.here.to_string(), line.inside));
            assert_eq!(
                shown,
                expected.map(|(here, inside)| (here.to_owned(), inside)),
                "{text}"
            );
        }
    }
}
