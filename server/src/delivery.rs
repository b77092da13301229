//! What an answer owes when it has arrived: news that is told by then, the end of a run that is heard by then, and its
//! place among the calls in flight.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use greenroom_protocol::{RunId, Standing};

use crate::{
    places::Place,
    sessions::{Session, Telling},
};

/// News that an answer carries: to be acknowledged once the answer has been written out, and not before, so that
/// a loss is told again where the answer never arrived.
#[derive(Debug)]
pub(crate) struct News(pub Telling);

impl News {
    /// What an answer owes that says `standing`, and in which run `loss` may say that its kernel has lost its variables.
    pub(crate) fn of(session: Session, standing: &Standing, loss: Option<RunId>) -> Option<Self> {
        let is_news = *standing != Standing::Existing || loss.is_some();
        is_news.then(|| Self(session.telling(standing.clone(), loss)))
    }

    /// Acknowledges in the background. If that fails the news is told again, which is the safe side.
    pub(crate) fn told(self) {
        tokio::spawn(async move {
            let session = self.0.session().clone();
            if let Err(error) = self.0.told().await {
                tracing::debug!(session = session.short(), %error, "the news will be told again");
            }
        });
    }
}

/// Notes that somebody has heard what an answer tells.
pub(crate) struct Heard(Box<dyn FnOnce() + Send>);

impl Heard {
    pub(crate) fn new(note: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(note))
    }
}

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heard").finish_non_exhaustive()
    }
}

/// What an answer takes along until it has been written out: its news, the end of a run that it tells, and its place
/// among the calls in flight, so that a server which is leaving waits for it.
#[derive(Debug, Default)]
pub(crate) struct Freight {
    pub news: Option<News>,
    pub heard: Option<Heard>,
    pub in_flight: Option<Place>,
}

impl Freight {
    /// The answer was written out.
    pub(crate) fn arrived(self) {
        if let Some(news) = self.news {
            news.told();
        }
        if let Some(Heard(note)) = self.heard {
            note();
        }
        drop(self.in_flight);
    }
}

/// Collects the freight of the answers in one HTTP response, until the response's last byte was handed to the
/// connection. A response that is dropped before takes its news along, untold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delivery {
    freight: Arc<Mutex<Vec<Freight>>>,
}

impl Delivery {
    pub(crate) fn carry(&self, freight: Freight) {
        self.freight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(freight);
    }

    /// The response was written out.
    pub(crate) fn arrived(&self) {
        let freight = std::mem::take(&mut *self.freight.lock().unwrap_or_else(PoisonError::into_inner));
        freight.into_iter().for_each(Freight::arrived);
    }
}
