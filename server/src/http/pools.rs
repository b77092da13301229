//! `/pools/{pool}/…`: programs that speak the data plane of Azure's dynamic sessions, over the sessions of MCP.
//!
//! ```text
//! rest::address ─▶ gate: pool, identifier → session key, a place among the calls in flight
//!                    ├▶ executions   run, follow, answer
//!                    ├▶ polls        looked at again, also one whose sandbox is gone (accepted)
//!                    ├▶ files        list, describe, read, write, delete
//!                    └▶ sessions     what there is, and its end; what a pool is; a container's log
//! a container's own ─▶ forward       into its sandbox and back
//! answer ─▶ carried: its news are told once it was written out
//! ```
//! The identifier is the conversation: the same one over MCP, with the same principal, is the same session.

mod accepted;
mod call;
mod executions;
mod files;
mod form;
mod forward;
mod polls;
mod roll;
mod sessions;
mod stream;

use std::{fmt, sync::Arc, time::SystemTime};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
    routing::any,
};
use tokio::time::Instant;

use self::{
    accepted::Accepted,
    call::{Answer, Call, Offered},
    forward::Target,
    roll::Roll,
};
use super::{
    auth,
    body::{self, Bodies},
    carried::Carried,
    guard::Came,
    metadata::origin,
};
use crate::{
    auth::{Identity, Scope},
    config::{Config, Offers},
    conversation::{Secret, hex},
    delivery::{Delivery, Freight},
    forward::{Forward, Origin},
    metrics::Metrics,
    places::Places,
    rest::{
        address::{self, Address, Below, Operation},
        ask::Ask,
        fault::{Code, Fault},
    },
    sessions::Sessions,
};

const JSON: &str = "application/json; charset=utf-8";
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");
const OVERALL: HeaderName = HeaderName::from_static("x-ms-overall-execution-time");
const VERSIONS: HeaderName = HeaderName::from_static("api-supported-versions");

/// What the data plane needs. Clones share it.
#[derive(Clone)]
pub struct Rest {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<Config>,
    offers: Offers,
    secret: Secret,
    sessions: Sessions,
    metrics: Metrics,
    /// The same places as MCP's.
    in_flight: Places,
    roll: Roll,
    accepted: Accepted,
    forward: Forward,
    started: SystemTime,
}

