//! `/mcp`: streamable HTTP for both eras of the protocol on one address.
//!
//! rmcp serves sessions or statelessness, and is strict about either; clients omit, forget and renew session ids.
//! So two services stand side by side over the same tools, and each request goes to the one that can serve it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService,
        session::{SessionManager, never::NeverSessionManager},
    },
};
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    caller::Delivery,
    service::{Door, Service},
    tools::Tools,
    transports::{HEADER, Standing, Transports},
};
use crate::conversation::Principal;

const VERSION_HEADER: &str = "mcp-protocol-version";

/// The era without `initialize` and sessions.
const MODERN: &str = "2026-07-28";

/// An open stream says something at least this often, or proxies and clients take it for dead. It is ours and not
/// rmcp's, whose timer mixes two clocks and so cannot be tested on the paused one.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What it says: a comment, which no client shows.
pub(super) const COMMENT: &[u8] = b":\n\n";

/// The endpoint. Clones share it.
#[derive(Clone)]
pub struct Endpoint {
    with_sessions: Serving,
    stateless: Serving,
    transports: Arc<Transports>,
}

type Served = Response<BoxBody<Bytes, Infallible>>;

/// One of rmcp's services, whatever handler it has.
type Serving =
    Arc<dyn Fn(Request<Full<Bytes>>) -> Pin<Box<dyn Future<Output = Served> + Send>> + Send + Sync>;

fn serving<H, M>(handler: H, sessions: Arc<M>, config: StreamableHttpServerConfig) -> Serving
where
    H: ServerHandler + Clone + Send + Sync + 'static,
    M: SessionManager,
{
    let service = StreamableHttpService::new(move || Ok(handler.clone()), sessions, config);
    Arc::new(move |request| {
        let service = service.clone();
        Box::pin(async move { service.handle(request).await })
    })
}

/// Who serves a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// The service that keeps transport sessions, and serves modern requests statelessly by itself.
    Sessions,
    /// The service that serves legacy requests without one.
    Stateless,
    /// There is no such session, as far as this caller may know.
    NoSession,
    /// There is nothing here to listen to.
    NotAllowed,
}

/// What decides a request's route.
#[derive(Clone, Copy, Debug)]
struct Features<'a> {
    method: &'a Method,
    modern: bool,
    session: Option<Standing>,
    body: &'a [u8],
}

impl Endpoint {
    pub(super) fn new(tools: &Arc<Tools>, closing: &CancellationToken, streams: &CancellationToken) -> Self {
        let transports = Arc::new(Transports::new(Arc::clone(tools)));
        let door = Door::Http(Arc::clone(&transports));
        let service = Service::new(Arc::clone(tools), door, closing.clone());
        Self::over(service, transports, tools, streams)
    }

    /// The same endpoint over another handler, with the transport sessions of these tools.
    pub(super) fn over<H: ServerHandler + Clone + Send + Sync + 'static>(
        handler: H,
        transports: Arc<Transports>,
        tools: &Arc<Tools>,
        streams: &CancellationToken,
    ) -> Self {
        let limit = tools.config().limits.request.as_usize();
        // Host, Origin and the size of bodies are seen to by the HTTP layer, on every route alike.
        let config = || {
            StreamableHttpServerConfig::default()
                .disable_allowed_hosts()
                .disable_allowed_origins()
                .with_sse_keep_alive(None)
                .with_max_request_body_bytes(limit)
                .with_cancellation_token(streams.clone())
        };
        let stateless = config().with_legacy_session_mode(false);
        Self {
            with_sessions: serving(handler.clone(), Arc::clone(&transports), config()),
            stateless: serving(handler, Arc::new(NeverSessionManager::default()), stateless),
            transports,
        }
    }

    /// Serves a request whose body has been read.
    pub async fn handle(&self, mut request: Request<Bytes>, principal: &Principal) -> Response<Answered> {
        let session = header(request.headers(), HEADER).map(|id| self.transports.standing(id, principal));
        let features = Features {
            method: request.method(),
            modern: header(request.headers(), VERSION_HEADER) == Some(MODERN),
            session,
            body: request.body(),
        };
        let route = route(features);
        if request.method() == Method::DELETE
            && route == Route::Sessions
            && let Some(id) = header(request.headers(), HEADER)
        {
            self.transports.delete(id);
        }
        let delivery = Delivery::default();
        request.extensions_mut().insert(delivery.clone());
        request.extensions_mut().insert(principal.clone());
        let request = request.map(Full::new);
        let response = match route {
            Route::Sessions => (self.with_sessions)(request).await,
            Route::Stateless => (self.stateless)(request).await,
            Route::NoSession => plain(StatusCode::NOT_FOUND, "Not Found: Session not found"),
            Route::NotAllowed => plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
        };
        if let Some(id) = header(response.headers(), HEADER) {
            self.transports.own(id, principal);
        }
        let streams = header(response.headers(), CONTENT_TYPE.as_str()) == Some("text/event-stream");
        response.map(|body| Answered {
            body,
            delivery,
            silence: streams.then(|| Box::pin(sleep(KEEP_ALIVE))),
        })
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn route(features: Features<'_>) -> Route {
    match (features.method, features.session) {
        (_, Some(Standing::Foreign | Standing::Deleted)) => Route::NoSession,
        (_, Some(Standing::Live)) => Route::Sessions,
        // One SDK takes only 405 for "no stream here" and throws on anything else.
        (&Method::GET, None) => Route::NotAllowed,
        (&Method::GET | &Method::DELETE, Some(Standing::Unknown)) => Route::NoSession,
        (&Method::POST, None | Some(Standing::Unknown)) if features.modern || opens(features.body) => {
            Route::Sessions
        }
        // Without an id, or with one that nobody knows any more: clients that never initialize again are served.
        (&Method::POST, None | Some(Standing::Unknown)) => Route::Stateless,
        (_, None | Some(Standing::Unknown)) => Route::Sessions,
    }
}

/// Whether a message needs no session: it begins one, or it is of the era that has none. What cannot be read is
/// left to the service that says so.
fn opens(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow, default)]
        method: Option<std::borrow::Cow<'a, str>>,
        #[serde(default)]
        params: Option<Params>,
    }
    #[derive(Deserialize)]
    struct Params {
        #[serde(rename = "_meta", default)]
        meta: Option<Meta>,
    }
    #[derive(Deserialize)]
    struct Meta {
        #[serde(rename = "io.modelcontextprotocol/protocolVersion", default)]
        version: Option<serde::de::IgnoredAny>,
    }
    let Ok(message) = serde_json::from_slice::<Message<'_>>(body) else {
        return true;
    };
    let named = message
        .params
        .and_then(|params| params.meta)
        .and_then(|meta| meta.version);
    named.is_some() || matches!(message.method.as_deref(), Some("initialize" | "server/discover"))
}

