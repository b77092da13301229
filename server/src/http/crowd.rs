//! Who is connected: when all places are taken, the connection that has been idle for longest makes room.
//!
//! A connection is idle while it carries no request whose head has been read and whose answer has not ended: so
//! one that sends its head a byte a minute is idle too, and one that an event stream is open on is not.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::Request,
    response::Response,
};
use futures_util::{FutureExt as _, future::BoxFuture};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, service::Service};
use hyper_util::service::TowerToHyperService;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The connections of one listener.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    seats: Arc<Mutex<BTreeMap<u64, Seat>>>,
}

#[derive(Debug)]
struct Seat {
    /// Requests that are being answered.
    busy: usize,
    idle_since: Instant,
    leave: CancellationToken,
}

/// One connection's place. Dropped, it is free.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    crowd: Crowd,
    leave: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

/// A request that is being answered.
#[derive(Debug)]
struct Busy {
    number: u64,
    crowd: Crowd,
}

impl Crowd {
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            seats: Arc::default(),
        }
    }

    /// A place, once there is one. Whoever is idle for longest is asked to leave if all are taken; where nobody is
    /// idle, this waits. Cancel safe.
    pub(super) async fn enter(&self) -> Place {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await,
        };
        let leave = CancellationToken::new();
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let number = seats.last_key_value().map_or(0, |(last, _)| last + 1);
        let seat = Seat {
            busy: 0,
            idle_since: Instant::now(),
            leave: leave.clone(),
        };
        seats.insert(number, seat);
        Place {
            number,
            crowd: self.clone(),
            leave,
            _permit: permit,
        }
    }

    async fn wait(&self) -> OwnedSemaphorePermit {
        self.make_room();
        #[expect(clippy::expect_used, reason = "nobody closes it")]
        let permit = Arc::clone(&self.places).acquire_owned().await.expect("open");
        permit
    }

    fn make_room(&self) {
        let seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = seats
            .values()
            .filter(|seat| seat.busy == 0 && !seat.leave.is_cancelled());
        if let Some(seat) = idle.min_by_key(|seat| seat.idle_since) {
            seat.leave.cancel();
        }
    }

    fn seat(&self, number: u64, change: impl FnOnce(&mut Seat)) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = seats.get_mut(&number) {
            change(seat);
        }
    }
}

impl Place {
    /// The router for this connection: it counts what is being answered.
    pub(super) fn serving(&self, router: Router) -> Counted {
        Counted {
            router: TowerToHyperService::new(router),
            number: self.number,
            crowd: self.crowd.clone(),
        }
    }

    /// Waits until somebody else needs the place more.
    pub(super) async fn wanted(&self) {
        self.leave.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut seats = self.crowd.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.remove(&self.number);
    }
}

impl Busy {
    fn begin(number: u64, crowd: Crowd) -> Self {
        crowd.seat(number, |seat| seat.busy += 1);
        Self { number, crowd }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.crowd.seat(self.number, |seat| {
            seat.busy -= 1;
            seat.idle_since = Instant::now();
        });
    }
}

/// A router whose connection is busy until each answer has ended.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    router: TowerToHyperService<Router>,
    number: u64,
    crowd: Crowd,
}

impl Service<Request<Incoming>> for Counted {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Response, Self::Error>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = Busy::begin(self.number, self.crowd.clone());
        let answering = self.router.call(request);
        answering
            .map(|answer| answer.map(|response| response.map(|body| Body::new(Held { body, _busy: busy }))))
            .boxed()
    }
}

/// An answer's body that keeps its connection busy.
#[derive(Debug)]
struct Held {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use super::*;

    async fn full(crowd: &Crowd) -> bool {
        timeout(Duration::from_secs(1), crowd.enter()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_idle_for_longest_makes_room() {
        let crowd = Crowd::new(3);
        let (first, second, third) = (crowd.enter().await, crowd.enter().await, crowd.enter().await);
        let busy = Busy::begin(first.number, crowd.clone());
        advance(Duration::from_secs(1)).await;
        drop(Busy::begin(second.number, crowd.clone()));
        let leaving = tokio::spawn(async move {
            third.wanted().await;
            drop(third);
        });
        let _fourth = crowd.enter().await;
        leaving.await.unwrap();
        assert!(full(&crowd).await, "the second was asked, and stays");
        assert!(second.leave.is_cancelled());
        let held = Busy::begin(second.number, crowd.clone());
        drop(second);
        drop(held);
        assert!(!full(&crowd).await);
        assert!(!first.leave.is_cancelled(), "who is being answered is not asked");
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_while_there_are_places() {
        let crowd = Crowd::new(2);
        let first = crowd.enter().await;
        let _second = crowd.enter().await;
        assert!(!first.leave.is_cancelled());
    }
}
