//! The gate in front of the routes: puts who calls into each request, and says in each protocol's way who does not.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use tokio::time::Instant;

use super::{metadata, pools};
use crate::{
    auth::{
        Denied, Gate, Identity, Scope,
        gate::{self, Refusal},
    },
    config::Config,
    conversation::{Principal, hex},
    mcp,
    metrics::Metrics,
    rest::fault::{Code, Fault},
};

/// Between two lines of the log about requests that are not let in: a flood of them must not be one of the log.
const QUIET: Duration = Duration::from_secs(10);

/// Asks whoever comes.
#[derive(Debug)]
pub(super) struct Doorman {
    gate: Arc<Gate>,
    config: Arc<Config>,
    metrics: Metrics,
    refused: AtomicU64,
    told: Mutex<Option<Instant>>,
}

/// Who reads a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// A client of the data plane.
    Rest,
    /// Any other.
    Plain,
}

impl Reader {
    fn of(path: &str) -> Self {
        if path.starts_with("/pools/") || path.starts_with("/subscriptions/") {
            Self::Rest
        } else {
            Self::Plain
        }
    }
}

impl Doorman {
    pub(super) fn new(gate: Arc<Gate>, config: Arc<Config>, metrics: Metrics) -> Self {
        Self {
            gate,
            config,
            metrics,
            refused: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }

    /// Counts a refusal, and logs how many there were, now and then. What was presented is in no log.
    fn note(&self, refusal: Refusal) {
        self.metrics.refused(refusal);
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|last| last.elapsed() >= QUIET) {
            *told = Some(Instant::now());
            let requests = self.refused.swap(0, Ordering::Relaxed);
            tracing::warn!(%refusal, requests, "requests were not let in");
        }
    }
}

/// Lets a request in as somebody, or answers 401. Its credential goes no further.
pub(super) async fn authenticate(
    State(doorman): State<Arc<Doorman>>,
    mut request: Request,
    next: Next,
) -> Response {
    match doorman.gate.admit(request.headers(), SystemTime::now()).await {
        Ok(identity) => {
            tracing::Span::current().record("caller", tracing::field::display(&identity.principal));
            gate::strip(request.headers_mut());
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(refusal) => {
            doorman.note(refusal);
            unauthorized(&doorman.config, request.headers(), request.uri().path(), refusal)
        }
    }
}

fn unauthorized(config: &Config, headers: &HeaderMap, path: &str, refusal: Refusal) -> Response {
    let mut response = match Reader::of(path) {
        Reader::Rest => {
            let fault = Fault::new(Code::Unauthorized, refusal.to_string());
            pools::envelope(&fault, &hex(&rand::random::<[u8; 8]>()))
        }
        Reader::Plain => (StatusCode::UNAUTHORIZED, format!("Unauthorized: {refusal}\n")).into_response(),
    };
    let challenge = metadata::challenge(config, headers, path, refusal)
        .unwrap_or(HeaderValue::from_static("Bearer realm=\"greenroom\""));
    let headers = response.headers_mut();
    headers.insert(header::WWW_AUTHENTICATE, challenge);
    // Nobody keeps it for the one who comes with a better credential.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 403 for a token whose scopes do not reach for what its message asks, as MCP's authorization has it: the client can
/// go and ask its authorization server for more. The holder of a key cannot, and its model is told by the tool.
pub(super) fn insufficient(
    config: &Config,
    identity: &Identity,
    request: &http::Request<Bytes>,
) -> Option<Response> {
    let scope = mcp::needed(request.body())?;
    let denied @ Denied::Scope(_) = identity.may(scope).err()? else {
        return None;
    };
    let mut response = (StatusCode::FORBIDDEN, format!("Forbidden: {denied}\n")).into_response();
    let challenge = lacking(config, identity, request.headers(), request.uri().path(), scope)?;
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    Some(response)
}

/// What tells a client which scope to ask its authorization server for; `None` where there is none to ask.
pub(super) fn lacking(
    config: &Config,
    identity: &Identity,
    headers: &HeaderMap,
    path: &str,
    scope: Scope,
) -> Option<HeaderValue> {
    let Principal::Subject { .. } = identity.principal else {
        return None;
    };
    metadata::insufficient(config, headers, path, scope)
}
