//! The agent's HTTP/2 surface: one connection, its routes, and how each answer is made.

use std::{io, pin::Pin, sync::Arc, task, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use greenroom_protocol::{
    EndReason, Ended, KeyDigest, LeaseGrant, LeaseRequest, Refusal, RefusalKind, RunRequest,
    limits::{
        BULK_CONNECTION_WINDOW, BULK_STREAM_WINDOW, JSON_BYTES, PING_SECS, PING_TIMEOUT_SECS, STREAMS,
        WAIT_SECS,
    },
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE, uri::Authority};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    agent::Shared,
    lease::{Lease, LeaseError, millis},
    runs::{Follower, Piece, RunsError},
    tunnel,
};

/// What answers carry.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How long a JSON body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Largest HTTP/2 frame that is accepted: fewer frames for an upload, and no stall for its neighbours.
const FRAME_BYTES: u32 = 256 << 10;
/// Once the sandbox ends, a connection has this long to carry its last answers away.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves one connection until either side closes it or the sandbox ends.
///
/// The windows are always those of a bulk connection: they bound what the *server* may have under way, and
/// it is trusted. It is the server's own windows that keep a hostile guest from filling its memory.
pub(crate) async fn connection<I>(shared: Arc<Shared>, io: I)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(BULK_STREAM_WINDOW)
        .initial_connection_window_size(BULK_CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(PING_SECS))
        .keep_alive_timeout(Duration::from_secs(PING_TIMEOUT_SECS));
    let service = service_fn({
        let shared = Arc::clone(&shared);
        move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, std::convert::Infallible>(answer(&shared, request).await) }
        }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        // A connection that breaks is how channels end: there is nobody to tell.
        _ = connection.as_mut() => return,
        () = shared.draining() => {}
    }
    connection.as_mut().graceful_shutdown();
    // As above; what is not read by now will not be.
    drop(timeout(LAST_WORDS, connection).await);
}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    match route(shared, request).await {
        Ok(response) => response,
        Err(refused) => refused.into_response(),
    }
}

async fn route(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    if request.method() == Method::CONNECT {
        return tunnel(shared, request).await;
    }
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/") => hello(shared, &query(&request)?).await,
        (&Method::POST, "/lease") => lease(shared, request).await,
        (&Method::POST, "/lease/told") => {
            shared.tenure.with(Lease::told)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::GET, "/lease") => lease_view(shared, &query(&request)?).await,
        (&Method::DELETE, "/lease") => end_lease(shared, &query(&request)?),
        (&Method::POST, "/runs") => {
            let run: RunRequest = body(request).await?;
            Ok(events(shared.runs.submit(run, &shared.tenure)?))
        }
        (&Method::GET, "/runs") => {
            shared.tenure.with(Lease::standing)?;
            json(StatusCode::OK, &shared.runs.list())
        }
        (method, path) => match path.strip_prefix("/runs/") {
            Some(id) if method == Method::GET => follow(shared, id, &query(&request)?),
            Some(id) if method == Method::DELETE => {
                shared.tenure.with(Lease::standing)?;
                shared.runs.cancel(id)?;
                Ok(empty(StatusCode::ACCEPTED))
            }
            Some(_) | None => Err(refuse(RefusalKind::NotFound, "there is no such route")),
        },
    }
}

async fn hello(shared: &Arc<Shared>, query: &Query) -> Result<Response<Body>, Refused> {
    if let Some(wait) = query.wait()? {
        let mut boot = shared.runs.boot();
        let decided = boot.wait_for(|boot| boot.is_ready() || boot.failed.is_some());
        tokio::select! {
            // Decided, out of time or at its end: in each case what stands now is the answer.
            _ = timeout(wait, decided) => {}
            _ = shared.tenure.ended() => {}
        }
    }
    json(StatusCode::OK, &shared.hello())
}

