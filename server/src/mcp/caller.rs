//! Who calls, by what way, and what is owed to the call: progress, cancellation, an answer that arrives.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use http::HeaderMap;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::{
    conversation::{ConversationId, Principal, SessionKey},
    sessions::Telling,
};

/// One call's circumstances.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    /// Who is calling.
    pub principal: &'a Principal,
    /// The request's `_meta`.
    pub meta: &'a Map<String, Value>,
    /// Its HTTP headers; none on stdio.
    pub headers: Option<&'a HeaderMap>,
    /// `greenroom stdio --conversation ID`.
    pub fixed: Option<&'a ConversationId>,
    /// The process or transport session by which it came.
    pub carrier: Option<&'a Carrier>,
    /// Set when the caller has given up.
    pub cancelled: &'a CancellationToken,
    /// Set when it is we who leave: what is given up from then on is not the caller's doing.
    pub closing: &'a CancellationToken,
    /// Where to say how it goes.
    pub progress: &'a dyn Progress,
}

/// Tells a caller how its call goes, if it wants to hear of it.
#[async_trait]
pub(super) trait Progress: fmt::Debug + Send + Sync {
    /// One message. What cannot be told is dropped.
    async fn tell(&self, message: String);
}

/// Something that lasts longer than a call and stands for a conversation: a stdio process, or a transport session.
#[derive(Debug)]
pub(super) struct Carrier {
    id: ConversationId,
    reached: Mutex<Reached>,
}

/// How often a carrier's conversation was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// Not yet: there can be no session under its id.
    Never,
    /// By one call. If no second one comes, the conversation is not missed.
    Once(SessionKey),
    /// By several, or it is an id from before this server started.
    Often,
}

impl Carrier {
    /// A carrier with an id that was minted for it.
    pub(super) const fn new(id: ConversationId) -> Self {
        Self {
            id,
            reached: Mutex::new(Reached::Never),
        }
    }

    /// One that was handed out by a server before this one.
    pub(super) const fn from_earlier(id: ConversationId) -> Self {
        Self {
            id,
            reached: Mutex::new(Reached::Often),
        }
    }

    pub(super) const fn id(&self) -> &ConversationId {
        &self.id
    }

    /// A call of it has reached a session.
    pub(super) fn reach(&self, key: &SessionKey) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = match &*reached {
            Reached::Never => Reached::Once(key.clone()),
            Reached::Once(_) | Reached::Often => Reached::Often,
        };
    }

    pub(super) fn reached(&self) -> Reached {
        self.reached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// News that an answer carries: to be acknowledged once the answer has been written out, and not before, so that
/// a loss is told again where the answer never arrived.
#[derive(Debug)]
pub(super) struct News(pub Telling);

impl News {
    /// Acknowledges in the background. If that fails the news is told again, which is the safe side.
    pub(super) fn told(self) {
        tokio::spawn(async move {
            let session = self.0.session().clone();
            if let Err(error) = self.0.told().await {
                tracing::debug!(session = session.short(), %error, "the news will be told again");
            }
        });
    }
}

/// What an answer takes along until it has been written out: its news, and its place among the calls in flight, so
/// that a server which is leaving waits for it.
#[derive(Debug)]
pub(super) struct Freight {
    pub news: Option<News>,
    pub in_flight: Option<OwnedSemaphorePermit>,
}

impl Freight {
    /// The answer was written out.
    pub(super) fn arrived(self) {
        if let Some(news) = self.news {
            news.told();
        }
        drop(self.in_flight);
    }
}

/// Collects the freight of the answers in one HTTP response, until the response's last byte was handed to the
/// connection. A response that is dropped before takes its news along, untold.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery {
    freight: Arc<Mutex<Vec<Freight>>>,
}

impl Delivery {
    pub(super) fn carry(&self, freight: Freight) {
        self.freight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(freight);
    }

    /// The response was written out.
    pub(super) fn arrived(&self) {
        let freight = std::mem::take(&mut *self.freight.lock().unwrap_or_else(PoisonError::into_inner));
        freight.into_iter().for_each(Freight::arrived);
    }
}
