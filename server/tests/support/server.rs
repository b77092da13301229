//! A server process with its pool and sessions, and how a test of sessions begins and ends.

use std::{sync::Arc, time::Duration};

use greenroom::{
    conversation::{ConversationId, PoolName, Principal, Secret, SessionKey, SessionName},
    engine::{Engine, ListedState},
    guest::GuestError,
    pool::{Pool, PoolSpec},
    sandbox::SandboxId,
    sessions::{OpenError, Provenance, Session, Sessions, Terms},
};
use greenroom_protocol::{FilesFate, Language, RestartReason, RunEventKind, RunId, RunRequest, Standing};
use tokio::time::sleep;

use super::{fake_engine::FakeEngine, mortal::Mortal};

pub const IDLE: Duration = Duration::from_secs(600);
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// An agent that nobody claims gives up after 30 s and takes 2 s over it.
pub const UNBOUND: Duration = Duration::from_secs(35);

/// A server process.
pub struct Server {
    pub engine: Mortal,
    pub pool: Pool,
    pub sessions: Sessions,
}

impl Server {
    pub fn start(engine: &FakeEngine, name: &str) -> Self {
        Self::with(engine, name, |_| {})
    }

    pub fn with(engine: &FakeEngine, name: &str, tune: impl FnOnce(&mut PoolSpec)) -> Self {
        let engine = Mortal::new(engine, name);
        let mut spec = PoolSpec::new(super::spec());
        spec.warm = 1;
        spec.parallel_boots = 2;
        tune(&mut spec);
        let shared: Arc<dyn Engine> = Arc::new(engine.clone());
        let pool = Pool::start(spec, Arc::clone(&shared), Arc::new(()));
        let sessions = Sessions::new(Secret::new([7; 32]), shared, [pool.clone()]);
        Self {
            engine,
            pool,
            sessions,
        }
    }

    pub async fn open(&self, conversation: &str) -> Session {
        self.try_open(conversation, terms()).await.unwrap()
    }

    pub async fn try_open(&self, conversation: &str, terms: Terms) -> Result<Session, OpenError> {
        self.sessions.open(&key(conversation), terms).await
    }

    /// Opens a session and tells its caller, as a whole call does.
    pub async fn call(&self, conversation: &str) -> (SandboxId, Standing) {
        let session = self.open(conversation).await;
        session.told(&session.standing).await.unwrap();
        (session.guest.id().clone(), session.standing)
    }

    /// Waits until this server has noticed that a sandbox is gone.
    pub async fn misses(&self, conversation: &str) {
        let session = self.sessions.look(&key(conversation)).await.unwrap();
        if let Some(session) = session {
            session.guest.closed().await;
        }
    }

    /// Shuts down: warm sandboxes go, bound ones stay.
    pub async fn stop(self) {
        let census = self.pool.close(Duration::from_secs(60)).await;
        assert_eq!(census.counts.held(), 0, "{census:?}");
    }
}

/// The end of a test: resets its conversations, stops its server, and looks for what is left.
pub async fn end(engine: &FakeEngine, server: Server, conversations: &[&str]) {
    for conversation in conversations {
        server.sessions.reset(&key(conversation)).await.unwrap();
    }
    server.stop().await;
    // Whatever servers that died have left behind ends itself.
    sleep(UNBOUND).await;
    for sandbox in engine.list().await.unwrap() {
        let ended = matches!(sandbox.state, ListedState::Exited(_) | ListedState::Created);
        assert!(ended, "left running: {sandbox:?}\n{engine:?}");
        engine.destroy(&sandbox.id).await.unwrap();
    }
    engine.assert_nothing_left().await;
}

pub fn key(conversation: &str) -> SessionKey {
    SessionKey {
        pool: PoolName::parse("python").unwrap(),
        principal: Principal::Local,
        conversation: ConversationId::parse(conversation).unwrap(),
    }
}

pub fn name(conversation: &str) -> SessionName {
    Secret::new([7; 32]).session_name(&key(conversation))
}

pub fn terms() -> Terms {
    Terms {
        idle: IDLE,
        lifetime: LIFETIME,
        provenance: Provenance::Own,
    }
}

pub fn minted(provenance: Provenance) -> Terms {
    Terms {
        provenance,
        ..terms()
    }
}

pub fn restarted(reason: RestartReason) -> Standing {
    let files = FilesFate::Gone;
    Standing::Restarted { reason, files }
}

/// Runs a line in a session to its end.
pub async fn run(session: &Session, id: &str, line: &str) -> Result<Standing, GuestError> {
    let mut follow = session.guest.run(&RunRequest {
        id: RunId(id.to_owned()),
        language: Language::Python,
        code: line.to_owned(),
        timeout_ms: 60_000,
    })?;
    let mut standing = None;
    while let Some(event) = follow.next().await? {
        if let RunEventKind::Finished(outcome) = event.kind {
            standing = Some(outcome.standing);
        }
    }
    Ok(standing.expect("a run that finishes"))
}

/// The tombstones and the sandbox of a session, as the engine names them.
pub fn names(engine: &FakeEngine, conversation: &str) -> Vec<String> {
    let name = name(conversation).to_string();
    engine
        .names()
        .into_iter()
        .filter(|other| other.starts_with(&name))
        .collect()
}
