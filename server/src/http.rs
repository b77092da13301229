//! HTTP: listener, limits, who may talk to it, health, metrics. The only place that names `axum`.
//!
//! ```text
//! listener (connections, headers in time) ─▶ guard (Host, Origin) ┬▶ auth (who calls) ─▶ /mcp /sse /messages /metrics
//!                                                                 │                  └▶ /pools: the data plane of Azure's sessions
//!                                                                 ├▶ /healthz · /readyz
//!                                                                 └▶ /files: links, each its own permission
//! ```

mod auth;
mod body;
mod carried;
mod crowd;
mod guard;
mod links;
mod listener;
mod metadata;
mod pools;
mod tls;

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{self, any, get},
};
use tracing::Instrument as _;

use self::{
    auth::{Doorman, authenticate},
    body::Bodies,
    guard::Guard,
};
pub use self::{
    links::door,
    listener::{BindError, Http, Served},
    pools::Rest,
    tls::TlsError,
};
use crate::{
    auth::{Gate, Identity, Scope},
    config::Config,
    forward::Origin,
    links::Links,
    mcp::{Endpoint, Sse},
    metrics::Metrics,
    pool::Readiness,
};

/// By what scheme a request came: said by a proxy in front, or by us where TLS ends here.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What HTTP serves.
#[derive(Clone, Debug)]
pub struct App {
    /// Who is let in.
    pub gate: Arc<Gate>,
    /// `/mcp`.
    pub endpoint: Endpoint,
    /// `/sse` and `/messages`, if they are served.
    pub sse: Option<Sse>,
    /// `/files`.
    pub links: Links,
    /// `/pools`.
    pub rest: Rest,
    /// `/metrics`.
    pub metrics: Metrics,
}

#[derive(Clone)]
struct Shared {
    app: Arc<App>,
    bodies: Bodies,
    config: Arc<Config>,
}

/// Every route, behind the checks that all of them share.
fn router(app: App, config: &Config, address: SocketAddr) -> Router {
    let apart = config.http.forward_listen.map(|address| address.port());
    let guard = Arc::new(Guard::new(&config.http, address).shunning(apart));
    let links = links::routes(app.links.clone());
    let shared = Shared {
        app: Arc::new(app),
        bodies: Bodies::new(&config.limits),
        config: Arc::new(config.clone()),
    };
    let doorman = Doorman::new(
        Arc::clone(&shared.app.gate),
        Arc::clone(&shared.config),
        shared.app.metrics.clone(),
    );
    let asked = middleware::from_fn_with_state(Arc::new(doorman), authenticate);
    let router = Router::new()
        .route("/mcp", any(mcp))
        .route("/metrics", get(metrics));
    let router = match &shared.app.sse {
        Some(sse) => router.merge(sse_routes(sse)),
        None => router,
    };
    let pools = pools::routes(shared.app.rest.clone(), shared.bodies.clone());
    router
        .route_layer(asked.clone())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(openapi))
        .merge(metadata::routes())
        .fallback(|| async { (StatusCode::NOT_FOUND, "Not Found: MCP is at /mcp\n") })
        .with_state(shared)
        .merge(pools.route_layer(asked))
        .merge(links)
        .layer(middleware::from_fn_with_state(config.http.tls.is_some(), arrive))
        .layer(middleware::from_fn_with_state(guard, check))
        .layer(middleware::from_fn(trace))
}

/// Forwarded programs on an origin of their own, behind the same checks, and nothing else.
fn apart(app: &App, config: &Config, address: SocketAddr) -> Router {
    let guard = Arc::new(Guard::new(&config.http, address));
    let doorman = Doorman::new(
        Arc::clone(&app.gate),
        Arc::new(config.clone()),
        app.metrics.clone(),
    );
    pools::routes(app.rest.clone(), Bodies::new(&config.limits))
        .route_layer(middleware::from_fn_with_state(Arc::new(doorman), authenticate))
        .layer(Extension(Origin::Own))
        .layer(middleware::from_fn_with_state(config.http.tls.is_some(), arrive))
        .layer(middleware::from_fn_with_state(guard, check))
        .layer(middleware::from_fn(trace))
}

