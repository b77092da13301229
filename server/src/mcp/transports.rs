//! Transport sessions of the legacy era. The `Mcp-Session-Id` that we hand out is a minted conversation id, so
//! that a server which was restarted still knows the conversation of a client that sends it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::Stream;
use http::{HeaderValue, Request, request::Parts};
use rmcp::{
    model::{ClientJsonRpcMessage, ServerJsonRpcMessage},
    transport::{
        WorkerTransport,
        streamable_http_server::session::{
            ServerSseMessage, SessionId, SessionManager,
            local::{
                LocalSessionManager, LocalSessionManagerError, LocalSessionWorker, create_local_session,
            },
        },
    },
};

use super::{caller::Carrier, tools::Tools};
use crate::conversation::Principal;

/// The header that carries a transport session's id.
pub(super) const HEADER: &str = "mcp-session-id";

/// A transport session without a message for so long is closed. rmcp counts messages only, not running calls, so
/// it must be longer than any call; and a client that comes back later is served without a session.
const KEEP_ALIVE: Duration = Duration::from_secs(60 * 60);

/// Transport sessions at once: each costs some 20 KiB, and clients that never end theirs must not add up.
const MOST: usize = 4096;

/// Ids that clients ended, which must stay dead. Older ones are served like unknown ones.
const DELETED: usize = 4096;

/// The transport sessions of this server, each with the conversation that it stands for and its owner.
#[derive(Debug)]
pub(super) struct Transports {
    inner: LocalSessionManager,
    tools: Arc<Tools>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    open: HashMap<SessionId, Open>,
    /// With whoever ended it.
    deleted: HashMap<SessionId, Principal>,
    oldest_deleted: VecDeque<SessionId>,
}

#[derive(Debug)]
struct Open {
    carrier: Arc<Carrier>,
    /// Whose it is; nobody's until the answer that tells its id is on its way.
    owner: Option<Principal>,
}

/// What a request's id stood for that is not its caller's.
#[derive(Clone, Debug)]
struct Earlier(Option<Arc<Carrier>>);

/// What an `Mcp-Session-Id` is to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The caller's, and open.
    Live,
    /// The caller ended it.
    Deleted,
    /// Not the caller's: nobody knows it, since the server was restarted or it was idle for too long, or it is
    /// somebody else's. The caller cannot tell which.
    Unknown,
}

/// Why a transport session could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// rmcp's reasons.
    #[error(transparent)]
    Inner(#[from] LocalSessionManagerError),
    /// Too many.
    #[error("{MOST} transport sessions are open, which is the limit")]
    TooMany,
    /// No random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
}

impl Transports {
    pub(super) fn new(tools: Arc<Tools>) -> Self {
        let mut inner = LocalSessionManager::default();
        inner.session_config.keep_alive = Some(KEEP_ALIVE);
        Self {
            inner,
            tools,
            known: Mutex::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an id is to a caller.
    pub(super) fn standing(&self, id: &str, principal: &Principal) -> Standing {
        let known = self.known();
        if known.deleted.get(id) == Some(principal) {
            return Standing::Deleted;
        }
        let owner = known.open.get(id).and_then(|open| open.owner.as_ref());
        if owner == Some(principal) {
            Standing::Live
        } else {
            Standing::Unknown
        }
    }

    /// An id is about to be told to its owner.
    pub(super) fn own(&self, id: &str, principal: &Principal) {
        if let Some(open) = self.known().open.get_mut(id) {
            open.owner = Some(principal.clone());
        }
    }

    /// A client ends its transport session.
    pub(super) fn delete(&self, id: &str, principal: &Principal) {
        let mut known = self.known();
        let id: SessionId = id.into();
        if known
            .deleted
            .insert(SessionId::clone(&id), principal.clone())
            .is_none()
        {
            known.oldest_deleted.push_back(id);
        }
        if known.oldest_deleted.len() > DELETED
            && let Some(oldest) = known.oldest_deleted.pop_front()
        {
            known.deleted.remove(&oldest);
        }
    }

    /// Makes a request with an id that is not its caller's one with an id that is nobody's. One that an earlier server
    /// handed out still names the conversation, among the caller's own ones: whether somebody else has a transport
    /// session of that name makes no difference that could be seen.
    pub(super) fn forget<B>(&self, request: &mut Request<B>) {
        let id = request.headers().get(HEADER).and_then(|id| id.to_str().ok());
        let earlier = Earlier(id.and_then(|id| self.earlier(id)));
        request
            .headers_mut()
            .insert(HEADER, HeaderValue::from_static("unknown"));
        request.extensions_mut().insert(earlier);
    }

    fn earlier(&self, id: &str) -> Option<Arc<Carrier>> {
        let id = self.tools.resolver().genuine(id)?;
        Some(Arc::new(Carrier::from_earlier(id)))
    }

    /// The conversation that a request's transport session stands for: one that is open, or an id that an earlier
    /// server handed out.
    pub(super) fn carrier(&self, parts: &Parts) -> Option<Arc<Carrier>> {
        if let Some(Earlier(carrier)) = parts.extensions.get() {
            return carrier.clone();
        }
        let id = parts.headers.get(HEADER)?.to_str().ok()?;
        // The request would not be here if it were not its caller's.
        if let Some(open) = self.known().open.get(id) {
            return Some(Arc::clone(&open.carrier));
        }
        // Race: it was closed in between.
        self.earlier(id)
    }
}

impl SessionManager for Transports {
    type Error = TransportError;
    type Transport = WorkerTransport<LocalSessionWorker>;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        let minted = self.tools.resolver().mint().map_err(|_| TransportError::Random)?;
        let id: SessionId = minted.as_str().into();
        {
            let mut known = self.known();
            if known.open.len() >= MOST {
                return Err(TransportError::TooMany);
            }
            let carrier = Arc::new(Carrier::new(minted));
            known
                .open
                .insert(SessionId::clone(&id), Open { carrier, owner: None });
        }
        let (handle, worker) = create_local_session(SessionId::clone(&id), self.inner.session_config.clone());
        self.inner
            .sessions
            .write()
            .await
            .insert(SessionId::clone(&id), handle);
        Ok((id, WorkerTransport::spawn(worker)))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        Ok(self.inner.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        Ok(self.inner.has_session(id).await?)
    }

    /// rmcp calls this for a DELETE and whenever a session's service has ended, so perhaps twice.
    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        let open = self.known().open.remove(id);
        let closed = self.inner.close_session(id).await;
        if let Some(open) = open {
            let tools = Arc::clone(&self.tools);
            tokio::spawn(async move { tools.carrier_ended(&open.carrier).await });
        }
        Ok(closed?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.inner.create_stream(id, message).await?)
    }

    async fn accept_message(&self, id: &SessionId, message: ClientJsonRpcMessage) -> Result<(), Self::Error> {
        Ok(self.inner.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.inner.create_standalone_stream(id).await?)
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        Ok(self.inner.resume(id, last_event_id).await?)
    }
}