pub(super) fn plain(status: StatusCode, text: &'static str) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *response.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .insert(ALLOW, http::HeaderValue::from_static("POST"));
    }
    response
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").finish_non_exhaustive()
    }
}

/// A response's body. Once its end has been asked for, all before it is written out, and the news in it is told.
#[derive(Debug)]
pub struct Answered {
    body: BoxBody<Bytes, Infallible>,
    delivery: Delivery,
    /// Until the next comment, in a stream of events.
    silence: Option<Pin<Box<Sleep>>>,
}

impl Body for Answered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let frame = match (polled, &mut self.silence) {
            (Poll::Ready(frame), _) => frame,
            (Poll::Pending, None) => return Poll::Pending,
            (Poll::Pending, Some(silence)) => {
                ready!(silence.as_mut().poll(context));
                Some(Ok(Frame::data(Bytes::from_static(COMMENT))))
            }
        };
        if frame.is_none() {
            self.delivery.arrived();
        }
        if let Some(silence) = &mut self.silence {
            silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        }
        Poll::Ready(frame)
    }

    /// Never, so that the end is always asked for.
    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_goes_to_the_service_that_can_serve_it() {
        const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
        const INIT: &str =
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
        const META: &str = r#"{"id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        use Standing::{Deleted, Foreign, Live, Unknown};
        for (method, modern, session, body, expected) in [
            (Method::POST, false, Some(Live), CALL, Route::Sessions),
            (Method::POST, false, None, INIT, Route::Sessions),
            (Method::POST, false, None, META, Route::Sessions),
            (Method::POST, true, None, CALL, Route::Sessions),
            (Method::POST, true, Some(Unknown), CALL, Route::Sessions),
            (Method::POST, false, None, CALL, Route::Stateless),
            (Method::POST, false, Some(Unknown), CALL, Route::Stateless),
            (Method::POST, false, Some(Unknown), INIT, Route::Sessions),
            (Method::POST, false, Some(Deleted), CALL, Route::NoSession),
            (Method::POST, false, Some(Foreign), CALL, Route::NoSession),
            (Method::POST, false, None, "not json", Route::Sessions),
            (Method::GET, false, None, "", Route::NotAllowed),
            (Method::GET, false, Some(Live), "", Route::Sessions),
            (Method::GET, false, Some(Unknown), "", Route::NoSession),
            (Method::DELETE, false, Some(Live), "", Route::Sessions),
            (Method::DELETE, false, Some(Foreign), "", Route::NoSession),
            (Method::DELETE, false, Some(Unknown), "", Route::NoSession),
            (Method::DELETE, false, None, "", Route::Sessions),
            (Method::PUT, false, None, "", Route::Sessions),
        ] {
            let features = Features {
                method: &method,
                modern,
                session,
                body: body.as_bytes(),
            };
            assert_eq!(route(features), expected, "{features:?}");
        }
    }
}
