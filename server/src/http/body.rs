//! Bodies: read whole, within their size, in time, and within what all of them together may take.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::config::{Limits, Size};

/// A body that takes longer is a client that stalls, or one that means to.
const IN_TIME: Duration = Duration::from_secs(30);

/// How long a body waits for others to be done with theirs.
const FOR_ROOM: Duration = Duration::from_secs(10);

/// The budget is counted in these.
const KIB: u64 = 1 << 10;

/// Reads bodies within their limits.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    limit: Size,
    budget: Arc<Semaphore>,
    whole: Size,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooLarge(Size),
    TooSlow,
    NoRoom(Size),
    Broken,
}

impl Refusal {
    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoom(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(limit) => write!(
                f,
                "Payload Too Large: a request has at most {} bytes (limits.request = {limit}); send a file in parts with append",
                limit.bytes()
            ),
            Self::TooSlow => write!(
                f,
                "Request Timeout: the body was not there within {} s",
                IN_TIME.as_secs()
            ),
            Self::NoRoom(limit) => {
                write!(
                    f,
                    "Service Unavailable: all requests together have more than limits.bodies = {limit}; try again"
                )
            }
            Self::Broken => f.write_str("Bad Request: the body broke off"),
        }
    }
}

impl Bodies {
    pub(super) fn new(limits: &Limits) -> Self {
        // One body must always fit.
        let whole = limits.bodies.max(limits.request);
        let permits = usize::try_from(whole.bytes().div_ceil(KIB)).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            limit: limits.request,
            budget: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            whole,
        }
    }

    /// Reads a request's body. The permit stands for its memory.
    pub(super) async fn read(
        &self,
        request: Request<Body>,
    ) -> Result<(Request<Bytes>, OwnedSemaphorePermit), Refusal> {
        let (parts, body) = request.into_parts();
        let said = parts
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let length: u64 = match said {
            Some(length) if length > self.limit.bytes() => return Err(Refusal::TooLarge(self.limit)),
            Some(length) => length,
            // Requests without a body say no length either; those with one may have any.
            None if http_body::Body::is_end_stream(&body) => 0,
            None => self.limit.bytes(),
        };
        let permits = u32::try_from(length.div_ceil(KIB)).unwrap_or(u32::MAX);
        let room = timeout(FOR_ROOM, Arc::clone(&self.budget).acquire_many_owned(permits)).await;
        let room = room
            .ok()
            .and_then(Result::ok)
            .ok_or(Refusal::NoRoom(self.whole))?;
        let limited = Limited::new(body, self.limit.as_usize()).collect();
        let body = match timeout(IN_TIME, limited).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Refusal::TooLarge(self.limit)),
            Ok(Err(_)) => return Err(Refusal::Broken),
            Err(_) => return Err(Refusal::TooSlow),
        };
        Ok((Request::from_parts(parts, body), room))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};
    use tokio::time::Instant;

    use super::*;
    use crate::config::{Inputs, Loaded};

    fn bodies(request: u64, bodies: u64) -> Bodies {
        let limits = Loaded::read(&Inputs::default()).unwrap().config.limits;
        Bodies::new(&Limits {
            request: Size(request),
            bodies: Size(bodies),
            ..limits
        })
    }

    fn streaming(bytes: usize) -> Request<Body> {
        let chunks = stream::iter((0..bytes).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"x"))));
        Request::new(Body::from_stream(chunks))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_keep_their_size() {
        let bodies = bodies(10, 1 << 20);
        let (read, _room) = bodies.read(Request::new(Body::from("0123456789"))).await.unwrap();
        assert_eq!(read.into_body(), "0123456789");
        assert_eq!(
            bodies.read(streaming(11)).await.unwrap_err(),
            Refusal::TooLarge(Size(10))
        );
        let told = Request::builder()
            .header(header::CONTENT_LENGTH, "11")
            .body(Body::empty())
            .unwrap();
        assert_eq!(bodies.read(told).await.unwrap_err(), Refusal::TooLarge(Size(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        let first = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]);
        let stalled = Request::new(Body::from_stream(first.chain(stream::pending())));
        let started = Instant::now();
        assert_eq!(bodies(10, 10).read(stalled).await.unwrap_err(), Refusal::TooSlow);
        assert_eq!(started.elapsed(), IN_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn all_bodies_together_keep_their_budget() {
        let bodies = bodies(2048, 4096);
        let held = (
            bodies.read(streaming(1)).await.unwrap(),
            bodies.read(streaming(1)).await.unwrap(),
        );
        assert_eq!(
            bodies.read(streaming(1)).await.unwrap_err(),
            Refusal::NoRoom(Size(4096))
        );
        assert!(
            bodies.read(Request::new(Body::empty())).await.is_ok(),
            "what has no body needs no room"
        );
        drop(held);
        assert!(bodies.read(streaming(1)).await.is_ok());
    }

    #[test]
    fn refusals_name_their_limit() {
        for (refusal, status, says) in [
            (
                Refusal::TooLarge(Size(10)),
                413,
                "at most 10 bytes (limits.request",
            ),
            (Refusal::TooSlow, 408, "30 s"),
            (Refusal::NoRoom(Size(10)), 503, "limits.bodies = 10B"),
            (Refusal::Broken, 400, "broke off"),
        ] {
            assert_eq!(refusal.status().as_u16(), status);
            assert!(refusal.to_string().contains(says), "{refusal}");
        }
    }
}
