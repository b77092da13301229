//! Connections to programs inside: HTTP/1.1 over a tunnel, kept open for a moment after each request.
//!
//! Not for long: an open tunnel holds its sandbox's idle clock.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::join_all};
use greenroom_protocol::RefusalKind;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    guest::{Guest, GuestError, Tunnel},
    sandbox::SandboxId,
};

/// How long a connection that nobody uses is kept.
const KEPT: Duration = Duration::from_secs(5);
/// How many of one sandbox.
const KEPT_EACH: usize = 16;
/// How long a connection may take over the end of its last request.
const SETTLES: Duration = Duration::from_secs(1);
/// How long a request waits where its sandbox has as many connections as there may be: others end soon, as a rule, and
/// who does not let go within this time is a stream.
const WAITS: Duration = Duration::from_secs(5);
/// Between two looks for one that is free.
const PAUSE: Duration = Duration::from_millis(20);
/// What a program's answer may hold back at once, its head included.
const BUFFER: usize = 256 << 10;

/// What goes into a sandbox.
pub(crate) type Outgoing = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// The connections that nobody uses at the moment. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wires {
    idle: Arc<Mutex<Idle>>,
}

#[derive(Debug, Default)]
struct Idle {
    next: u64,
    wires: HashMap<End, Vec<(u64, Wire)>>,
}

/// Where a connection leads to. A sandbox that was not told its program's port is reached by its pool's, which changes.
type End = (SandboxId, u16);

/// A connection to a program.
#[derive(Debug)]
struct Wire {
    sender: SendRequest<Outgoing>,
    /// Ends once its tunnel is closed.
    task: JoinHandle<()>,
}

/// Why a program has not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It could not be reached.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// It closed the connection, or answered what is no HTTP.
    #[error("{0}")]
    Broke(#[from] hyper::Error),
}

/// An answer, and the connection that it comes over.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    end: End,
    wire: Wire,
}

impl Wires {
    /// Sends a request to a port inside, over a kept connection or another, for which it waits a moment. One that turns
    /// out to be closed is replaced where nothing of the request was sent yet.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub(crate) async fn send(
        &self,
        guest: &Guest,
        port: u16,
        mut request: Request<Outgoing>,
    ) -> Result<Answered, Unanswered> {
        let end = (guest.id().clone(), port);
        let until = Instant::now() + WAITS;
        let tunnel = loop {
            while let Some(mut wire) = self.take(&end) {
                match wire.sender.try_send_request(request).await {
                    Ok(response) => return Ok(Answered { response, end, wire }),
                    Err(mut error) => match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(error.into_error().into()),
                    },
                }
            }
            match self.tunnel(guest, port).await {
                Err(error) if is_full(&error) && Instant::now() < until => sleep(PAUSE).await,
                opened => break opened?,
            }
        };
        let mut wire = connect(tunnel).await?;
        let response = wire.sender.send_request(request).await?;
        Ok(Answered { response, end, wire })
    }

    /// Opens a tunnel. Where a sandbox has as many as there may be, the connections to it that nobody uses make room.
    ///
    /// # Errors
    /// As [`Guest::tunnel`].
    pub(crate) async fn tunnel(&self, guest: &Guest, port: u16) -> Result<Tunnel, GuestError> {
        match guest.tunnel(port).await {
            Err(error) if is_full(&error) => {}
            opened => return opened,
        }
        let idle = self.give_up(guest.id());
        // One that takes long over its end is none of this caller's.
        drop(timeout(SETTLES, join_all(idle)).await);
        guest.tunnel(port).await
    }

    /// Closes the connections to a sandbox that nobody uses.
    fn give_up(&self, id: &SandboxId) -> Vec<JoinHandle<()>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let wires = idle.wires.extract_if(|(sandbox, _), _| sandbox == id);
        wires
            .flat_map(|(_, wires)| wires)
            .map(|(_, wire)| wire.task)
            .collect()
    }

    fn take(&self, end: &End) -> Option<Wire> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let wires = idle.wires.get_mut(end)?;
        while let Some((_, mut wire)) = wires.pop() {
            if let Some(Ok(())) = wire.sender.ready().now_or_never() {
                return Some(wire);
            }
        }
        idle.wires.remove(end);
        None
    }

    /// Keeps a connection whose request is over.
    async fn keep(self, end: End, mut wire: Wire) {
        if !matches!(timeout(SETTLES, wire.sender.ready()).await, Ok(Ok(()))) {
            return;
        }
        let number = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.next += 1;
            let number = idle.next;
            let wires = idle.wires.entry(end.clone()).or_default();
            if wires.len() >= KEPT_EACH {
                return;
            }
            wires.push((number, wire));
            number
        };
        sleep(KEPT).await;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wires) = idle.wires.get_mut(&end) {
            wires.retain(|(kept, _)| *kept != number);
            if wires.is_empty() {
                idle.wires.remove(&end);
            }
        }
    }
}

impl Answered {
    /// The answer, whose connection is kept once all of it was read.
    pub(crate) fn keeping(self, wires: &Wires) -> Response<Answer> {
        let Self { response, end, wire } = self;
        response.map(|body| Answer {
            body,
            back: Some((wires.clone(), end, wire)),
        })
    }
}

/// Whether a sandbox has as many tunnels as there may be.
fn is_full(error: &GuestError) -> bool {
    matches!(error, GuestError::Refused(refusal) if refusal.kind == RefusalKind::QueueFull)
}

async fn connect(tunnel: Tunnel) -> Result<Wire, Unanswered> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(tunnel))
        .await?;
    // It ends with the sender, with the program's end of it, or becomes another protocol.
    let task = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a program inside broke");
        }
    });
    Ok(Wire { sender, task })
}

/// An answer's body as it comes.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    back: Option<(Wires, End, Wire)>,
}

impl Answer {
    fn over(&mut self) {
        if let Some((wires, end, wire)) = self.back.take() {
            tokio::spawn(wires.keep(end, wire));
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.over();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An empty one may never be asked for its end. One that is given up closes its connection.
impl Drop for Answer {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.over();
        }
    }
}