/// What the data plane is, for generators of clients. Nobody's secret: it is in the repository.
async fn openapi() -> Response {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", crate::rest::openapi::document()));
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, DOCUMENT.as_str()).into_response()
}

/// Where TLS ends here nobody else can say how a request came.
async fn arrive(State(is_tls): State<bool>, mut request: Request, next: Next) -> Response {
    if is_tls {
        let https = HeaderValue::from_static("https");
        request.headers_mut().insert(FORWARDED_PROTO, https);
    }
    next.run(request).await
}

/// Gives each request an id, which the log and the answer carry.
async fn trace(request: Request, next: Next) -> Response {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    let id = format!("{:016x}", rand::random::<u64>());
    // The rest of a link is a secret, and names of files are nobody's business.
    let path = match request.uri().path() {
        path if path.starts_with("/files/") => "/files",
        path if path.starts_with("/pools/") => "/pools",
        path if path.starts_with("/subscriptions/") => "/subscriptions",
        path => path,
    };
    let caller = tracing::field::Empty;
    let span = tracing::info_span!("http", id, method = %request.method(), path, caller);
    let mut response = next.run(request).instrument(span).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// A web page must not reach a server on its reader's machine: who asks is checked on every route.
async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    match guard.check(request.uri(), request.headers()) {
        Ok(came) => {
            request.extensions_mut().insert(came);
            next.run(request).await
        }
        Err(refusal) => {
            tracing::warn!(%refusal, "refused");
            (StatusCode::FORBIDDEN, format!("Forbidden: {refusal}\n")).into_response()
        }
    }
}

async fn mcp(
    State(shared): State<Shared>,
    Extension(identity): Extension<Identity>,
    request: Request,
) -> Response {
    let (request, _budget) = match shared.bodies.read(request).await {
        Ok(read) => read,
        Err(refusal) => return (refusal.status(), format!("{refusal}\n")).into_response(),
    };
    if let Some(refused) = auth::insufficient(&shared.config, &identity, &request) {
        return refused;
    }
    shared
        .app
        .endpoint
        .handle(request, &identity)
        .await
        .map(Body::new)
}

/// HTTP+SSE of 2024-11-05, behind the same checks.
fn sse_routes(sse: &Sse) -> Router<Shared> {
    let (streams, messages) = (sse.clone(), sse.clone());
    let open =
        move |Extension(identity): Extension<Identity>| async move { streams.open(&identity).map(Body::new) };
    let post = move |State(shared): State<Shared>,
                     Extension(identity): Extension<Identity>,
                     request: Request| async move {
        match shared.bodies.read(request).await {
            Ok((request, _budget)) => match auth::insufficient(&shared.config, &identity, &request) {
                Some(refused) => refused,
                None => messages.post(request, &identity).await.map(Body::new),
            },
            Err(refusal) => (refusal.status(), format!("{refusal}\n")).into_response(),
        }
    };
    Router::new()
        .route("/sse", get(open))
        .route("/messages", routing::post(post))
}

/// Whether a claim would be granted or booted now, pool by pool.
async fn readyz(State(shared): State<Shared>) -> Response {
    let mut status = StatusCode::OK;
    let mut text = String::new();
    for pool in shared.app.links.sessions().pools() {
        match pool.readiness() {
            Readiness::Ready => text.push_str(&format!("{}: ready\n", pool.spec().name())),
            Readiness::Unready(why) => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                text.push_str(&format!("{}: not ready: {why}\n", pool.spec().name()));
            }
        }
    }
    (status, text).into_response()
}

async fn metrics(State(shared): State<Shared>, Extension(identity): Extension<Identity>) -> Response {
    // They tell of every pool and of everybody's calls.
    if let Err(denied) = identity.may(Scope::Admin) {
        return (StatusCode::FORBIDDEN, format!("Forbidden: {denied}\n")).into_response();
    }
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let pools = shared.app.links.sessions().pools();
    let counted = pools
        .iter()
        .map(|pool| (pool.spec().name(), pool.census().borrow().clone()));
    let text = shared.app.metrics.render(counted);
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