fn follow(shared: &Arc<Shared>, id: &str, query: &Query) -> Result<Response<Body>, Refused> {
    shared.tenure.with(Lease::standing)?;
    let from = query.number("from")?.unwrap_or(0);
    Ok(events(shared.runs.follow(id, from, query.wait()?)?))
}

/// Opens a byte tunnel; it holds the lease open until it closes or the sandbox ends.
async fn tunnel(shared: &Arc<Shared>, mut request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let authority = request.uri().authority().map(Authority::as_str);
    let port = tunnel::port_of(authority.unwrap_or_default())?;
    let activity = shared.tenure.open()?;
    let mut inside = tunnel::connect(port).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _activity = activity;
        // The caller is gone before it had its answer: nobody to carry bytes for.
        let Ok(outside) = upgrade.await else { return };
        let mut outside = TokioIo::new(outside);
        tokio::select! {
            // Either side broke or both closed: the tunnel is over and both are dropped.
            _ = tunnel::splice(&mut outside, &mut inside) => {}
            _ = shared.tenure.ended() => {}
        }
    });
    Ok(empty(StatusCode::OK))
}

/// A run's events as they come.
fn events(follower: Follower) -> Response<Body> {
    let pieces = futures_util::stream::unfold(follower, async |mut follower| {
        let piece = follower.next().await?;
        Some((piece, follower))
    });
    let body = EventBody {
        pieces: Box::pin(pieces),
        over: false,
    };
    let mut response = Response::new(body.boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// Knows which piece is the last one, so that no empty frame has to say it.
struct EventBody {
    pieces: Pin<Box<dyn Stream<Item = Piece> + Send>>,
    over: bool,
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.over {
            return task::Poll::Ready(None);
        }
        let piece = task::ready!(self.pieces.as_mut().poll_next(context));
        self.over = piece.as_ref().is_none_or(|piece| piece.last);
        task::Poll::Ready(piece.map(|piece| Ok(Frame::data(piece.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

async fn lease(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let request: LeaseRequest = body(request).await?;
    check_key(&request.key)?;
    if request.idle_ms == 0 || request.lifetime_ms == 0 {
        return Err(refuse(
            RefusalKind::BadRequest,
            "idle_ms and lifetime_ms must be at least 1",
        ));
    }
    let standing = shared.tenure.with(|lease, now| lease.grant(&request, now))?;
    json(
        StatusCode::OK,
        &LeaseGrant {
            standing,
            boot: shared.boot.clone(),
        },
    )
}

async fn lease_view(shared: &Arc<Shared>, query: &Query) -> Result<Response<Body>, Refused> {
    if let Some(wait) = query.wait()? {
        let mut changes = shared.tenure.changes();
        if let Some(reason) = shared.tenure.with(Lease::settle) {
            return Err(Refused::Ended(reason));
        }
        // Out of time or changed: either way what stands now is the answer.
        let _ = timeout_at(Instant::now() + wait, changes.changed()).await;
    }
    let state = shared.tenure.with(|lease, now| match lease.settle(now) {
        Some(reason) => Err(LeaseError::Ending(reason)),
        None => Ok(lease.view(now)),
    })?;
    json(StatusCode::OK, &state)
}

fn end_lease(shared: &Arc<Shared>, query: &Query) -> Result<Response<Body>, Refused> {
    let reason = query.value("reason").and_then(|name| {
        [
            EndReason::Reset,
            EndReason::Evicted,
            EndReason::Idle,
            EndReason::Lifetime,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == name)
    });
    let Some(reason) = reason else {
        return Err(refuse(
            RefusalKind::BadRequest,
            "reason must be reset, evicted, idle or lifetime",
        ));
    };
    let idle = query.number("idle_ms")?.map(millis);
    shared.tenure.with(|lease, now| lease.end(reason, idle, now))?;
    Ok(empty(StatusCode::ACCEPTED))
}

fn check_key(key: &KeyDigest) -> Result<(), Refused> {
    let digits = key.0.as_bytes();
    if digits.len() == 64 && digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        Ok(())
    } else {
        Err(refuse(
            RefusalKind::BadRequest,
            "key must be 64 lower-case hexadecimal digits",
        ))
    }
}

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) enum Refused {
    /// With the status of its kind.
    Refusal(Refusal),
    /// 410, with the reason.
    Ended(EndReason),
}

impl Refused {
    fn into_response(self) -> Response<Body> {
        let (status, body) = match &self {
            Self::Refusal(refusal) => (refusal.kind.status(), serde_json::to_vec(refusal)),
            Self::Ended(reason) => (410, serde_json::to_vec(&Ended { reason: *reason })),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A body of two short strings always serialises; were it not so, the status says enough.
        json_bytes(status, body.unwrap_or_default())
    }
}

impl From<LeaseError> for Refused {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Ending(reason) => Self::Ended(reason),
            LeaseError::OtherKey | LeaseError::Unbound | LeaseError::NotIdle => {
                refuse(RefusalKind::Conflict, error.to_string())
            }
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<RunsError> for Refused {
    fn from(error: RunsError) -> Self {
        let kind = match &error {
            RunsError::Lease(lease) => return (*lease).into(),
            RunsError::BadId | RunsError::BadTimeout => RefusalKind::BadRequest,
            RunsError::CodeTooLarge(_) => RefusalKind::TooLarge,
            RunsError::OtherRun(_) | RunsError::Finished(_) => RefusalKind::Conflict,
            RunsError::Forgotten(_) | RunsError::Unknown(_) => RefusalKind::NotFound,
            RunsError::QueueFull(_) => RefusalKind::QueueFull,
            RunsError::NoKernel(_) => RefusalKind::NoKernel,
        };
        refuse(kind, error.to_string())
    }
}

/// A refusal of this kind.
pub(crate) fn refuse(kind: RefusalKind, message: impl Into<String>) -> Refused {
    Refused::Refusal(Refusal {
        kind,
        message: message.into(),
    })
}

/// The arguments behind the question mark.
struct Query(Vec<(String, String)>);

impl Query {
    fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refused> {
        self.value(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| refuse(RefusalKind::BadRequest, format!("{name} must be a whole number")))
            })
            .transpose()
    }

    /// `wait` in seconds, cut to [`WAIT_SECS`].
    fn wait(&self) -> Result<Option<Duration>, Refused> {
        Ok(self
            .number("wait")?
            .map(|seconds| Duration::from_secs(seconds.min(WAIT_SECS))))
    }
}

fn query<B>(request: &Request<B>) -> Result<Query, Refused> {
    let text = request.uri().query().unwrap_or_default();
    let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decode(key)?, decode(value)?))
    });
    Ok(Query(pairs.collect::<Result<_, Refused>>()?))
}

/// Percent-decodes one part of a path or query.
pub(crate) fn decode(text: &str) -> Result<String, Refused> {
    let bad = || {
        refuse(
            RefusalKind::BadRequest,
            "the address is not well-formed UTF-8 in percent-encoding",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
            let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                return Err(bad());
            };
            // Two hexadecimal digits fit into a byte.
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

/// Reads a JSON body within its bounds of size and time.
async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refused> {
    let read = Limited::new(request.into_body(), JSON_BYTES).collect();
    let bytes = match timeout(BODY_TIME, read).await {
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(refuse(
                RefusalKind::TooLarge,
                format!("a JSON body has at most {JSON_BYTES} bytes"),
            ));
        }
        Ok(Err(_)) => return Err(refuse(RefusalKind::BadRequest, "the body broke off")),
        Err(_) => return Err(refuse(RefusalKind::BadRequest, "the body did not arrive in time")),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| refuse(RefusalKind::BadRequest, format!("the body does not fit: {error}")))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response<Body>, Refused> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(json_bytes(status, bytes)),
        Err(error) => Err(refuse(RefusalKind::Internal, error.to_string())),
    }
}

fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
