//! One HTTP/2 connection to an agent: opened when first needed, by one caller for all, and again when it broke.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use greenroom_protocol::{RELAY_PREFACE, limits};
use http_body_util::{Either, Full, combinators::UnsyncBoxBody};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, BufWriter},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::error::{GuestError, Lost};
use crate::{
    engine::{Channel, Engine},
    sandbox::SandboxId,
};

/// A channel opens in 60–75 ms; while a sandbox boots, its relay waits for the agent.
const OPEN: Duration = Duration::from_secs(20);

/// Frames of one request or of several are gathered here and leave in one write: every write is a packet
/// to the engine, a wake-up of its copying process and another of the relay.
const WRITE_BUFFER: usize = 16 << 10;

/// Header fields of an answer; an agent sends two or three short ones.
const HEADER_BYTES: u32 = 8 << 10;

/// What a request carries: a body that is there, or one that streams in.
pub(super) type Outgoing = Either<Full<Bytes>, UnsyncBoxBody<Bytes, std::io::Error>>;

/// The flow control of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    /// Small: what a stalled reader or a hostile guest can make this server hold.
    Runs,
    /// The bandwidth of a long pipe, for files and tunnels.
    Bulk,
}

impl Windows {
    const fn stream(self) -> u32 {
        match self {
            Self::Runs => limits::STREAM_WINDOW,
            Self::Bulk => limits::BULK_STREAM_WINDOW,
        }
    }

    const fn connection(self) -> u32 {
        match self {
            Self::Runs => limits::CONNECTION_WINDOW,
            Self::Bulk => limits::BULK_CONNECTION_WINDOW,
        }
    }

    /// Bulk frames are large: each costs a header, a look-up and a wake-up at both ends.
    const fn frame(self) -> u32 {
        match self {
            Self::Runs => 16 << 10,
            Self::Bulk => 128 << 10,
        }
    }
}

/// An open connection. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub(super) struct Wire {
    sender: SendRequest<Outgoing>,
    closed: CancellationToken,
}

impl Wire {
    pub(super) fn sender(&self) -> SendRequest<Outgoing> {
        self.sender.clone()
    }

    fn is_open(&self) -> bool {
        !self.closed.is_cancelled() && !self.sender.is_closed()
    }
}

type Opening = Shared<BoxFuture<'static, Result<Wire, GuestError>>>;

enum State {
    Closed,
    Opening(Opening),
    Open(Wire),
}

/// One connection of a [`Guest`](super::Guest), whichever exec stream carries it at the moment.
pub(super) struct Link {
    engine: Arc<dyn Engine>,
    id: SandboxId,
    windows: Windows,
    state: Mutex<State>,
}

impl Link {
    pub(super) fn new(engine: Arc<dyn Engine>, id: SandboxId, windows: Windows) -> Self {
        Self {
            engine,
            id,
            windows,
            state: Mutex::new(State::Closed),
        }
    }

    /// The open connection, or a new one. Callers who come while it is being opened share the attempt;
    /// a caller who goes away leaves it to the others.
    ///
    /// # Errors
    /// [`GuestError::Lost`], [`GuestError::Protocol`].
    pub(super) async fn wire(&self) -> Result<Wire, GuestError> {
        let opening = match &mut *self.state() {
            State::Open(wire) if wire.is_open() => return Ok(wire.clone()),
            // An attempt whose callers all went away may have come to its end long ago, so what it came to
            // is used only while it holds.
            State::Opening(opening) if still_good(opening) => opening.clone(),
            state @ (State::Closed | State::Opening(_) | State::Open(_)) => {
                let opening = self.start_opening();
                *state = State::Opening(opening.clone());
                opening
            }
        };
        let outcome = opening.clone().await;
        let mut state = self.state();
        // Another caller may have settled this attempt, and a later one may be under way already.
        if matches!(&*state, State::Opening(current) if current.ptr_eq(&opening)) {
            *state = match &outcome {
                Ok(wire) => State::Open(wire.clone()),
                Err(_) => State::Closed,
            };
        }
        outcome
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(&*self.state(), State::Open(wire) if wire.is_open())
    }

    /// Resolves when the connection that is open now has closed; at once where none is.
    pub(super) async fn closed(&self) {
        let closed = match &*self.state() {
            State::Open(wire) => wire.closed.clone(),
            State::Closed | State::Opening(_) => return,
        };
        closed.cancelled().await;
    }

    fn start_opening(&self) -> Opening {
        let opening = open(Arc::clone(&self.engine), self.id.clone(), self.windows);
        // A task, so that it goes on while no caller polls; aborted with its last waiter's link.
        AbortOnDropHandle::new(tokio::spawn(opening))
            .map(|outcome| {
                outcome.unwrap_or_else(|error| Err(GuestError::Lost(Lost::broke(format_args!("{error}")))))
            })
            .boxed()
            .shared()
    }

    /// Locked for look-ups only, and nothing in between can panic with the state half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("id", &self.id)
            .field("windows", &self.windows)
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

fn still_good(opening: &Opening) -> bool {
    match opening.peek() {
        None => true,
        Some(Ok(wire)) => wire.is_open(),
        Some(Err(_)) => false,
    }
}

async fn open(engine: Arc<dyn Engine>, id: SandboxId, windows: Windows) -> Result<Wire, GuestError> {
    let connected = async {
        let mut channel = engine.open(&id).await?;
        read_preface(&mut channel).await?;
        Ok::<_, GuestError>(channel)
    };
    let channel = match timeout(OPEN, connected).await {
        Ok(channel) => channel?,
        Err(_) => {
            return Err(GuestError::Lost(Lost::NoRelay {
                seconds: OPEN.as_secs(),
            }));
        }
    };
    shake_hands(channel, id, windows).await
}

/// Reads what the relay writes once it has reached the agent's socket: from then on silence is the agent's.
async fn read_preface(channel: &mut Channel) -> Result<(), GuestError> {
    let mut preface = [0; RELAY_PREFACE.len()];
    channel.read_exact(&mut preface).await.map_err(|error| {
        GuestError::Lost(Lost::broke(format_args!("before its relay connected: {error}")))
    })?;
    if preface == RELAY_PREFACE {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&preface);
        Err(GuestError::protocol(format!(
            "its channel begins with {said:?}, not as a relay does"
        )))
    }
}

/// Sends the connection's first frames, without waiting for the agent's.
async fn shake_hands(channel: Channel, id: SandboxId, windows: Windows) -> Result<Wire, GuestError> {
    let io = TokioIo::new(BufWriter::with_capacity(WRITE_BUFFER, channel));
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(windows.stream())
        .initial_connection_window_size(windows.connection())
        .max_frame_size(windows.frame())
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(Duration::from_secs(limits::PING_SECS))
        .keep_alive_timeout(Duration::from_secs(limits::PING_TIMEOUT_SECS))
        .keep_alive_while_idle(true)
        .handshake(io)
        .await
        .map_err(|error| GuestError::Lost(Lost::broke(error)))?;
    let closed = CancellationToken::new();
    let closing = closed.clone().drop_guard();
    // Ends when the channel breaks, when pings stay unanswered, or with the last sender.
    tokio::spawn(async move {
        let _closing = closing;
        if let Err(error) = connection.await {
            tracing::debug!(sandbox = %id, ?windows, error = %super::error::shown(&error.to_string()), "channel broke");
        }
    });
    Ok(Wire { sender, closed })
}
