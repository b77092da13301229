//! Who calls, by what way, and what is owed to the call: progress, cancellation, an answer that arrives.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use http::HeaderMap;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

pub(super) use crate::delivery::{Delivery, Freight, News};
use crate::{
    auth::Identity,
    conversation::{ConversationId, SessionKey},
};

/// One call's circumstances.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    /// Who is calling, and what they may do.
    pub identity: &'a Identity,
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
