//! One HTTP/2 connection to an agent: opened when first needed, by one caller for all, and again when it broke.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use greenroom_protocol::{RELAY_PREFACE, limits};
use http_body_util::{Either, Full, combinators::UnsyncBoxBody};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, BufWriter},
    sync::watch,
    time::{Instant, sleep_until, timeout},
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

    /// How long it may go unused: a stream costs the host 5 MiB while it is open. That for runs stays open, as it
    /// is what a hot call needs, and what tells an agent that somebody is there.
    const fn rests(self) -> Option<Duration> {
        match self {
            Self::Runs => None,
            Self::Bulk => Some(Duration::from_secs(60)),
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

/// The last attempt to open the connection, and when the connection was last asked for.
#[derive(Default)]
struct Slot {
    attempt: Option<Attempt>,
    used: Option<Instant>,
}

/// An attempt to open a connection, and what came of it.
struct Attempt {
    outcome: watch::Receiver<Option<Result<Wire, GuestError>>>,
    /// Goes on while no caller waits, and ends with the link.
    task: AbortOnDropHandle<()>,
}

/// One connection of a [`Guest`](super::Guest), whichever exec stream carries it at the moment.
pub(super) struct Link {
    engine: Arc<dyn Engine>,
    id: SandboxId,
    windows: Windows,
    slot: Arc<Mutex<Slot>>,
}

impl Link {
    pub(super) fn new(engine: Arc<dyn Engine>, id: SandboxId, windows: Windows) -> Self {
        Self {
            engine,
            id,
            windows,
            slot: Arc::default(),
        }
    }

    /// The open connection, or a new one. Callers who come while it is being opened share the attempt;
    /// a caller who goes away leaves it to the others.
    ///
    /// # Errors
    /// [`GuestError::Lost`], [`GuestError::Protocol`].
    pub(super) async fn wire(&self) -> Result<Wire, GuestError> {
        let mut outcome = {
            let mut slot = lock(&self.slot);
            slot.used = Some(Instant::now());
            if let Some(wire) = slot.wire() {
                return Ok(wire);
            }
            match &slot.attempt {
                Some(attempt) if attempt.is_under_way() => attempt.outcome.clone(),
                // What an earlier attempt came to is old news.
                Some(_) | None => slot.attempt.insert(self.start()).outcome.clone(),
            }
        };
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(GuestError::Lost(Lost::broke("opening it broke off"))),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.slot).wire().is_some()
    }

    /// Resolves when the connection that is open now has closed; at once where none is.
    pub(super) async fn closed(&self) {
        let closed = lock(&self.slot).wire().map(|wire| wire.closed.clone());
        if let Some(closed) = closed {
            closed.cancelled().await;
        }
    }

    fn start(&self) -> Attempt {
        let opening = open(Arc::clone(&self.engine), self.id.clone(), self.windows);
        let (tell, outcome) = watch::channel(None);
        let (slot, rests) = (Arc::downgrade(&self.slot), self.windows.rests());
        let task = tokio::spawn(async move {
            let opened = opening.await;
            let is_open = opened.is_ok();
            tell.send_replace(Some(opened));
            if let (true, Some(rests)) = (is_open, rests) {
                close_unused(slot, rests).await;
            }
        });
        Attempt {
            outcome,
            task: AbortOnDropHandle::new(task),
        }
    }
}

impl Slot {
    /// The connection, while it is open.
    fn wire(&self) -> Option<Wire> {
        self.attempt.as_ref()?.wire()
    }
}

/// Closes a connection that nobody has asked for since `rests`. What is under way on it goes on to its end.
async fn close_unused(slot: Weak<Mutex<Slot>>, rests: Duration) {
    loop {
        let due = {
            let Some(slot) = slot.upgrade() else { return };
            let mut slot = lock(&slot);
            // Race: a later attempt may have taken this one's place, which has aborted this task, though not
            // yet here.
            let mine = slot
                .attempt
                .as_ref()
                .map(|attempt| attempt.task.abort_handle().id());
            let Some(used) = slot.used.filter(|_| mine == tokio::task::try_id()) else {
                return;
            };
            let due = used + rests;
            if due <= Instant::now() {
                slot.attempt = None;
                return;
            }
            due
        };
        sleep_until(due).await;
    }
}

/// Locked for look-ups only, and nothing in between can panic.
fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attempt {
    /// The connection that it came to, while that is open.
    fn wire(&self) -> Option<Wire> {
        match &*self.outcome.borrow() {
            Some(Ok(wire)) if wire.is_open() => Some(wire.clone()),
            Some(_) | None => None,
        }
    }

    fn is_under_way(&self) -> bool {
        // Without a sender it broke off.
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
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
        // What an exec in a sandbox that is just ending says of itself, most of the time: another look tells.
        let said = String::from_utf8_lossy(&preface);
        Err(GuestError::Lost(Lost::broke(format_args!(
            "it begins with {said:?}, not as a relay does"
        ))))
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
