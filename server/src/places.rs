//! Places for calls in flight: one limit for all protocols, of which no principal has all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::conversation::Principal;

/// The places. Clones share them.
#[derive(Clone, Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    limit: usize,
    held: Arc<Mutex<HashMap<Principal, usize>>>,
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    whose: Principal,
    held: Arc<Mutex<HashMap<Principal, usize>>>,
    _permit: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    /// All are taken.
    #[error("{0} calls are in flight, which is the limit")]
    All(usize),
    /// One principal has as many as it may.
    #[error("{0} calls of yours are in flight, which is the most of one caller")]
    Own(usize),
}

impl Places {
    /// So many.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            limit,
            held: Arc::default(),
        }
    }

    /// Takes one, if there is one for this principal: the last quarter of them is for others.
    pub(crate) fn take(&self, whose: &Principal) -> Result<Place, Full> {
        let most = self.limit - self.limit / 4;
        let mut held = lock(&self.held);
        let own = held.get(whose).copied().unwrap_or(0);
        if own >= most && self.all.available_permits() > 0 {
            return Err(Full::Own(most));
        }
        let permit = Arc::clone(&self.all).try_acquire_owned();
        let permit = permit.map_err(|_| Full::All(self.limit))?;
        held.insert(whose.clone(), own + 1);
        Ok(Place {
            whose: whose.clone(),
            held: Arc::clone(&self.held),
            _permit: permit,
        })
    }

    /// Whether none is taken any more within `grace`.
    pub(crate) async fn empty(&self, grace: Duration) -> bool {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        timeout(grace, self.all.acquire_many(all)).await.is_ok()
    }

    /// Those that are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(own) = held.get_mut(&self.whose) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.whose);
            }
        }
    }
}

fn lock(held: &Mutex<HashMap<Principal, usize>>) -> MutexGuard<'_, HashMap<Principal, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(id: &str) -> Principal {
        Principal::Key(id.to_owned())
    }

    #[test]
    fn nobody_has_all_places() {
        let places = Places::new(8);
        let greedy: Vec<_> = (0..6).map(|_| places.take(&whose("greedy")).unwrap()).collect();
        assert_eq!(places.take(&whose("greedy")).unwrap_err(), Full::Own(6));
        let modest: Vec<_> = (0..2).map(|_| places.take(&whose("modest")).unwrap()).collect();
        assert_eq!(places.take(&whose("modest")).unwrap_err(), Full::All(8));
        drop(greedy);
        drop(places.take(&whose("greedy")).unwrap());
        drop(modest);
        assert_eq!(
            (places.free(), lock(&places.held).len()),
            (8, 0),
            "nothing is remembered"
        );
    }

    #[test]
    fn a_single_place_is_for_anybody() {
        let places = Places::new(1);
        let only = places.take(&whose("one")).unwrap();
        assert_eq!(places.take(&whose("other")).unwrap_err(), Full::All(1));
        drop(only);
        assert!(places.take(&whose("other")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_empty_once_every_place_is_free() {
        let places = Places::new(4);
        let taken = places.take(&whose("one")).unwrap();
        assert!(!places.empty(Duration::from_secs(1)).await);
        drop(taken);
        assert!(places.empty(Duration::from_secs(1)).await);
    }
}
