//! MCP: tools, conversations, answers and transports. The only place that names `rmcp`.
//!
//! ```text
//! endpoint (HTTP, both eras) ─┐
//! sse (HTTP of 2024) ─────────┤
//! stdio ──────────────────────┴▶ service ─▶ tools ─┬▶ arguments     parsed once, every limit named
//!                                                  ├▶ conversation  which one: the host's word, the argument, minted
//!                                                  ├▶ watch         patience, progress, cancellation
//!                                                  └▶ render        the one place that shapes answers
//! ```
//! Only `service`, `endpoint`, `transports`, `sse` and `stdio` know the protocol; behind `tools` there is none.

mod arguments;
mod caller;
mod conversation;
mod endpoint;
mod instructions;
mod minted;
mod render;
mod resources;
mod service;
mod sse;
mod stdio;
mod tools;
mod transports;
mod watch;

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rmcp::ServerHandler;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

pub use self::{
    conversation::BadConversation,
    endpoint::{Answered, Endpoint},
    sse::Sse,
    stdio::Attached,
    tools::Ways,
};
use self::{minted::Mint, tools::Tools, transports::Transports};
use crate::{
    auth::Scope,
    config::{Config, Offers},
    conversation::{ConversationId, Secret},
    metrics::Metrics,
    places::Places,
    sessions::{Provenance, Sessions},
    transcript,
};

/// Reads a conversation's id that a person typed: any that a client may have used, but for a garbled one of ours.
///
/// # Errors
/// [`BadConversation`].
pub fn typed(secret: &Secret, id: &ConversationId) -> Result<(ConversationId, Provenance), BadConversation> {
    conversation::typed(secret, id)
}

/// What the sender of a message has to be allowed, as far as the message alone says so. The tools ask by themselves.
#[must_use]
pub fn needed(message: &[u8]) -> Option<Scope> {
    #[derive(Deserialize)]
    struct Message {
        method: String,
        #[serde(default)]
        params: Params,
    }
    #[derive(Deserialize, Default)]
    struct Params {
        #[serde(default)]
        name: String,
    }
    let message: Message = serde_json::from_slice(message).ok()?;
    match message.method.as_str() {
        "tools/call" => tools::needed(message.params.name.parse().ok()?),
        "resources/list" | "resources/read" => Some(Scope::Files),
        _ => None,
    }
}

/// An id for a process that stands for a conversation.
///
/// # Errors
/// The operating system gave no random bytes.
pub fn mint(secret: &Secret) -> io::Result<ConversationId> {
    Mint::new(secret.clone())
        .mint(SystemTime::now())
        .map_err(io::Error::other)
}

/// The MCP server of this process. Clones share it.
#[derive(Clone, Debug)]
pub struct Mcp {
    tools: Arc<Tools>,
    /// From here on calls that break off were not broken off by their callers.
    closing: CancellationToken,
    /// Ends every stream.
    streams: CancellationToken,
}

impl Mcp {
    /// The tools over these sessions.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        offers: Offers,
        secret: Secret,
        sessions: Sessions,
        ways: Ways,
        metrics: Metrics,
    ) -> Self {
        Self {
            tools: Arc::new(Tools::new(config, offers, secret, sessions, ways, metrics)),
            closing: CancellationToken::new(),
            streams: CancellationToken::new(),
        }
    }

    /// The tools over HTTP.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(&self.tools, &self.closing, &self.streams)
    }

    /// Another handler in the tools' place, behind all the rest of the endpoint: how the conformance suite, which
    /// asks for tools of its own, is run against what is shipped.
    #[must_use]
    pub fn endpoint_over<H: ServerHandler + Clone + Send + Sync + 'static>(&self, handler: H) -> Endpoint {
        let transports = Arc::new(Transports::new(Arc::clone(&self.tools)));
        Endpoint::over(handler, transports, &self.tools, &self.streams)
    }

    /// The tools over HTTP as in 2024.
    #[must_use]
    pub fn sse(&self) -> Sse {
        Sse::new(&self.tools, &self.closing, &self.streams)
    }

    /// The tools over standard input and output, until that ends or [`close`](Self::close) is called.
    ///
    /// # Errors
    /// Standard input or output cannot be used.
    pub async fn stdio(&self, conversation: Option<ConversationId>) -> io::Result<()> {
        let (closing, streams) = (self.closing.clone(), self.streams.clone());
        stdio::own(Arc::clone(&self.tools), conversation, closing, streams).await
    }

    /// The tools for a process that is attached to this one, until it ends or [`close`](Self::close) is called. What
    /// is in flight when it ends was not cancelled by it.
    ///
    /// # Errors
    /// It says nothing that can be answered.
    pub async fn attached(
        &self,
        attached: Attached,
        input: impl AsyncRead + Send + Unpin + 'static,
        output: impl AsyncWrite + Send + Unpin + 'static,
    ) -> io::Result<()> {
        let (closing, stop) = (self.closing.child_token(), self.streams.child_token());
        stdio::serve(Arc::clone(&self.tools), attached, (input, output), closing, stop).await
    }

    /// Reads an id that a process of this deployment minted for itself.
    #[must_use]
    pub fn minted(&self, id: &str) -> Option<ConversationId> {
        self.tools.resolver().genuine(id)
    }

    /// The places of calls in flight. Calls that come by another protocol take theirs here too, so that one limit
    /// holds for all and a server that is leaving waits for all.
    #[must_use]
    pub fn in_flight(&self) -> Places {
        self.tools.in_flight()
    }

    /// Waits until no call is in flight, at most for `grace`, then ends every stream. Runs are left alone.
    pub async fn close(&self, grace: Duration) {
        self.closing.cancel();
        if !self.tools.drained(grace).await {
            tracing::warn!(?grace, "calls were still in flight; their runs go on");
        }
        self.streams.cancel();
    }
}
