//! Files by links: downloads in ranges, uploads as they stream, and a page to drop a file on.
//!
//! What comes out of a sandbox is hostile: it is sent as an attachment of no type, for no page to embed or run.
//! The link itself is the right to use it, so nobody is asked who he is.

mod page;
mod range;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::{StreamExt as _, TryStreamExt as _, future::BoxFuture};
use greenroom_protocol::{FileEntry, FileKind, Refusal, RefusalKind};
use http_body_util::{LengthLimitError, Limited};
use tokio::time::Instant;

pub(super) use self::range::wanted;
use super::{guard::Guard, listener::serve_on_loopback};
use crate::{
    config::{HttpConfig, Size},
    guest::{Depth, Guest, GuestError, Upload},
    links::{BadLink, Good, Grant, Links},
    sessions::OpenError,
};

/// What such a file may do where a browser shows it all the same: nothing.
pub(super) const SANDBOX: &str = "sandbox; default-src 'none'; frame-ancestors 'none'";

/// Why a link does not do what it is for. The texts are for a person.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(transparent)]
    Link(#[from] BadLink),
    #[error("the sandbox that this link leads to has ended: ask for a new link")]
    Ended,
    #[error(
        "this link is not for that: one for an upload takes GET and PUT, one for a download GET and HEAD"
    )]
    NotForThis,
    #[error("a file by a link has at most {limit} (limit links.upload)", limit = .0)]
    TooLarge(Size),
    #[error("the range begins at or after the file's end")]
    Range(u64),
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("the sandbox cannot be reached: try again in a moment")]
    Open(#[source] OpenError),
    #[error("the sandbox did not answer as it should: try again in a moment")]
    Guest(#[source] GuestError),
}

impl From<GuestError> for Stop {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Refused(refusal) => Self::Refused(refusal),
            GuestError::Ended(_) => Self::Ended,
            error @ (GuestError::Lost(_)
            | GuestError::Timeout { .. }
            | GuestError::Protocol(_)
            | GuestError::Generation { .. }) => Self::Guest(error),
        }
    }
}

impl IntoResponse for Stop {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Link(BadLink::Forged) => StatusCode::NOT_FOUND,
            Self::Link(BadLink::Expired) | Self::Ended => StatusCode::GONE,
            Self::NotForThis => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Range(_) => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Refused(refusal) => {
                StatusCode::from_u16(refusal.kind.status()).unwrap_or(StatusCode::BAD_GATEWAY)
            }
            Self::Open(error) => {
                tracing::warn!(%error, "a link's session could not be reached");
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Guest(error) => {
                tracing::warn!(%error, "a link's sandbox failed");
                StatusCode::BAD_GATEWAY
            }
        };
        let mut response = (status, format!("{self}\n")).into_response();
        if let Self::Range(size) = self {
            put(
                response.headers_mut(),
                header::CONTENT_RANGE,
                format!("bytes */{size}"),
            );
        }
        response
    }
}

/// The routes of links.
pub(super) fn routes(links: Links) -> Router {
    Router::new()
        .route("/files/{token}/{*path}", any(serve))
        .with_state(links)
}

/// Opens a listener on this machine that serves links and nothing else, until the process ends.
pub fn door(links: Links) -> BoxFuture<'static, io::Result<SocketAddr>> {
    Box::pin(serve_on_loopback(move |address| {
        let config = HttpConfig::default();
        let guard = Arc::new(Guard::new(&config, address));
        routes(links)
            .layer(middleware::from_fn_with_state(guard, super::check))
            .layer(middleware::from_fn(super::trace))
    }))
}

async fn serve(
    State(links): State<Links>,
    Path((token, path)): Path<(String, String)>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let outcome = answer(&links, &token, &path, request).await;
    let status = outcome.as_ref().map_or("refused", |_| "served");
    tracing::info!(%method, status, millis = started.elapsed().as_millis(), "a link was used");
    let mut response = outcome.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(SANDBOX));
    response
}

async fn answer(links: &Links, token: &str, path: &str, request: Request) -> Result<Response, Stop> {
    let grant = links.read(token, path)?;
    match (grant.good, request.method()) {
        (Good::Upload, &Method::PUT) => upload(links, grant, request).await,
        (Good::Upload, &Method::GET | &Method::HEAD) => {
            guest(links, &grant).await?;
            Ok(page::of(path, grant.expires, links.upload_limit()))
        }
        (Good::Download, &Method::GET) => download(links, &grant, request.headers()).await,
        (Good::Download, &Method::HEAD) => {
            let entry = stat(&guest(links, &grant).await?, path).await?;
            let mut response = Response::new(Body::empty());
            describe(response.headers_mut(), &entry, entry.size);
            Ok(response)
        }
        _ => Err(Stop::NotForThis),
    }
}

async fn guest(links: &Links, grant: &Grant) -> Result<Guest, Stop> {
    let session = links.sessions().look_by_name(grant.name.clone()).await;
    Ok(session.map_err(Stop::Open)?.ok_or(Stop::Ended)?.guest)
}

