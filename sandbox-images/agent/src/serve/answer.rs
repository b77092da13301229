//! What an answer carries: JSON, a run's events, nothing, or a refusal with its status.

use std::{io, pin::Pin, task};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use greenroom_protocol::{EndReason, Ended, Refusal, RefusalKind};
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde::Serialize;

use crate::{
    lease::LeaseError,
    runs::{Follower, Piece, RunsError},
};

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An answer that is not a success.
#[derive(Debug)]
pub(super) enum Refused {
    /// With the status of its kind.
    Refusal(Refusal),
    /// 410, with the reason.
    Ended(EndReason),
}

impl Refused {
    pub(super) fn into_response(self) -> Response<Body> {
        let (status, body) = match &self {
            Self::Refusal(refusal) => (refusal.kind.status(), serde_json::to_vec(refusal)),
            Self::Ended(reason) => (410, serde_json::to_vec(&Ended { reason: *reason })),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A body of two short strings always serialises; were it not so, the status says enough.
        json_bytes(status, body.unwrap_or_default())
    }
}

impl From<LeaseError> for Refused {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Ending(reason) => Self::Ended(reason),
            LeaseError::OtherKey | LeaseError::Unbound | LeaseError::NotIdle => {
                refuse(RefusalKind::Conflict, error.to_string())
            }
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<RunsError> for Refused {
    fn from(error: RunsError) -> Self {
        let kind = match &error {
            RunsError::Lease(lease) => return (*lease).into(),
            RunsError::BadId | RunsError::BadTimeout => RefusalKind::BadRequest,
            RunsError::CodeTooLarge(_) => RefusalKind::TooLarge,
            RunsError::OtherRun(_) | RunsError::Finished(_) => RefusalKind::Conflict,
            RunsError::Forgotten(_) | RunsError::Unknown(_) => RefusalKind::NotFound,
            RunsError::QueueFull(_) => RefusalKind::QueueFull,
            RunsError::NoKernel(_) => RefusalKind::NoKernel,
        };
        refuse(kind, error.to_string())
    }
}

/// A refusal of this kind.
pub(super) fn refuse(kind: RefusalKind, message: impl Into<String>) -> Refused {
    Refused::Refusal(Refusal {
        kind,
        message: message.into(),
    })
}

/// An answer in JSON.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response<Body>, Refused> {
    match serde_json::to_vec(value) {
        Ok(bytes) => Ok(json_bytes(status, bytes)),
        Err(error) => Err(refuse(RefusalKind::Internal, error.to_string())),
    }
}

fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer that its status says all of.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A run's events as they come, after those that are there already.
pub(super) fn events(first: Option<Piece>, follower: Follower) -> Response<Body> {
    let pieces = stream::iter(first).chain(stream::unfold(follower, async |mut follower| {
        let piece = follower.next().await?;
        Some((piece, follower))
    }));
    let body = EventBody {
        pieces: Box::pin(pieces),
        over: false,
    };
    let mut response = Response::new(body.boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// Knows which piece is the last one, so that no empty frame has to say it.
struct EventBody {
    pieces: Pin<Box<dyn Stream<Item = Piece> + Send>>,
    over: bool,
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.over {
            return task::Poll::Ready(None);
        }
        let piece = task::ready!(self.pieces.as_mut().poll_next(context));
        self.over = piece.as_ref().is_none_or(|piece| piece.last);
        task::Poll::Ready(piece.map(|piece| Ok(Frame::data(piece.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}
