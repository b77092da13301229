//! The routes of files: what they take from a request, and how a file's bytes travel.

use std::sync::Arc;

use futures_util::StreamExt;
use greenroom_protocol::{
    ByteRange, FilesFate, MARK_HEADER, NO_MARK, PACKED_HEADER, PIXELS_HEADER, RefusalKind, SIZE_HEADER,
    limits::{IMAGE_PIXELS, MARK_BYTES},
};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RANGE},
};
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};

use super::{
    answer::{Body, Refused, empty, json, refuse},
    request::{Query, decode, query},
};
use crate::{
    agent::{Shared, lock},
    files::{Depth, Onto, WriteMode},
    lease::{Lease, LeaseError},
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
        Method::GET => match query(&request)?.number("picture")? {
            Some(side) => picture(shared, &path, side).await,
            None => read(shared, &path, &request).await,
        },
        Method::PUT => write(shared, &path, request).await,
        Method::DELETE => {
            let _activity = shared.tenure.open()?;
            json(StatusCode::OK, &shared.files.delete(&path).await?)
        }
        _ => Err(refuse(RefusalKind::NotFound, "there is no such route")),
    }
}

/// `PUT /archive`: the one transfer that a sandbox takes before it is anybody's.
pub(super) async fn unpack(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let query = query(&request)?;
    let left_out = query.number("left_out")?.unwrap_or(0);
    let kept = query
        .number("as_of")?
        .map(|as_of_ms| FilesFate::Kept { as_of_ms, left_out });
    let onto = match kept {
        Some(_) => Onto::Instead,
        None => Onto::Beside,
    };
    let _activity = match shared.tenure.open() {
        // What a conversation has by now is not taken away from it.
        Ok(_) if onto == Onto::Instead => {
            let message = "files of an earlier sandbox go into one that is nobody's yet";
            return Err(refuse(RefusalKind::Conflict, message));
        }
        Ok(activity) => Some(activity),
        Err(LeaseError::Unbound) => None,
        Err(error) => return Err(error.into()),
    };
    let body = BodyDataStream::new(request.into_body());
    let unpacked = shared.files.unpack(onto, body).await?;
    if kept.is_some() {
        *lock(&shared.kept) = kept;
    }
    json(StatusCode::OK, &unpacked)
}

/// `GET /archive`: a look, however long it takes. The sandbox may end under it, which breaks it off.
pub(super) async fn pack(shared: &Arc<Shared>, query: &Query) -> Result<Response<Body>, Refused> {
    shared.tenure.with(Lease::standing)?;
    let max = query.number("max")?.unwrap_or(u64::MAX);
    let since = query.value("since").unwrap_or_default();
    if since.len() > MARK_BYTES || !since.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(refuse(
            RefusalKind::BadRequest,
            "since must be the mark of an archive",
        ));
    }
    let own = format!("{}-", shared.boot);
    let known = match since.strip_prefix(&own) {
        None if since == NO_MARK => Some(""),
        // Whoever has no archive has lost what this sandbox was filled from.
        None if since.is_empty() && lock(&shared.kept).is_some() => Some(""),
        // Another sandbox's mark says that there is one, and nothing of this one's files.
        known => known,
    };
    let Some(packing) = shared.files.pack(max, known).await? else {
        return Ok(empty(StatusCode::NO_CONTENT));
    };
    let mark = HeaderValue::try_from(own + &packing.digest);
    let packed = HeaderValue::try_from(packing.packed.to_string());
    let pieces = packing.into_stream().map(|piece| piece.map(Frame::data));
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    for (name, value) in [(MARK_HEADER, mark), (PACKED_HEADER, packed)] {
        if let Ok(value) = value {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

async fn write(
    shared: &Arc<Shared>,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let query = query(&request)?;
    let mode = if query.flag("append")? {
        WriteMode::Append
    } else {
        WriteMode::Replace
    };
    let _activity = shared.tenure.open()?;
    let once = query
        .value("once")
        .map(|mark| shared.once.begin(mark))
        .transpose()?;
    let body = BodyDataStream::new(request.into_body());
    let entry = shared.files.write(path, mode, body).await?;
    if let Some(once) = once {
        once.done();
    }
    json(StatusCode::OK, &entry)
}

/// A picture, which holds the lease open as any transfer does.
async fn picture(shared: &Arc<Shared>, path: &str, side: u64) -> Result<Response<Body>, Refused> {
    let _activity = shared.tenure.open()?;
    let side = u32::try_from(side).unwrap_or(IMAGE_PIXELS).clamp(1, IMAGE_PIXELS);
    let picture = shared.files.picture(path, side).await?;
    let body = Full::new(picture.bytes.into()).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(picture.mime));
    if let Ok(pixels) = HeaderValue::try_from(picture.pixels.to_string()) {
        headers.insert(PIXELS_HEADER, pixels);
    }
    Ok(response)
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
