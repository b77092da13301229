//! Files: listed, described, streamed in and out, deleted.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use futures_util::TryStreamExt as _;
use greenroom_protocol::{FileEntry, FileKind, FileList, RefusalKind};
use http_body_util::Limited;

use super::{
    Answer, Call,
    form::{Broken, Form, disposition},
    json, put as set,
};
use crate::{
    config::Size,
    guest::{Depth, GuestError, Upload, WriteMode},
    http::links::{SANDBOX, attachment, is_over_limit, tag, wanted},
    rest::{
        address::{Dialect, FilePath},
        fault::{Code, Fault},
        form as names, listing,
    },
    sessions::Session,
};

/// What is at a path, as far as it can be listed: nothing where there is none.
async fn look(call: &Call, path: &str, depth: Depth) -> Result<(Session, FileList), Fault> {
    let (session, list) = call
        .with(|guest| async move { guest.list_files(path, depth).await })
        .await?;
    match list {
        Ok(list) => Ok((session, list)),
        Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::NotFound => {
            Ok((session, FileList::default()))
        }
        Err(error) => Err(Fault::about_file(path, &error)),
    }
}

pub(super) async fn list(call: &Call) -> Result<Answer, Fault> {
    let query = &call.address.query;
    let (folder, depth) = match call.dialect() {
        Dialect::B if query.recursive => (query.folder.as_str(), Depth::All),
        Dialect::B => (query.folder.as_str(), Depth::One),
        Dialect::A0 | Dialect::A => ("", Depth::One),
    };
    let (session, list) = look(call, folder, depth).await?;
    if !folder.is_empty() && list.entries.iter().any(|entry| entry.path == folder) {
        return Err(Fault::new(Code::PathInvalid, "path is a file, and no folder").of(folder));
    }
    let body = listing::listed(call.dialect(), folder, &list.entries, list.omitted);
    Ok(call.found(json(body.to_string()), &session, &session.standing))
}

/// The file at a path.
async fn file(call: &Call, path: &FilePath) -> Result<(Session, FileEntry), Fault> {
    let (session, list) = look(call, path.as_str(), Depth::One).await?;
    let own = |entry: &FileEntry| entry.path == path.as_str() && entry.kind == FileKind::File;
    match list.entries.into_iter().find(own) {
        Some(entry) => Ok((session, entry)),
        None => Err(Fault::no_file(path.as_str())),
    }
}

pub(super) async fn describe(call: &Call, path: &FilePath) -> Result<Answer, Fault> {
    let (session, entry) = match file(call, path).await {
        // Dialect B knows folders, which their own folder lists.
        Err(fault)
            if fault.code == Code::FileNotFound
                && call.dialect() == Dialect::B
                && !path.as_str().is_empty() =>
        {
            let (session, list) = look(call, path.parent(), Depth::One).await?;
            let own = |entry: &FileEntry| entry.path == path.as_str() && entry.kind == FileKind::Directory;
            (session, list.entries.into_iter().find(own).ok_or(fault)?)
        }
        found => found?,
    };
    let body = listing::described(call.dialect(), &entry);
    Ok(call.found(json(body.to_string()), &session, &session.standing))
}

