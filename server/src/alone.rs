//! A server of this process's own, for one conversation of this machine: what `greenroom cp` and `greenroom forward`
//! start, so that neither needs another.

use std::sync::Arc;

use crate::{
    config::Config,
    conversation::{BadConversationId, ConversationId, PoolName, Principal, SessionKey},
    mcp::{self, BadConversation},
    serve::{ServeError, Server},
    sessions::{Sessions, Terms},
};

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum AloneError {
    /// No such pool.
    #[error("there is no pool {0:?}")]
    Pool(String),
    /// No such conversation can be.
    #[error(transparent)]
    Id(#[from] BadConversationId),
    /// The same, for an id that looks as if we had minted it.
    #[error(transparent)]
    Garbled(#[from] BadConversation),
    /// The engine or the state directory.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Such a server. It has to be [ended](Self::end).
#[derive(Debug)]
pub(crate) struct Alone {
    server: Server,
    /// The conversation's session.
    pub(crate) key: SessionKey,
    /// What it is opened on.
    pub(crate) terms: Terms,
}

impl Alone {
    pub(crate) async fn start(
        mut config: Config,
        pool: Option<&str>,
        conversation: &str,
    ) -> Result<Self, AloneError> {
        let wanted = pool.unwrap_or(config.default_pool.as_str()).to_owned();
        config.pools.retain(|name, _| name.as_str() == wanted);
        let (name, pool) = config.pools.iter_mut().next().ok_or(AloneError::Pool(wanted))?;
        // Nothing is kept warm for one conversation.
        pool.warm = 0;
        let (name, idle, lifetime) = (name.clone(), pool.idle, pool.lifetime);
        config.default_pool = name.clone();
        let server = Server::start(Arc::new(config)).await?;
        match session(&server, name, conversation) {
            Ok((key, provenance)) => Ok(Self {
                server,
                key,
                terms: Terms {
                    idle,
                    lifetime,
                    provenance,
                },
            }),
            Err(error) => {
                server.end().await;
                Err(error)
            }
        }
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        self.server.sessions()
    }

    pub(crate) async fn end(self) {
        self.server.end().await;
    }
}

fn session(
    server: &Server,
    pool: PoolName,
    conversation: &str,
) -> Result<(SessionKey, crate::sessions::Provenance), AloneError> {
    let (conversation, provenance) = mcp::typed(server.secret(), &ConversationId::parse(conversation)?)?;
    let principal = Principal::Local;
    let key = SessionKey {
        pool,
        principal,
        conversation,
    };
    Ok((key, provenance))
}
