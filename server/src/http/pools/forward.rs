//! Requests that go on to the program of a container: into its sandbox and back, streams and upgrades included.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, extract::Request, http::Method, response::Response};
use greenroom_protocol::{LastWords, RefusalKind, RestartReason, Standing};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version, header};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes},
    sync::Notify,
    time::timeout,
};

use super::{
    call::{Answer, Call},
    refusal,
};
use crate::{
    config::ContainerConfig,
    delivery::{Delivery, Freight, News as Owed},
    forward::{
        Origin, headers,
        headers::Way,
        wires::{Answered, Outgoing, Unanswered},
    },
    guest::{Guest, GuestError},
    places::Place,
    rest::fault::{Code, Fault},
    sessions::Session,
};

/// The token of a raw stream: what `Upgrade` says on both sides.
pub(super) const TUNNEL: &str = "greenroom-tunnel";

/// How long a program is waited for that was asked whether it wants a body at all: then it gets it, as RFC 9110 says of
/// those that do not answer.
const CONTINUES: Duration = Duration::from_secs(1);

/// How long a sandbox whose program broke off may take to show that it has ended.
const ENDS: Duration = Duration::from_secs(5);

/// Bytes of each direction of an upgraded connection.
const BUFFER: usize = 64 << 10;

/// Where a request is forwarded to, and from.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Path and query as its program gets them.
    pub(super) uri: Uri,
    /// The path that was cut off.
    pub(super) prefix: String,
    pub(super) origin: Origin,
}

/// Forwards one request.
pub(super) async fn forward(
    call: &Call,
    container: &ContainerConfig,
    target: Target,
    request: Request,
    delivery: &Delivery,
) -> Result<Answer, Fault> {
    let place = place(call)?;
    headers::check(request.headers()).map_err(|odd| Fault::bad(odd.to_string()))?;
    let Some(today) = container.port else {
        let text = "this pool's containers are not reached by requests: it has no port";
        return Err(Fault::new(Code::NotSupported, text));
    };
    let session = match open(call).await? {
        Opened::Session(session) => *session,
        Opened::Answer(answer) => return Ok(*answer),
    };
    // The pool may have changed since the sandbox was made: its program listens where it did.
    let port = match session.guest.port().await {
        Ok(port) => port.unwrap_or(today),
        Err(error) => return Err(unanswered(call, &session, today, &Unanswered::Guest(error)).await),
    };
    let (request, incoming) = outgoing(request, &target);
    let sent = timeout(
        container.answer_timeout,
        call.shared().forward.wires.send(&session.guest, port, request),
    );
    let answered = match sent.await {
        Ok(Ok(answered)) => answered,
        Ok(Err(why)) => return Err(unanswered(call, &session, port, &why).await),
        Err(_) => {
            let text = format!(
                "the program did not answer within {} s (answer_timeout)",
                container.answer_timeout.as_secs()
            );
            return Err(Fault::new(Code::AnswerTimeout, text));
        }
    };
    Ok(answer(
        call,
        session,
        target.origin,
        answered,
        incoming,
        (place, delivery),
    ))
}

/// Opens a raw stream to a port inside.
pub(super) async fn tunnel(call: &Call, port: u16, mut request: Request) -> Result<Answer, Fault> {
    let place = place(call)?;
    let session = match open(call).await? {
        Opened::Session(session) => *session,
        Opened::Answer(answer) => return Ok(*answer),
    };
    let wires = &call.shared().forward.wires;
    let inside = match wires.tunnel(&session.guest, port).await {
        Ok(tunnel) => tunnel,
        Err(error) => return Err(unanswered(call, &session, port, &Unanswered::Guest(error)).await),
    };
    let outside = hyper::upgrade::on(&mut request);
    splice(outside, async { Some(inside) }, place);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(TUNNEL));
    let standing = session.standing.clone();
    Ok(call.told(response, session, &standing, None))
}

/// Whether a request asks for a raw stream.
pub(super) fn wants_tunnel(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::GET
        && headers::upgrade(headers)
            .is_some_and(|token| token.as_bytes().eq_ignore_ascii_case(TUNNEL.as_bytes()))
}

fn place(call: &Call) -> Result<Place, Fault> {
    let place = call.shared().forward.places.take(&call.key.principal);
    place.map_err(|full| Fault::new(Code::TooManyRequests, format!("{full} (limits.connections)")))
}

enum Opened {
    Session(Box<Session>),
    /// An earlier program's end, which has to be heard first.
    Answer(Box<Answer>),
}

/// The session's sandbox. Where an earlier one is gone since its program ended, and nobody has heard of it, that is the
/// answer, and the next request finds the new one.
async fn open(call: &Call) -> Result<Opened, Fault> {
    let session = call.open().await?;
    let Standing::Restarted { reason, .. } = &session.standing else {
        return Ok(Opened::Session(Box::new(session)));
    };
    if !is_the_programs(*reason) {
        return Ok(Opened::Session(Box::new(session)));
    }
    let left = call.shared().sessions.left_behind(&session.name).await;
    let (id, words) = match left {
        Ok(Some((id, words))) => (Some(id), words),
        Ok(None) | Err(_) => (None, None),
    };
    if id.is_some_and(|id| call.shared().forward.was_told_of(&id)) {
        return Ok(Opened::Session(Box::new(session)));
    }
    let mut fault = gone(*reason, words.as_ref());
    fault
        .message
        .push_str("; the next request reaches a fresh container");
    let standing = session.standing.clone();
    Ok(Opened::Answer(Box::new(call.told(
        refusal(&fault),
        session,
        &standing,
        None,
    ))))
}

