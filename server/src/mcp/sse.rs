//! HTTP+SSE of 2024-11-05: one long stream of events for each client, and requests that name the stream. It is
//! deprecated, and it is still what many clients speak.
//!
//! ```text
//! GET /sse ──▶ endpoint: /messages?sessionId=…   POST /messages?sessionId=… ─▶ inbox ─▶ rmcp ─▶ Service
//!          ◀── message: …  ◀──────────────────────────────────────── outbox ◀──┘
//! ```
//! A stream stands for a conversation, as a stdio process does. Whose it is, is checked with each request. A
//! stream that breaks off cancels nothing: in this era that is not how a caller says that it has given up.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use rmcp::{
    model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage},
    service::serve_server_with_ct,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, PollSender};

use super::{
    caller::{Carrier, Delivery},
    endpoint::{COMMENT, KEEP_ALIVE, event_stream, plain},
    service::{Door, Service},
    tools::Tools,
};
use crate::{
    auth::Identity,
    conversation::{Principal, hex},
};

/// Streams at once: each costs some 20 KiB, and clients that never read theirs must not add up.
const MOST: usize = 1024;

/// Messages on their way in or out of one stream. A client that does not read stops its own answers only.
const WAITING: usize = 16;

/// How long a request waits for a place among them.
const FOR_PLACE: Duration = Duration::from_secs(10);

/// The streams of this server. Clones share them.
#[derive(Clone, Debug)]
pub struct Sse {
    tools: Arc<Tools>,
    closing: CancellationToken,
    streams: CancellationToken,
    open: Arc<Open>,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Which streams are open.
#[derive(Debug, Default)]
struct Open(Mutex<HashMap<String, Inbox>>);

/// The way into a stream, and whose it is.
#[derive(Clone, Debug)]
struct Inbox {
    owner: Principal,
    messages: mpsc::Sender<ClientJsonRpcMessage>,
    delivery: Delivery,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Inbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stream in, if there is room.
    fn insert(&self, id: String, inbox: Inbox) -> bool {
        let mut open = self.lock();
        if open.len() >= MOST {
            return false;
        }
        open.insert(id, inbox);
        true
    }

    /// Somebody else's stream and none at all are the same.
    fn find(&self, id: &str, principal: &Principal) -> Option<Inbox> {
        self.lock()
            .get(id)
            .filter(|inbox| inbox.owner == *principal)
            .cloned()
    }
}

impl Sse {
    pub(super) fn new(tools: &Arc<Tools>, closing: &CancellationToken, streams: &CancellationToken) -> Self {
        Self {
            tools: Arc::clone(tools),
            closing: closing.clone(),
            streams: streams.clone(),
            open: Arc::default(),
        }
    }