pub(super) async fn download(call: &Call, path: &FilePath, headers: &HeaderMap) -> Result<Answer, Fault> {
    let (session, entry) = file(call, path).await?;
    let (status, range) = match wanted(headers, &tag(&entry), entry.size) {
        Ok(None) => (StatusCode::OK, 0..entry.size),
        Ok(Some(range)) => (StatusCode::PARTIAL_CONTENT, range),
        Err(()) => {
            let mut fault = Fault::new(
                Code::RangeNotSatisfiable,
                "the range begins at or after the file's end",
            );
            fault.size = Some(entry.size);
            return Err(fault.of(path.as_str()));
        }
    };
    let body = if range.is_empty() {
        Body::empty()
    } else {
        let read = session.guest.read_file(path.as_str(), range.clone()).await;
        let read = read.map_err(|error| Fault::about_file(path.as_str(), &error))?;
        Body::from_stream(read.body.into_stream())
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let into = response.headers_mut();
    into.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
    into.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What comes out of a sandbox is hostile: no browser is to show or run it.
    into.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
    set(into, header::CONTENT_TYPE, &listing::content_type(path.as_str()));
    set(into, header::ETAG, &tag(&entry));
    set(into, header::CONTENT_DISPOSITION, &attachment(&entry.path));
    if status == StatusCode::PARTIAL_CONTENT {
        let (first, last, size) = (range.start, range.end - 1, entry.size);
        set(
            into,
            header::CONTENT_RANGE,
            &format!("bytes {first}-{last}/{size}"),
        );
    }
    Ok(call.found(response, &session, &session.standing))
}

pub(super) async fn delete(call: &Call, path: &FilePath) -> Result<Answer, Fault> {
    let (session, entry) = file(call, path).await?;
    let deleted = session.guest.delete_file(&entry.path).await;
    deleted.map_err(|error| Fault::about_file(path.as_str(), &error))?;
    let response = match call.dialect() {
        Dialect::B => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Dialect::A0 | Dialect::A => json(r#"{"message":"file deleted successfully"}"#),
    };
    Ok(call.found(response, &session, &session.standing))
}

/// A body within its limit, and whether it went over it.
struct Limit {
    size: Size,
    over: Arc<AtomicBool>,
}

impl Limit {
    /// # Errors
    /// The body says that it is too large.
    fn new(call: &Call, headers: &HeaderMap) -> Result<Self, Fault> {
        let limit = Self {
            size: call.shared().config.links.upload,
            over: Arc::default(),
        };
        let said = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match said {
            Some(length) if length > limit.size.bytes() => Err(limit.fault()),
            _ => Ok(limit),
        }
    }

    fn keep(&self, body: Body) -> Body {
        let over = Arc::clone(&self.over);
        let limited = Body::new(Limited::new(body, self.size.as_usize()));
        Body::from_stream(limited.into_data_stream().map_err(move |error| {
            if is_over_limit(&error) {
                over.store(true, Ordering::Relaxed);
            }
            error
        }))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn fault(&self) -> Fault {
        Fault::new(
            Code::TooLarge,
            format!("an upload has at most {} (limit links.upload)", self.size),
        )
    }

    /// What broke a form, if it was not the limit.
    fn broken(&self, broken: &Broken) -> Fault {
        match broken {
            _ if self.is_over() => self.fault(),
            Broken::Stalled => Fault::new(Code::RequestTimeout, broken.to_string()),
            Broken::NoBoundary | Broken::Ended | Broken::Headers | Broken::Unread => {
                Fault::bad(broken.to_string())
            }
        }
    }
}

/// Stores every file of a form. Each is there as a whole or not at all; one that fails leaves those before it.
pub(super) async fn upload(call: &Call, request: Request) -> Result<Answer, Fault> {
    let limit = Limit::new(call, request.headers())?;
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok().map(str::to_owned));
    let body = limit.keep(request.into_body()).into_data_stream();
    let mut form = Form::begin(kind.as_deref(), body)
        .await
        .map_err(|broken| limit.broken(&broken))?;
    let folder = match call.dialect() {
        Dialect::B => call.address.query.folder.clone(),
        Dialect::A0 | Dialect::A => FilePath::default(),
    };
    let session = call.open().await?;
    let mut stored = Vec::new();
    while let Some(headers) = form.part().await.map_err(|broken| limit.broken(&broken))? {
        let disposition = disposition(&headers).unwrap_or_default();
        let Some(name) = names::file(&disposition)? else {
            form.skip().await.map_err(|broken| limit.broken(&broken))?;
            continue;
        };
        let path = folder.below(name.as_str())?;
        let (data, returned) = form.give();
        let broke = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&broke);
        let data = data.inspect_err(move |_| seen.store(true, Ordering::Relaxed));
        let written = session
            .guest
            .write_file(path.as_str(), WriteMode::Replace, Upload::stream(data))
            .await;
        match written {
            Ok(entry) => stored.push(entry),
            Err(_) if broke.load(Ordering::Relaxed) => return Err(limit.broken(&Broken::Ended)),
            Err(error) => return Err(Fault::about_file(path.as_str(), &error)),
        }
        form = returned.await.map_err(|_| limit.broken(&Broken::Ended))?;
    }
    if stored.is_empty() {
        return Err(Fault::new(
            Code::PropertiesMissing,
            "the form has no file: a part with a filename",
        )
        .of("file"));
    }
    let body = listing::uploaded(call.dialect(), &stored);
    let standing = session.standing.clone();
    Ok(call.told(json(body.to_string()), session, &standing, None))
}

/// Stores the body as a file.
pub(super) async fn put(call: &Call, path: &FilePath, request: Request) -> Result<Answer, Fault> {
    let limit = Limit::new(call, request.headers())?;
    let session = call.open().await?;
    let broke = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&broke);
    let data = limit
        .keep(request.into_body())
        .into_data_stream()
        .map_err(move |error| {
            seen.store(true, Ordering::Relaxed);
            io::Error::other(error)
        });
    let written = session
        .guest
        .write_file(path.as_str(), WriteMode::Replace, Upload::stream(data))
        .await;
    let entry = match written {
        Ok(entry) => entry,
        Err(_) if broke.load(Ordering::Relaxed) => return Err(limit.broken(&Broken::Ended)),
        Err(error) => return Err(Fault::about_file(path.as_str(), &error)),
    };
    let body = listing::uploaded(Dialect::B, &[entry]);
    let standing = session.standing.clone();
    Ok(call.told(json(body.to_string()), session, &standing, None))
}
