//! `/mcp`: streamable HTTP for both eras of the protocol on one address.
//!
//! rmcp serves sessions or statelessness, and is strict about either; clients omit, forget and renew session ids.
//! So two services stand side by side over the same tools, and each request goes to the one that can serve it.

mod body;

use std::{convert::Infallible, future::ready, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use rmcp::{
    ServerHandler,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService,
        session::{SessionManager, never::NeverSessionManager},
    },
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use self::body::Answered;
pub(super) use self::body::{COMMENT, KEEP_ALIVE, event_stream};
use super::{
    caller::Delivery,
    service::{Door, Service},
    tools::Tools,
    transports::{HEADER, Standing, Transports},
};
use crate::auth::Identity;

const VERSION_HEADER: &str = "mcp-protocol-version";

/// The era without `initialize` and sessions.
const MODERN: &str = "2026-07-28";

/// The endpoint. Clones share it.
#[derive(Clone)]
pub struct Endpoint {
    with_sessions: Serving,
    stateless: Serving,
    transports: Arc<Transports>,
}

type Served = Response<BoxBody<Bytes, Infallible>>;

/// One of rmcp's services, whatever handler it has.
type Serving = Arc<dyn Fn(Request<Full<Bytes>>) -> Answering + Send + Sync>;

/// An answer on its way.
type Answering = Pin<Box<dyn Future<Output = Served> + Send>>;

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
    pub async fn handle(&self, mut request: Request<Bytes>, identity: &Identity) -> Response<Answered> {
        let session =
            header(request.headers(), HEADER).map(|id| self.transports.standing(id, &identity.principal));
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
            self.transports.delete(id, &identity.principal);
        }
        if session == Some(Standing::Unknown) {
            self.transports.forget(&mut request);
        }
        let sent = claims_json(request.headers()).then(|| request.body().clone());
        let delivery = Delivery::default();
        request.extensions_mut().insert(delivery.clone());
        request.extensions_mut().insert(identity.clone());
        let request = request.map(Full::new);
        let mut answering = match route {
            Route::Sessions => (self.with_sessions)(request),
            Route::Stateless => (self.stateless)(request),
            Route::NoSession => Box::pin(ready(plain(
                StatusCode::NOT_FOUND,
                "Not Found: Session not found",
            ))),
            Route::NotAllowed => Box::pin(ready(plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))),
        };
        // Modern calls without progress say nothing at all until they are answered, not even that they were received.
        let response = tokio::select! {
            biased;
            response = &mut answering => response,
            () = sleep(KEEP_ALIVE) => return Answered::late(answering, delivery),
        };
        // What rmcp calls an unsupported media type although it says that it is JSON.
        let response = match sent {
            Some(body) if response.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE => no_message(&body),
            _ => response,
        };
        if let Some(id) = header(response.headers(), HEADER) {
            self.transports.own(id, &identity.principal);
        }
        Answered::prompt(response, delivery)
    }
}

/// A header's text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn route(features: Features<'_>) -> Route {
    match (features.method, features.session) {
        (_, Some(Standing::Deleted)) => Route::NoSession,
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

fn claims_json(headers: &HeaderMap) -> bool {
    header(headers, CONTENT_TYPE.as_str()).is_some_and(|kind| kind.starts_with("application/json"))
}

/// The answer to a body that is no message: no JSON, or JSON that says nothing.
fn no_message(body: &[u8]) -> Served {
    let error = match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
        Err(error) => {
            json!({ "code": -32700, "message": format!("Parse error: the body is no JSON: {error}") })
        }
        Ok(_) => json!({ "code": -32600, "message": "Invalid Request: the body is no JSON-RPC message" }),
    };
    let text = json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string();
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_goes_to_the_service_that_can_serve_it() {
        const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
        const INIT: &str =
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#;
        const META: &str = r#"{"id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        use Standing::{Deleted, Live, Unknown};
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
            (Method::POST, false, None, "not json", Route::Sessions),
            (Method::GET, false, None, "", Route::NotAllowed),
            (Method::GET, false, Some(Live), "", Route::Sessions),
            (Method::GET, false, Some(Unknown), "", Route::NoSession),
            (Method::DELETE, false, Some(Live), "", Route::Sessions),
            (Method::DELETE, false, Some(Deleted), "", Route::NoSession),
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