const fn is_the_programs(reason: RestartReason) -> bool {
    matches!(reason, RestartReason::Exited | RestartReason::Unhealthy)
}

/// A program's end as its caller hears it.
fn gone(reason: RestartReason, words: Option<&LastWords>) -> Fault {
    let mut text = match (reason, words.and_then(|words| words.end)) {
        (RestartReason::Unhealthy, _) => "the container was ended: it failed its liveness probe".to_owned(),
        (_, Some(end)) => format!("the container's program has ended: {end}"),
        (_, None) => "the container's program has ended".to_owned(),
    };
    match words.map(|words| words.output.trim_end()) {
        Some("") => text.push_str("; it has written nothing"),
        Some(output) => text = format!("{text}; it has written last:\n{output}\n"),
        None => {}
    }
    Fault::new(Code::ContainerExited, text)
}

/// Why a program did not answer: it has ended, or it lives and does not listen, or answers what is no HTTP.
async fn unanswered(call: &Call, session: &Session, port: u16, why: &Unanswered) -> Fault {
    let is_listening = match why {
        Unanswered::Guest(GuestError::Refused(refusal)) => refusal.kind != RefusalKind::NotFound,
        Unanswered::Guest(_) | Unanswered::Broke(_) => true,
    };
    if !lives(&session.guest).await {
        let sessions = &call.shared().sessions;
        let id = session.guest.id();
        if let Ok(Some((reason, words))) = sessions.end_of(&session.name, id, ENDS).await {
            call.shared().forward.told_of(id);
            if is_the_programs(reason) {
                return gone(reason, words.as_ref());
            }
        }
    }
    match why {
        Unanswered::Guest(_) if !is_listening => Fault::new(
            Code::NotListening,
            format!("the container lives, and nothing in it listens on port {port}"),
        ),
        Unanswered::Guest(error) => error.into(),
        Unanswered::Broke(error) => {
            tracing::debug!(%error, "a program broke off");
            let text =
                "the program closed the connection before it had answered, or answered what is no HTTP";
            Fault::new(Code::BadAnswer, text)
        }
    }
}

async fn lives(guest: &Guest) -> bool {
    guest
        .hello()
        .await
        .is_ok_and(|hello| matches!(hello.lease, greenroom_protocol::LeaseState::Bound(_)))
}

/// The request as it goes in; and its connection, should that become another protocol's.
fn outgoing(mut request: Request, target: &Target) -> (http::Request<Outgoing>, hyper::upgrade::OnUpgrade) {
    let incoming = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let host = match (parts.headers.get(header::HOST), parts.uri.authority()) {
        (Some(host), _) => host.to_str().ok().map(str::to_owned),
        (None, Some(authority)) => Some(authority.to_string()),
        (None, None) => None,
    };
    headers::inward(
        &mut parts.headers,
        Way {
            origin: target.origin,
            host: host.as_deref(),
            prefix: &target.prefix,
        },
    );
    parts.uri = target.uri.clone();
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    let expects = parts
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut request = http::Request::from_parts(parts, Outgoing::default());
    if expects {
        // The caller sends no byte of its body before this server asks for one, so it asks when the program has.
        let asked = Arc::new(Notify::new());
        let heard = Arc::clone(&asked);
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE {
                heard.notify_one();
            }
        });
        let body = futures_util::stream::once(async move {
            // Not asked for in time: sent all the same.
            drop(timeout(CONTINUES, asked.notified()).await);
            body.into_data_stream()
        });
        let body = futures_util::StreamExt::flatten(body);
        *request.body_mut() = Body::from_stream(body).map_err(Into::into).boxed_unsync();
    } else {
        *request.body_mut() = body.map_err(Into::into).boxed_unsync();
    }
    (request, incoming)
}

/// The program's answer as its caller gets it.
fn answer(
    call: &Call,
    session: Session,
    origin: Origin,
    mut answered: Answered,
    incoming: hyper::upgrade::OnUpgrade,
    (place, delivery): (Place, &Delivery),
) -> Answer {
    let upgraded = (answered.response.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| hyper::upgrade::on(&mut answered.response));
    let response = answered.keeping(&call.shared().forward.wires);
    let mut response = response.map(Body::new);
    *response.version_mut() = Version::HTTP_11;
    headers::outward(response.headers_mut(), origin);
    match upgraded {
        Some(inside) => splice(incoming, async { inside.await.ok().map(TokioIo::new) }, place),
        None => delivery.carry(Freight {
            in_flight: Some(place),
            ..Freight::default()
        }),
    }
    let standing = session.standing.clone();
    let found = call.found(response, &session, &standing);
    Answer {
        owed: Owed::of(session, &standing, None),
        ..found
    }
}

/// Carries bytes both ways until both sides have closed, or one has broken.
fn splice<I>(
    outside: hyper::upgrade::OnUpgrade,
    inside: impl Future<Output = Option<I>> + Send + 'static,
    place: Place,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        let _place = place;
        // A caller who is gone before it had its answer leaves nobody to carry bytes for.
        let (Ok(outside), Some(mut inside)) = (outside.await, inside.await) else {
            return;
        };
        let mut outside = TokioIo::new(outside);
        // However it ends, both are closed.
        drop(copy_bidirectional_with_sizes(&mut outside, &mut inside, BUFFER, BUFFER).await);
    });
}
