//! Who is connected: when all places are taken, the connection that has been idle for longest makes room, or, where
//! none is idle, the first that becomes so.
//!
//! A connection is idle while it carries no request whose head has been read and whose answer has not ended: so
//! one that sends its head a byte a minute is idle too, and one that an event stream is open on is not.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
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

/// How long the end of an answer may take to be written out once nothing of it is left to ask for.
const WRITES: Duration = Duration::from_secs(2);

/// The connections of one listener.
#[derive(Clone, Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    seats: Arc<Mutex<Seats>>,
}

#[derive(Debug, Default)]
struct Seats {
    /// A number is one seat's for ever: what belongs to a connection that is gone never touches another's.
    next: u64,
    taken: BTreeMap<u64, Seat>,
    /// Who has no place yet.
    waiting: usize,
}

#[derive(Debug)]
struct Seat {
    /// Requests that are being answered.
    busy: usize,
    idle_since: Instant,
    /// Until when the end of the last answer may be on its way out yet.
    writes_until: Instant,
    leave: CancellationToken,
}

/// Somebody who has no place yet.
#[derive(Debug)]
struct Waiting<'a>(&'a Crowd);

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
    /// idle, this waits for the first who is. Cancel safe.
    pub(super) async fn enter(&self) -> Place {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await,
        };
        let (leave, now) = (CancellationToken::new(), Instant::now());
        let mut seats = self.seats();
        let number = seats.next;
        seats.next += 1;
        let seat = Seat {
            busy: 0,
            idle_since: now,
            writes_until: now,
            leave: leave.clone(),
        };
        seats.taken.insert(number, seat);
        Place {
            number,
            crowd: self.clone(),
            leave,
            _permit: permit,
        }
    }

    async fn wait(&self) -> OwnedSemaphorePermit {
        let _waiting = Waiting::begin(self);
        #[expect(clippy::expect_used, reason = "nobody closes it")]
        let permit = Arc::clone(&self.places).acquire_owned().await.expect("open");
        permit
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seats {
    /// Asks as many to leave as are waited for, as far as so many are idle.
    fn make_room(&mut self) {
        if self.waiting == 0 {
            return;
        }
        // One that was asked something just before it left stays until that is answered.
        let leaving = self
            .taken
            .values()
            .filter(|seat| seat.busy == 0 && !seat.is_idle());
        for _ in leaving.count()..self.waiting {
            let idle = self.taken.values().filter(|seat| seat.is_idle());
            let Some(seat) = idle.min_by_key(|seat| seat.idle_since) else {
                return;
            };
            seat.leave.cancel();
        }
    }
}

impl Seat {
    /// And was not asked to leave yet.
    fn is_idle(&self) -> bool {
        self.busy == 0 && !self.leave.is_cancelled()
    }
}

impl<'a> Waiting<'a> {
    /// Race: a seat that turns idle before this looks is seen here, and one after it sees that somebody waits.
    fn begin(crowd: &'a Crowd) -> Self {
        let mut seats = crowd.seats();
        seats.waiting += 1;
        seats.make_room();
        drop(seats);
        Self(crowd)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.seats().waiting -= 1;
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

    /// When a connection that was asked to leave may be cut off: not before it was given the time to write out what it
    /// owes. It is later than now for as long as something is being answered.
    pub(super) fn leaves_by(&self) -> Instant {
        let seats = self.crowd.seats();
        match seats.taken.get(&self.number) {
            Some(seat) if seat.busy == 0 => seat.writes_until,
            Some(_) | None => Instant::now() + WRITES,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.seats().taken.remove(&self.number);
    }
}

impl Busy {
    fn begin(number: u64, crowd: Crowd) -> Self {
        let mut seats = crowd.seats();
        if let Some(seat) = seats.taken.get_mut(&number) {
            seat.busy += 1;
            // It may be one that was to leave: then another has to.
            seats.make_room();
        }
        drop(seats);
        Self { number, crowd }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut seats = self.crowd.seats();
        if let Some(seat) = seats.taken.get_mut(&self.number) {
            seat.busy = seat.busy.saturating_sub(1);
            seat.idle_since = Instant::now();
            seat.writes_until = seat.idle_since + WRITES;
            seats.make_room();
        }
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
    async fn who_becomes_idle_while_somebody_waits_makes_room() {
        let crowd = Crowd::new(2);
        let (first, second) = (crowd.enter().await, crowd.enter().await);
        let (one, other) = (
            Busy::begin(first.number, crowd.clone()),
            Busy::begin(second.number, crowd.clone()),
        );
        let also = Busy::begin(second.number, crowd.clone());
        let third = tokio::spawn({
            let crowd = crowd.clone();
            async move { crowd.enter().await }
        });
        advance(Duration::from_secs(1)).await;
        drop(other);
        assert!(!second.leave.is_cancelled(), "it is being answered still");
        drop(also);
        assert!(second.leave.is_cancelled());
        drop(one);
        assert!(!first.leave.is_cancelled(), "one was enough");
        drop(second);
        let _third = timeout(Duration::from_secs(1), third).await.unwrap().unwrap();
        drop(Busy::begin(first.number, crowd.clone()));
        assert!(!first.leave.is_cancelled(), "nobody waits any more");
        assert_eq!(
            first.leaves_by(),
            Instant::now() + WRITES,
            "its answer's end is on its way"
        );
        advance(WRITES).await;
        assert!(full(&crowd).await, "the first was asked, and stays");
        assert!(first.leaves_by() <= Instant::now());
        let slipped_in = Busy::begin(first.number, crowd.clone());
        assert!(first.leaves_by() > Instant::now(), "that is answered yet");
        drop((slipped_in, first));
        assert!(!full(&crowd).await, "nobody who left waits");
    }

    #[tokio::test(start_paused = true)]
    async fn what_outlives_its_connection_touches_no_other() {
        let crowd = Crowd::new(2);
        let gone = crowd.enter().await;
        let outlives = Busy::begin(gone.number, crowd.clone());
        drop(gone);
        let next = crowd.enter().await;
        let busy = Busy::begin(next.number, crowd.clone());
        drop(outlives);
        let _idle = crowd.enter().await;
        assert!(full(&crowd).await);
        assert!(!next.leave.is_cancelled(), "it is being answered");
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