    /// Opens a stream. Its first event says where its messages go.
    #[must_use]
    pub fn open(&self, identity: &Identity) -> Answer {
        let mut random = [0; 16];
        let (Ok(minted), Ok(())) = (self.tools.resolver().mint(), getrandom::fill(&mut random)) else {
            return plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "Internal Server Error: no random bytes",
            );
        };
        let id = hex(&random);
        let (messages, inbox) = mpsc::channel(WAITING);
        let (answers, outbox) = mpsc::channel(WAITING);
        let delivery = Delivery::default();
        let entry = Inbox {
            owner: identity.principal.clone(),
            messages,
            delivery: delivery.clone(),
        };
        if !self.open.insert(id.clone(), entry) {
            return plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service Unavailable: too many streams are open",
            );
        }
        let leaving = self.closing.child_token();
        // Not awaited here: it waits for the client's first message, which needs this answer.
        tokio::spawn(
            self.clone()
                .serve(Arc::new(Carrier::new(minted)), inbox, answers, leaving.clone()),
        );
        let endpoint = format!("event: endpoint\ndata: /messages?sessionId={id}\n\n");
        let events = Events {
            first: Some(Bytes::from(endpoint)),
            outbox,
            delivery,
            silence: Box::pin(sleep(KEEP_ALIVE)),
            _place: Place {
                open: Arc::clone(&self.open),
                id,
                leaving,
            },
        };
        event_stream(BoxBody::new(events), "no-store")
    }

    async fn serve(
        self,
        carrier: Arc<Carrier>,
        inbox: mpsc::Receiver<ClientJsonRpcMessage>,
        answers: mpsc::Sender<ServerJsonRpcMessage>,
        leaving: CancellationToken,
    ) {
        let door = Door::Carried {
            carrier: Arc::clone(&carrier),
            fixed: None,
        };
        let service = Service::new(Arc::clone(&self.tools), door, leaving);
        let transport = (PollSender::new(answers), ReceiverStream::new(inbox));
        let ended = match serve_server_with_ct(service, transport, self.streams.child_token()).await {
            Ok(running) => running.waiting().await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        tracing::debug!(?ended, "a stream is over");
        self.tools.carrier_ended(&carrier).await;
    }

    /// Takes a message for a stream; the answer comes by that.
    pub async fn post(&self, request: Request<Bytes>, identity: &Identity) -> Answer {
        let id = request.uri().query().and_then(session_id).unwrap_or_default();
        let Some(inbox) = self.open.find(id, &identity.principal) else {
            return plain(StatusCode::NOT_FOUND, "Not Found: there is no such stream");
        };
        let (mut parts, body) = request.into_parts();
        let mut message: ClientJsonRpcMessage = match serde_json::from_slice(&body) {
            Ok(message) => message,
            Err(_) => {
                return plain(
                    StatusCode::BAD_REQUEST,
                    "Bad Request: the body is no JSON-RPC message",
                );
            }
        };
        parts.extensions.insert(identity.clone());
        parts.extensions.insert(inbox.delivery.clone());
        message.insert_extension(parts);
        match timeout(FOR_PLACE, inbox.messages.send(message)).await {
            Ok(Ok(())) => plain(StatusCode::ACCEPTED, "Accepted"),
            Ok(Err(_)) => plain(StatusCode::NOT_FOUND, "Not Found: the stream is over"),
            Err(_) => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service Unavailable: too many messages wait",
            ),
        }
    }
}

/// The value of `sessionId`, which is hexadecimal digits as we made it.
fn session_id(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("sessionId="))
}

/// A stream's place in the table, given back when its response is dropped: the client has gone, or we end it.
#[derive(Debug)]
struct Place {
    open: Arc<Open>,
    id: String,
    leaving: CancellationToken,
}

impl Drop for Place {
    /// Order: the inbox goes last. Its end makes rmcp give up what is in flight, which must not look like the
    /// caller's wish by then.
    fn drop(&mut self) {
        self.leaving.cancel();
        self.open.lock().remove(&self.id);
    }
}

/// The events of a stream, as a response's body.
#[derive(Debug)]
struct Events {
    first: Option<Bytes>,
    outbox: mpsc::Receiver<ServerJsonRpcMessage>,
    delivery: Delivery,
    silence: Pin<Box<Sleep>>,
    _place: Place,
}

impl Events {
    fn event(message: &ServerJsonRpcMessage) -> Bytes {
        // What rmcp hands out is made of JSON, which has no other way to fail.
        let json = serde_json::to_string(message).unwrap_or_default();
        Bytes::from(format!("event: message\ndata: {json}\n\n"))
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self.outbox.poll_recv(context).map(|message| {
                let message = message?;
                // Race: the news of an answer that is on its way here counts as told with the answer before it. A
                // client that goes away between the two misses it; the gap is shorter than a context switch.
                if matches!(message, JsonRpcMessage::Response(_)) {
                    self.delivery.arrived();
                }
                Some(Self::event(&message))
            }),
        };
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(context));
                Some(Bytes::from_static(COMMENT))
            }
        };
        self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready(frame.map(|bytes| Ok(Frame::data(bytes))))
    }
}