/// What a path leads to, if that is a file.
async fn stat(guest: &Guest, path: &str) -> Result<FileEntry, Stop> {
    let list = guest.list_files(path, Depth::One).await?;
    let entry = list.entries.into_iter().next();
    entry
        .filter(|entry| entry.path == path && entry.kind == FileKind::File)
        .ok_or_else(|| {
            Stop::Refused(Refusal {
                kind: RefusalKind::Conflict,
                message: "there is no file at this link any more, but a folder or something else".to_owned(),
            })
        })
}

async fn download(links: &Links, grant: &Grant, headers: &HeaderMap) -> Result<Response, Stop> {
    let guest = guest(links, grant).await?;
    let entry = stat(&guest, &grant.path).await?;
    let (status, range) = match wanted(headers, &tag(&entry), entry.size) {
        Ok(None) => (StatusCode::OK, 0..entry.size),
        Ok(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Err(()) => return Err(Stop::Range(entry.size)),
    };
    let body = if range.is_empty() {
        Body::empty()
    } else {
        let read = guest.read_file(&grant.path, range.clone()).await?;
        Body::from_stream(read.body.into_stream())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    describe(headers, &entry, range.end - range.start);
    if status == StatusCode::PARTIAL_CONTENT {
        let (first, last) = (range.start, range.end - 1);
        put(
            headers,
            header::CONTENT_RANGE,
            format!("bytes {first}-{last}/{}", entry.size),
        );
    }
    Ok(response)
}

/// The headers of a file.
fn describe(headers: &mut HeaderMap, entry: &FileEntry, length: u64) {
    headers.insert(header::CONTENT_LENGTH, length.into());
    for (name, value) in [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::ACCEPT_RANGES, "bytes"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    put(headers, header::ETAG, tag(entry));
    put(headers, header::CONTENT_DISPOSITION, attachment(&entry.path));
}

/// Another file, or another state of it, has another tag.
pub(super) fn tag(entry: &FileEntry) -> String {
    format!("\"{:x}-{:x}\"", entry.size, entry.modified_ms)
}

/// Saved, never shown, under its own name: once for everybody and once for those who read UTF-8 (RFC 6266).
pub(super) fn attachment(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let plain: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-._ ".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let mut full = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => full.push(byte.into()),
            other => full.push_str(&format!("%{other:02X}")),
        }
    }
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{full}")
}

/// Sets a header whose value was made of what is allowed in one.
fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

async fn upload(links: &Links, grant: Grant, request: Request) -> Result<Response, Stop> {
    let limit = links.upload_limit();
    let said = request.headers().get(header::CONTENT_LENGTH);
    let said = said.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|length| length > limit.bytes()) {
        return Err(Stop::TooLarge(limit));
    }
    let guest = guest(links, &grant).await?;
    let body = Body::new(Limited::new(request.into_body(), limit.as_usize()));
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let body = body.into_data_stream().map_err(move |error| {
        if is_over_limit(&error) {
            seen.store(true, Ordering::Relaxed);
        }
        io::Error::other(error)
    });
    let written = guest
        .write_file_once(&grant.path, &grant.mark, Upload::stream(body.boxed()))
        .await;
    match written {
        Ok(entry) => {
            let text = format!("{} bytes are saved\n", entry.size);
            Ok((StatusCode::CREATED, text).into_response())
        }
        Err(_) if over.load(Ordering::Relaxed) => Err(Stop::TooLarge(limit)),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn is_over_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_saved_as_it_is_and_breaks_no_header() {
        for (path, header) in [
            (
                "a/report 1.csv",
                "attachment; filename=\"report 1.csv\"; filename*=UTF-8''report%201.csv",
            ),
            (
                "x\"\r\nSet-Cookie: a=b",
                "attachment; filename=\"x___Set-Cookie_ a_b\"; filename*=UTF-8''x%22%0D%0ASet-Cookie%3A%20a%3Db",
            ),
            ("ä", "attachment; filename=\"_\"; filename*=UTF-8''%C3%A4"),
        ] {
            assert_eq!(attachment(path), header);
            assert!(HeaderValue::try_from(attachment(path)).is_ok());
        }
    }

    #[test]
    fn every_refusal_has_its_status() {
        let refusal = |kind| {
            Stop::from(GuestError::Refused(Refusal {
                kind,
                message: "why".into(),
            }))
        };
        for (stop, status) in [
            (Stop::Link(BadLink::Forged), 404),
            (Stop::Link(BadLink::Expired), 410),
            (Stop::Ended, 410),
            (Stop::NotForThis, 405),
            (Stop::TooLarge(Size(1)), 413),
            (Stop::Range(10), 416),
            (refusal(RefusalKind::NotFound), 404),
            (refusal(RefusalKind::Conflict), 409),
            (refusal(RefusalKind::DiskFull), 507),
            (Stop::Open(OpenError::Silent), 503),
            (
                Stop::Guest(GuestError::Timeout {
                    what: "x",
                    seconds: 1,
                }),
                502,
            ),
        ] {
            let text = stop.to_string();
            let response = stop.into_response();
            assert_eq!(response.status().as_u16(), status, "{text}");
        }
        let response = Stop::Range(10).into_response();
        assert_eq!(response.headers()[header::CONTENT_RANGE], "bytes */10");
    }
}
