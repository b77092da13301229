//! The agent's HTTP/2 surface: one connection, its routes, and how each answer is made.

mod answer;
mod files;
mod once;
mod request;

use std::{sync::Arc, time::Duration};

use greenroom_protocol::{
    BootRequest, EndReason, KeyDigest, LeaseGrant, LeaseRequest, RefusalKind, RestartReason, RunRequest,
    limits::{BULK_CONNECTION_WINDOW, BULK_STREAM_WINDOW, PING_SECS, PING_TIMEOUT_SECS, STREAMS},
};
use http::{Method, Request, Response, StatusCode, uri::Authority};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout, timeout_at},
};

pub(crate) use self::once::Once;
use self::{
    answer::{Body, Refused, empty, events, json, refuse},
    request::{Query, body, query},
};
use crate::{
    agent::{Shared, lock},
    lease::{Lease, LeaseError, millis},
    packages, tunnel,
};

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
    let path = request
        .uri()
        .path()
        .strip_prefix('/')
        .unwrap_or_default()
        .to_owned();
    let (root, below) = match path.split_once('/') {
        Some((root, below)) => (root, Some(below)),
        None => (path.as_str(), None),
    };
    match (request.method().as_str(), root, below) {
        ("GET", "", None) => hello(shared, &query(&request)?).await,
        ("POST", "boot", None) => {
            let request: BootRequest = body(request).await?;
            let begun = shared.app.begin(request, shared.runs.boots(), &shared.tenure);
            begun.map_err(|bad| refuse(RefusalKind::BadRequest, bad.to_string()))?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        ("GET", "log", None) => json(StatusCode::OK, &shared.app.log()),
        ("POST", "lease", None) => lease(shared, request).await,
        ("GET", "lease", None) => lease_view(shared, &query(&request)?).await,
        ("DELETE", "lease", None) => end_lease(shared, &query(&request)?),
        ("POST", "lease", Some("told")) => {
            shared.tenure.with(Lease::told)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        ("POST", "runs", None) => start_run(shared, request).await,
        ("GET", "runs", None) => {
            shared.tenure.with(Lease::standing)?;
            json(StatusCode::OK, &shared.runs.list())
        }
        ("GET", "runs", Some(id)) => follow(shared, id, &query(&request)?),
        ("DELETE", "runs", Some(id)) => {
            shared.tenure.with(Lease::standing)?;
            shared.runs.cancel(id)?;
            Ok(empty(StatusCode::ACCEPTED))
        }
        ("POST", "runs", Some(below)) => {
            let id = below.strip_suffix("/told").ok_or_else(no_route)?;
            shared.tenure.with(Lease::standing)?;
            shared.runs.told(id)?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        ("GET", "packages", None) => json(StatusCode::OK, &packages::listed().await),
        ("GET", "files", None) => files::list(shared, &query(&request)?).await,
        ("PUT", "archive", None) => files::unpack(shared, request).await,
        ("GET", "archive", None) => files::pack(shared, &query(&request)?).await,
        (_, "files", Some(file)) => files::one(shared, file, request).await,
        _ => Err(no_route()),
    }
}

fn no_route() -> Refused {
    refuse(RefusalKind::NotFound, "there is no such route")
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

async fn start_run(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let run: RunRequest = body(request).await?;
    let mut follower = shared.runs.submit(run, &shared.tenure)?;
    Ok(events(follower.first().await, follower))
}

fn follow(shared: &Arc<Shared>, id: &str, query: &Query) -> Result<Response<Body>, Refused> {
    shared.tenure.with(Lease::standing)?;
    let from = query.number("from")?.unwrap_or(0);
    Ok(events(None, shared.runs.follow(id, from, query.wait()?)?))
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

async fn lease(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
    let mut request: LeaseRequest = body(request).await?;
    check_key(&request.key)?;
    if request.idle_ms == 0 || request.lifetime_ms == 0 {
        return Err(refuse(
            RefusalKind::BadRequest,
            "idle_ms and lifetime_ms must be at least 1",
        ));
    }
    if let Some(kept) = *lock(&shared.kept) {
        // Race: a server may have filled the sandbox and given it its name, and died before it asked for the lease.
        // Whoever asks now may not know of any loss; the files prove one.
        request.restarted = request.restarted.or(Some(RestartReason::NoLongerOnRecord));
        request.files = kept;
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
