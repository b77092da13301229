//! A request whose session is known by name: how it finds its sandbox, and what an answer from there carries.

use std::sync::Arc;

use axum::{
    http::{HeaderName, HeaderValue},
    response::Response,
};
use greenroom_protocol::{RunId, Standing};

use super::{Rest, Shared, put};
use crate::{
    config::PoolConfig,
    conversation::{PoolName, Principal, SessionKey},
    delivery::{Freight, Heard, News as Owed},
    guest::{Guest, GuestError},
    mcp,
    rest::{
        address::{self, Address, Dialect},
        fault::{Code, Fault},
        news,
    },
    sandbox::SandboxId,
    sessions::{Provenance, Session, Terms},
};

const GUID: HeaderName = HeaderName::from_static("x-ms-session-guid");
const NEW_ALLOCATION: HeaderName = HeaderName::from_static("x-ms-new-allocation");
const SESSION: HeaderName = HeaderName::from_static("x-greenroom-session");
const FILES: HeaderName = HeaderName::from_static("x-greenroom-files");

/// A pool as it was offered when a request came in.
#[derive(Clone)]
pub(super) struct Offered {
    pub(super) name: PoolName,
    pub(super) config: Arc<PoolConfig>,
}

/// A request whose session is known by name.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) rest: Rest,
    pub(super) key: SessionKey,
    pub(super) pool: Arc<PoolConfig>,
    pub(super) provenance: Provenance,
    /// As the client wrote it: a secret, for answers to its own caller only.
    pub(super) identifier: String,
    pub(super) address: Arc<Address>,
}

/// What is sent back, and what is owed when it has arrived.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) owed: Option<Owed>,
    pub(super) session: &'static str,
}

impl Rest {
    pub(super) fn pool(&self, name: &str) -> Result<Offered, Fault> {
        let offer = self.shared.offers.now();
        let found = offer.find(name).map(|(name, config)| Offered {
            name: name.clone(),
            config: Arc::clone(config),
        });
        found.ok_or_else(|| Fault::new(Code::PoolNotFound, "there is no such pool"))
    }

    pub(super) fn call(
        &self,
        pool: Offered,
        principal: &Principal,
        identifier: Option<&str>,
        address: &Arc<Address>,
    ) -> Result<Call, Fault> {
        let identifier =
            identifier.ok_or_else(|| Fault::bad("the parameter identifier is missing").of("identifier"))?;
        let named = address::identifier(identifier)?;
        let (conversation, provenance) = mcp::typed(&self.shared.secret, &named).map_err(|_| {
            Fault::bad(
                "this identifier begins like one that Greenroom mints and is none: it was copied wrongly",
            )
            .of("identifier")
        })?;
        let principal = principal.clone();
        Ok(Call {
            rest: self.clone(),
            key: SessionKey {
                pool: pool.name,
                principal,
                conversation,
            },
            pool: pool.config,
            provenance,
            identifier: identifier.to_owned(),
            address: Arc::clone(address),
        })
    }
}

impl Call {
    pub(super) fn shared(&self) -> &Shared {
        &self.rest.shared
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.address.dialect
    }

    /// The session's sandbox, made if there is none.
    pub(super) async fn open(&self) -> Result<Session, Fault> {
        let terms = Terms {
            idle: self.pool.idle,
            lifetime: self.pool.lifetime,
            provenance: self.provenance,
        };
        let opened = self.shared().sessions.open(&self.key, terms).await;
        let session = opened.map_err(|error| {
            tracing::warn!(%error, "a session could not be opened");
            Fault::from(&error)
        })?;
        self.shared().roll.note(&self.key);
        Ok(session)
    }

    pub(super) async fn look(&self) -> Result<Option<Session>, Fault> {
        self.shared()
            .sessions
            .look(&self.key)
            .await
            .map_err(|error| Fault::from(&error))
    }

    /// Does something with the session's sandbox. One that was answered from memory may have ended a moment ago:
    /// then nothing was done, and it is opened again.
    pub(super) async fn with<T, F>(
        &self,
        act: impl Fn(Guest) -> F,
    ) -> Result<(Session, Result<T, GuestError>), Fault>
    where
        F: Future<Output = Result<T, GuestError>>,
    {
        let session = self.open().await?;
        match act(session.guest.clone()).await {
            Err(error) if error.is_gone() => {}
            done => return Ok((session, done)),
        }
        let session = self.open().await?;
        let done = act(session.guest.clone()).await;
        Ok((session, done))
    }

    /// What an answer takes along that tells the end of an execution. Not before it has arrived somebody knows.
    pub(super) fn telling_end_of(&self, id: &RunId) -> Freight {
        let (rest, key, id) = (self.rest.clone(), self.key.clone(), id.clone());
        Freight {
            heard: Some(Heard::new(move || rest.shared.accepted.told(&key, &id))),
            ..Freight::default()
        }
    }

    /// An answer that comes from a session: what has to be heard of it stands in its headers.
    pub(super) fn found(&self, mut response: Response, session: &Session, standing: &Standing) -> Answer {
        let headers = response.headers_mut();
        put(headers, GUID, &self.rest.guid(session.guest.id()));
        let is_new = *standing != Standing::Existing;
        headers.insert(
            NEW_ALLOCATION,
            HeaderValue::from_static(if is_new { "true" } else { "false" }),
        );
        put(headers, SESSION, &news::header(standing));
        if let Some(fate) = news::News::of(standing).files {
            put(headers, FILES, fate);
        }
        Answer {
            response,
            owed: None,
            session: standing.as_str(),
        }
    }

    /// The same where the news are told by it: in its body or, if that has no place for them, its headers.
    pub(super) fn told(
        &self,
        response: Response,
        session: Session,
        standing: &Standing,
        loss: Option<RunId>,
    ) -> Answer {
        let answer = self.found(response, &session, standing);
        let owed = Owed::of(session, standing, loss);
        Answer { owed, ..answer }
    }
}

impl Rest {
    /// Names the sandbox behind an identifier, and tells nothing of it.
    pub(super) fn guid(&self, id: &SandboxId) -> String {
        let mac = self.shared.secret.mac("session guid", id.to_string().as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&mac[..16]);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }
}