impl Rest {
    /// The data plane over these sessions. Its calls take places among those in flight.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        offers: Offers,
        secret: Secret,
        sessions: Sessions,
        metrics: Metrics,
        in_flight: Places,
    ) -> Self {
        let started = SystemTime::now();
        let (roll, accepted) = (Roll::default(), Accepted::default());
        let forward = Forward::new(config.limits.connections);
        Self {
            shared: Arc::new(Shared {
                config,
                offers,
                secret,
                sessions,
                metrics,
                in_flight,
                roll,
                accepted,
                forward,
                started,
            }),
        }
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Front {
    rest: Rest,
    bodies: Bodies,
}

/// The routes. Paths are read raw, so that an escaped slash in a file's name is not one in the path.
pub(super) fn routes(rest: Rest, bodies: Bodies) -> Router {
    Router::new()
        .route("/pools/{*rest}", any(serve))
        .route("/subscriptions/{*rest}", any(serve))
        .with_state(Front { rest, bodies })
}

/// What a request below a pool's address is, before its operation is read.
enum Kind {
    /// An operation of the data plane.
    Operation,
    /// For the container's own program.
    Forward(Target),
    /// A raw stream to a port.
    Tunnel,
}

async fn serve(
    State(front): State<Front>,
    Extension(identity): Extension<Identity>,
    request: Request,
) -> Response {
    match kind(&front.rest, &request) {
        // Any page may lead to a container's program, and to nothing else.
        Kind::Operation | Kind::Tunnel if came(&request) != Came::Itself => {
            let text = "a page of another site asks, which is not allowed (http.allowed_origins)";
            refusal(&Fault::new(Code::Forbidden, text))
        }
        // What is served there must not reach what only Greenroom's own origin may.
        Kind::Operation if request.extensions().get() == Some(&Origin::Own) => {
            let text = "this address is for the programs of containers only";
            refusal(&Fault::new(Code::NotSupported, text))
        }
        Kind::Operation => operate(&front, &identity, request).await,
        Kind::Forward(target) => pass_on(&front.rest, &identity, request, Some(target)).await,
        Kind::Tunnel => pass_on(&front.rest, &identity, request, None).await,
    }
}

/// What the guard says of it, who lets nothing through unsaid.
fn came(request: &Request) -> Came {
    request.extensions().get().copied().unwrap_or(Came::Embedded)
}

fn kind(rest: &Rest, request: &Request) -> Kind {
    let Some(below) = Below::read(request.uri().path()) else {
        return Kind::Operation;
    };
    if below.tunnel().is_some() && forward::wants_tunnel(request.method(), request.headers()) {
        return Kind::Tunnel;
    }
    let is_container = rest
        .pool(&below.pool)
        .is_ok_and(|pool| pool.config.container().is_some());
    if !is_container || below.first() == ".management" {
        return Kind::Operation;
    }
    let mut target = below.rest.to_owned();
    if !target.starts_with('/') {
        target.insert(0, '/');
    }
    if let Some(query) = request.uri().query() {
        target = target + "?" + query;
    }
    match target.parse() {
        Ok(uri) => Kind::Forward(Target {
            uri,
            prefix: below.prefix.to_owned(),
            // The second listener says so.
            origin: request.extensions().get().copied().unwrap_or(Origin::Shared),
        }),
        Err(_) => Kind::Operation,
    }
}

/// Forwards a request, or opens a raw stream. It takes a place among those that are forwarded, not among the calls: it
/// may last for as long as its program likes.
async fn pass_on(rest: &Rest, identity: &Identity, request: Request, target: Option<Target>) -> Response {
    let started = Instant::now();
    let _counted = rest.shared.metrics.call_begins();
    let delivery = Delivery::default();
    let operation = if target.is_some() { "forward" } else { "tunnel" };
    let headers = request.headers().clone();
    let outcome = passed_on(rest, identity, request, target, &delivery).await;
    let (response, news, session) = match outcome {
        Ok(answer) => (answer.response, answer.owed, answer.session),
        Err(fault) => (refused(rest, identity, &headers, &fault), None, "none"),
    };
    let took = started.elapsed();
    rest.shared.metrics.call_ended(operation, session, took);
    let (status, millis) = (response.status().as_u16(), took.as_millis());
    tracing::info!(operation, session, status, millis, "answered");
    delivery.carry(Freight {
        news,
        ..Freight::default()
    });
    response.map(|body| Carried::body(body, delivery))
}

async fn passed_on(
    rest: &Rest,
    identity: &Identity,
    request: Request,
    target: Option<Target>,
    delivery: &Delivery,
) -> Result<Answer, Fault> {
    let uri = request.uri().clone();
    let below =
        Below::read(uri.path()).ok_or_else(|| Fault::new(Code::PoolNotFound, "there is no such pool"))?;
    identity.may_use(&below.pool)?;
    identity.may(Scope::Run)?;
    let pool = rest.pool(&below.pool)?;
    let identifier = address::identifier_in(uri.query().unwrap_or_default())?;
    let address = Arc::new(Address::forwarded(&below.pool));
    let call = rest.call(pool, &identity.principal, identifier.as_deref(), &address)?;
    // Of such requests a page can send any number. One whose session ends right now finds the next sandbox, no more.
    if came(&request) == Came::Embedded && call.look().await?.is_none() {
        let text = "what a page of another site embeds reaches a session that is there, and makes none";
        return Err(Fault::new(Code::Forbidden, text));
    }
    match (target, call.pool.container(), below.tunnel()) {
        (Some(target), Some(container), _) => {
            forward::forward(&call, container, target, request, delivery).await
        }
        (None, _, Some(port)) => forward::tunnel(&call, port, request).await,
        _ => Err(Fault::new(Code::NotSupported, "there is no such request")),
    }
}

async fn operate(front: &Front, identity: &Identity, request: Request) -> Response {
    let started = Instant::now();
    let shared = &front.rest.shared;
    let _counted = shared.metrics.call_begins();
    let place = shared.in_flight.take(&identity.principal);
    let delivery = Delivery::default();
    let headers = request.headers().clone();
    let address = Address::read(
        request.method().as_str(),
        request.uri().path(),
        request.uri().query(),
    );
    let operation = address
        .as_ref()
        .map_or("rest", |address| name(&address.operation));
    let outcome = match (&place, address) {
        (Err(full), _) => Err(Fault::new(
            Code::TooManyRequests,
            format!("{full} (limits.calls)"),
        )),
        (_, Err(fault)) => Err(fault),
        (Ok(_), Ok(address)) => answer(front, identity, address, (request, &headers), &delivery).await,
    };
    let (mut response, news, session) = match outcome {
        Ok(answer) => (answer.response, answer.owed, answer.session),
        Err(fault) => (refused(&front.rest, identity, &headers, &fault), None, "none"),
    };
    let took = started.elapsed();
    shared.metrics.call_ended(operation, session, took);
    let (status, millis) = (response.status().as_u16(), took.as_millis());
    tracing::info!(operation, session, status, millis, "answered");
    let headers = response.headers_mut();
    headers.insert(VERSIONS, HeaderValue::from_static(address::VERSIONS));
    put(headers, OVERALL, &millis.to_string());
    delivery.carry(Freight {
        news,
        in_flight: place.ok(),
        ..Freight::default()
    });
    response.map(|body| Carried::body(body, delivery))
}

/// What metrics call an operation.
const fn name(operation: &Operation) -> &'static str {
    match operation {
        Operation::Execute => "rest execute",
        Operation::Poll(_) => "rest poll",
        Operation::Upload | Operation::Put(_) => "rest upload",
        Operation::List => "rest list",
        Operation::Describe(_) => "rest describe",
        Operation::Download(_) => "rest download",
        Operation::Delete(_) => "rest delete",
        Operation::Session | Operation::Sessions => "rest session",
        Operation::EndSession | Operation::StopSession => "rest end",
        Operation::Pool => "rest pool",
        Operation::Log => "rest log",
    }
}

