//! RFC 9728: what a client learns of the authorization servers whose tokens are good here, and how it is told that a
//! token is missing, bad, or not enough.

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use super::Shared;
use crate::{
    auth::{Scope, gate::Refusal},
    config::Config,
};

/// Where the metadata of a resource is, before the resource's own path.
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The resources that have some: MCP's clients ask for the one that they were given.
const RESOURCES: [&str; 2] = ["mcp", "sse"];

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route(WELL_KNOWN, get(root))
        .route(&format!("{WELL_KNOWN}/{{resource}}"), get(below))
}

async fn root(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    metadata(&shared, &headers, "")
}

async fn below(State(shared): State<Shared>, Path(resource): Path<String>, headers: HeaderMap) -> Response {
    if RESOURCES.contains(&resource.as_str()) {
        metadata(&shared, &headers, &format!("/{resource}"))
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

fn metadata(shared: &Shared, headers: &HeaderMap, path: &str) -> Response {
    let config = &shared.config;
    if config.auth.issuers.is_empty() {
        return (
            StatusCode::NOT_FOUND,
            "Not Found: there are no authorization servers here\n",
        )
            .into_response();
    }
    let issuers: Vec<&str> = config
        .auth
        .issuers
        .iter()
        .map(|issuer| issuer.issuer.as_str())
        .collect();
    let body = json!({
        "resource": format!("{}{path}", origin(config, headers)),
        "resource_name": "Greenroom",
        "authorization_servers": issuers,
        "scopes_supported": names(config, &Scope::ALL),
        "bearer_methods_supported": ["header"],
    });
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        // It names the host by which it was asked for.
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, body.to_string()).into_response()
}

/// What this server's issuers call these scopes.
fn names(config: &Config, scopes: &[Scope]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for issuer in &config.auth.issuers {
        for (_, called) in issuer.names.iter().filter(|(scope, _)| scopes.contains(scope)) {
            names.extend(
                called
                    .iter()
                    .filter(|name| !names.contains(name))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
    }
    names
}

/// How the server is reached: as configured, else by the name that the request has, which was checked.
pub(super) fn origin(config: &Config, headers: &HeaderMap) -> String {
    if let Some(url) = &config.links.url {
        return url.trim_end_matches('/').to_owned();
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = match text("x-forwarded-proto") {
        Some("https") => "https",
        _ => "http",
    };
    match text("host") {
        Some(host) => format!("{scheme}://{host}"),
        None => format!("{scheme}://{}", config.listen),
    }
}

/// `WWW-Authenticate` of a 401.
pub(super) fn challenge(
    config: &Config,
    headers: &HeaderMap,
    path: &str,
    refusal: Refusal,
) -> Option<HeaderValue> {
    let error = match refusal {
        Refusal::Missing => "",
        Refusal::Bad => ", error=\"invalid_token\"",
    };
    let wanted = names(config, &[Scope::Run, Scope::Files]);
    header_of(config, headers, path, &wanted, error)
}

/// `WWW-Authenticate` of a 403, which tells a client what to ask its authorization server for.
pub(super) fn insufficient(
    config: &Config,
    headers: &HeaderMap,
    path: &str,
    scope: Scope,
) -> Option<HeaderValue> {
    let error = ", error=\"insufficient_scope\"";
    header_of(config, headers, path, &names(config, &[scope]), error)
}

fn header_of(
    config: &Config,
    headers: &HeaderMap,
    path: &str,
    scopes: &[String],
    error: &str,
) -> Option<HeaderValue> {
    let mut text = format!("Bearer realm=\"greenroom\"{error}");
    if !config.auth.issuers.is_empty() {
        let resource = match path {
            "/mcp" => "/mcp",
            "/sse" | "/messages" => "/sse",
            _ => "",
        };
        let origin = origin(config, headers);
        text += &format!(
            ", resource_metadata=\"{origin}{WELL_KNOWN}{resource}\", scope=\"{}\"",
            scopes.join(" ")
        );
    }
    HeaderValue::from_str(&text).ok()
}
