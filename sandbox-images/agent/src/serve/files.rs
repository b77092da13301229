//! The routes of files: what they take from a request, and how a file's bytes travel.

use std::sync::Arc;

use futures_util::StreamExt;
use greenroom_protocol::{RefusalKind, SIZE_HEADER};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RANGE},
};
use http_body_util::{BodyDataStream, BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::{
    answer::{Body, Refused, json, refuse},
    request::{Query, decode, query},
};
use crate::{
    agent::Shared,
    files::{ByteRange, Depth, WriteMode},
    lease::Lease,
};

/// `GET /files`: a look, which does not touch the idle clock.
pub(super) async fn list(shared: &Arc<Shared>, query: &Query) -> Result<Response<Body>, Refused> {
    shared.tenure.with(Lease::standing)?;
    let depth = if query.flag("recursive")? {
        Depth::Tree
    } else {
        Depth::Folder
    };
    let list = shared
        .files
        .list(query.value("path").unwrap_or_default(), depth)
        .await?;
    json(StatusCode::OK, &list)
}

/// `/files/{path}`: a transfer, which holds the lease open until its last byte.
pub(super) async fn one(
    shared: &Arc<Shared>,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let path = decode(path)?;
    match *request.method() {
        Method::GET => read(shared, &path, &request).await,
        Method::PUT => {
            let mode = if query(&request)?.flag("append")? {
                WriteMode::Append
            } else {
                WriteMode::Replace
            };
            let _activity = shared.tenure.open()?;
            let body = BodyDataStream::new(request.into_body());
            json(StatusCode::OK, &shared.files.write(&path, mode, body).await?)
        }
        Method::DELETE => {
            let _activity = shared.tenure.open()?;
            json(StatusCode::OK, &shared.files.delete(&path).await?)
        }
        _ => Err(refuse(RefusalKind::NotFound, "there is no such route")),
    }
}

async fn read(
    shared: &Arc<Shared>,
    path: &str,
    request: &Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let activity = shared.tenure.open()?;
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let range = range.and_then(ByteRange::parse);
    let file = shared.files.open_read(path, range).await?;
    let (size, sent) = (file.size, file.range.end - file.range.start);
    let pieces = file.into_stream().map(move |piece| {
        let _held = &activity;
        piece.map(Frame::data)
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, sent.into());
    headers.insert(SIZE_HEADER, size.into());
    Ok(response)
}