async fn answer(
    front: &Front,
    identity: &Identity,
    address: Address,
    (request, headers): (Request, &HeaderMap),
    delivery: &Delivery,
) -> Result<Answer, Fault> {
    let rest = &front.rest;
    // First of all: who may not use a pool does not even hear whether there is one.
    identity.may_use(&address.pool)?;
    if let Some(scope) = address.operation.scope() {
        identity.may(scope)?;
    }
    let principal = &identity.principal;
    let pool = rest.pool(&address.pool)?;
    let address = Arc::new(address);
    let named = || {
        rest.call(
            pool.clone(),
            principal,
            address.query.identifier.as_deref(),
            &address,
        )
    };
    match &address.operation {
        Operation::Execute => {
            // Its identifier may stand in the body only.
            let (request, _room) = front.bodies.read(request).await.map_err(unread)?;
            let ask = Ask::read(request.body())?;
            let identifier = address.query.identifier.as_deref().or(ask.identifier.as_deref());
            let call = rest.call(pool.clone(), principal, identifier, &address)?;
            executions::execute(&call, ask, headers, delivery).await
        }
        Operation::Poll(id) => polls::poll(&named()?, id, headers, delivery).await,
        Operation::Upload => files::upload(&named()?, request).await,
        Operation::Put(path) => files::put(&named()?, path, request).await,
        Operation::List => files::list(&named()?).await,
        Operation::Describe(path) => files::describe(&named()?, path).await,
        Operation::Download(path) => files::download(&named()?, path, headers).await,
        Operation::Delete(path) => files::delete(&named()?, path).await,
        Operation::Session => sessions::show(&named()?).await,
        Operation::EndSession | Operation::StopSession => sessions::end(&named()?).await,
        Operation::Sessions => {
            let base = base(rest, headers, &address.pool);
            sessions::list(rest, &pool.name, principal, &address, &base).await
        }
        Operation::Log => sessions::log(&named()?).await,
        Operation::Pool => sessions::pool(rest, &pool, principal).await,
    }
}

/// The pool's address as its caller reaches it.
fn base(rest: &Rest, headers: &HeaderMap, pool: &str) -> String {
    let origin = origin(&rest.shared.config, headers);
    format!("{origin}/pools/{pool}")
}

fn unread(refusal: body::Refusal) -> Fault {
    let code = match refusal {
        body::Refusal::TooLarge(_) => Code::TooLarge,
        body::Refusal::TooSlow => Code::RequestTimeout,
        body::Refusal::NoRoom(_) => Code::SandboxUnavailable,
        body::Refusal::Broken => Code::ValidationFailed,
    };
    Fault::new(code, refusal.to_string())
}

fn json(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

fn refusal(fault: &Fault) -> Response {
    let trace = hex(&rand::random::<[u8; 8]>());
    tracing::info!(code = fault.code.as_str(), trace, "refused");
    envelope(fault, &trace)
}

/// The same to somebody who is known: who lacks a scope is told how to get it, if there is a way.
fn refused(rest: &Rest, identity: &Identity, asked: &HeaderMap, fault: &Fault) -> Response {
    let mut response = refusal(fault);
    let config = &rest.shared.config;
    let challenge = fault
        .lacks
        .and_then(|scope| auth::lacking(config, identity, asked, "/pools", scope));
    if let Some(challenge) = challenge {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

/// What the data plane's clients read of a fault.
pub(super) fn envelope(fault: &Fault, trace: &str) -> Response {
    let mut response = json(fault.envelope(trace).to_string());
    *response.status_mut() = StatusCode::from_u16(fault.code.status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(ERROR_CODE, HeaderValue::from_static(fault.code.as_str()));
    if let Some(seconds) = fault.code.retry_after() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(size) = fault.size {
        put(headers, header::CONTENT_RANGE, &format!("bytes */{size}"));
    }
    response
}

/// Sets a header, if it can be one.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
