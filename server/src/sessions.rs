//! Sessions: which sandbox a conversation has, and what its caller must hear about it.
//!
//! ```text
//! open(key) ─┬─ cached guest that is open and has nothing to tell ──────────▶ existing
//!            └─ one opening per session and server: find, decide, act ──────▶ new · existing · restarted(why)
//! look(key) ─── the same, but nothing is created, bound or told ────────────▶ a session, or none
//! reset(key) ── the sandbox is told to end through its lease, and has ended
//! told()     ── an answer with the news was written out: only now the last record of a loss goes
//! ```
//! # Who owns what
//! The engine's names are the truth, the sandbox's lease is the second fence, and nobody here owns a bound
//! sandbox. What this server remembers are hints: it may be killed at any moment, and any number of servers may
//! open the same session on one engine without knowing of each other.
//!
//! # When is a loss told as what?
//! A sandbox that ended stands as a tombstone, whose exit code says why. One that was *removed* leaves none: a
//! server that held a channel to it says `restarted(removed)`, a server that never saw it says `new`, unless the
//! id was minted by us, which proves that a session existed: `restarted(no_longer_on_record)`.

mod decision;
mod ending;
mod eviction;
mod opening;
mod table;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use futures_util::FutureExt as _;
use greenroom_protocol::{LastWords, LeaseState, RestartReason, RunId, Standing};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::ending::Reset;
use self::{
    eviction::Evictions,
    opening::Opening,
    table::{Bond, Flight, Memory, Table},
};
use crate::{
    archive::{Archive, SaveError},
    conversation::{PoolName, Principal, Secret, SessionKey, SessionName},
    engine::{Engine, EngineError, Place, Tombstone},
    guest::{Guest, GuestError},
    pool::{ClaimError, Pool},
    sandbox::SandboxId,
};

/// An opening as a whole: a silent sandbox takes 30 s to give up, a claim 30, an engine may be away for 10.
const OPENING: Duration = Duration::from_secs(90);
/// How long a sandbox that was told to end may take: its agent gives itself 2 s.
const RESET: Duration = Duration::from_secs(10);
/// Tombstones of one session that are cleared at a time. There is one, unless servers died in between.
const TOMBSTONES: usize = 8;
/// How long a call waits for the answer before it to be written out. A client that reads slowly, while it calls
/// again, is told its news twice.
const TELLING: Duration = Duration::from_millis(500);
/// Openings that a caller waits for where others ask for the same session with other terms.
const ROUNDS: usize = 3;

/// How long a session may last, and where its id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// It ends after this long without a run, tunnel or transfer. Each opening may change it.
    pub idle: Duration,
    /// It ends this long after it was bound. The first opening fixes it.
    pub lifetime: Duration,
    /// Where the conversation's id comes from.
    pub provenance: Provenance,
}

/// Where a conversation's id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// The client made it: no session need ever have existed.
    Own,
    /// Minted by us, and told to the client by an answer that came from a sandbox.
    Minted,
    /// Minted for this very call.
    JustMinted,
}

/// Opens sessions. Clones share the openings under way and the channels; with the last clone they end.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
    _alive: Arc<DropGuard>,
}

struct Shared {
    secret: Secret,
    engine: Arc<dyn Engine>,
    /// Those that are claimed from now.
    pools: RwLock<HashMap<PoolName, Pool>>,
    /// Where files outlive their sandbox.
    archive: Option<Archive>,
    table: Table,
    evictions: Evictions,
    closing: CancellationToken,
}

/// A session's sandbox, ready to be used.
#[derive(Clone)]
pub struct Session {
    /// The way to its sandbox.
    pub guest: Guest,
    /// What the answer must say.
    pub standing: Standing,
    /// The session's name in the engine.
    pub name: SessionName,
    shared: Arc<Shared>,
}

/// Why a session could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such pool.
    #[error("there is no pool {0}")]
    NoPool(PoolName),
    /// The pool granted no sandbox.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The engine failed.
    #[error("{0}")]
    Engine(#[source] Arc<EngineError>),
    /// The session's sandbox failed.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The sandbox with the session's name says that it is another session's.
    #[error("the sandbox with this session's name belongs to another session")]
    NotOurs,
    /// The session's earlier sandbox does not come to its end.
    #[error("the session's sandbox is ending, and has not ended within {seconds} s")]
    StillEnding {
        /// How long it was waited for.
        seconds: u64,
    },
    /// The session's sandbox does not answer, and no other one does.
    #[error("the session's sandbox does not answer, and no other sandbox does: the host is in trouble")]
    Silent,
    /// Its state kept changing.
    #[error("the session's state kept changing: given up after {looks} looks")]
    Unsettled {
        /// How often it was looked at.
        looks: u32,
    },
    /// Files do not outlive their sandbox here.
    #[error("files are not archived here (setting archive)")]
    NoArchive,
    /// The session's files could not be kept.
    #[error("the session's files could not be kept: {0}")]
    NotKept(#[source] Arc<SaveError>),
    /// It took longer than it may.
    #[error("the session was not opened within {seconds} s")]
    TimedOut {
        /// The deadline.
        seconds: u64,
    },
    /// The opening broke off: the server is ending, or a bug.
    #[error("opening the session broke off")]
    Broken,
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        Self::Engine(Arc::new(error))
    }
}

impl Sessions {
    /// Sessions in these pools of one engine.
    pub fn new(secret: Secret, engine: Arc<dyn Engine>, pools: impl IntoIterator<Item = Pool>) -> Self {
        Self::archiving(secret, engine, pools, None)
    }

    /// The same, with files that outlive their sandbox.
    pub fn archiving(
        secret: Secret,
        engine: Arc<dyn Engine>,
        pools: impl IntoIterator<Item = Pool>,
        archive: Option<Archive>,
    ) -> Self {
        let closing = CancellationToken::new();
        let alive = Arc::new(closing.clone().drop_guard());
        Self {
            shared: Arc::new(Shared {
                secret,
                engine,
                pools: RwLock::new(by_name(pools)),
                archive,
                table: Table::default(),
                evictions: Evictions::default(),
                closing,
            }),
            _alive: alive,
        }
    }

    /// The pools that sandboxes are claimed from.
    #[must_use]
    pub fn pools(&self) -> Vec<Pool> {
        let mut pools: Vec<Pool> = self.shared.pools().values().cloned().collect();
        pools.sort_by(|one, other| one.spec().name().cmp(other.spec().name()));
        pools
    }

    /// Claims from these pools from now on; what waits for a claim of another goes over to the one of its name. Sandboxes
    /// that are bound stay their sessions'.
    pub fn claim_from(&self, pools: impl IntoIterator<Item = Pool>) {
        let mut claimed = self.shared.pools.write().unwrap_or_else(PoisonError::into_inner);
        *claimed = by_name(pools);
    }

    /// The session's sandbox: the one that it has, or a new one.
    ///
    /// A session that was answered from memory may have ended a moment ago: a call to its guest then fails with
    /// an error that [is gone](GuestError::is_gone), and opening it again tells what happened.
    ///
    /// Callers of one session share an opening. Cancel safe: it goes on, and the next caller finds what
    /// came of it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&self, key: &SessionKey, terms: Terms) -> Result<Session, OpenError> {
        let pool = self
            .shared
            .pool(&key.pool)
            .ok_or_else(|| OpenError::NoPool(key.pool.clone()))?;
        let name = self.shared.secret.session_name(key);
        self.shared.news_settled(&name).await;
        if let Some(bond) = self.shared.table.serving(&name, terms.idle) {
            return Ok(self.session(name, bond));
        }
        for _ in 1..ROUNDS {
            let bond = self.flight(&pool, key, &name, terms).await?;
            // The opening may have been that of a caller with other terms.
            if bond.idle == Some(terms.idle) {
                return Ok(self.session(name, bond));
            }
        }
        let bond = self.flight(&pool, key, &name, terms).await?;
        Ok(self.session(name, bond))
    }

    /// The session's sandbox if it has one. Nothing is created, bound, kept alive or told.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn look(&self, key: &SessionKey) -> Result<Option<Session>, OpenError> {
        self.look_by_name(self.shared.secret.session_name(key)).await
    }

    /// The same for who knows the session's name only.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn look_by_name(&self, name: SessionName) -> Result<Option<Session>, OpenError> {
        self.shared.news_settled(&name).await;
        let id = match self.shared.table.memory(&name).and_then(|memory| memory.bond) {
            Some(bond) if bond.guest.is_open() && bond.standing == Standing::Existing => {
                return Ok(Some(self.session(name, bond)));
            }
            Some(bond) if bond.guest.is_open() => bond.guest.id().clone(),
            Some(_) | None => match self.shared.find_or_bring_back(&name).await?.place {
                Place::Running(id) => id,
                Place::Ending(_) | Place::Exited(_) | Place::Absent => return Ok(None),
            },
        };
        let guest = match self.shared.reach(&name, &id).await {
            Err(error) if error.is_over() => return Ok(None),
            guest => guest?,
        };
        let lease = match guest.hello().await {
            Err(error) if error.is_over() => return Ok(None),
            hello => hello?.lease,
        };
        match lease {
            LeaseState::Unbound | LeaseState::Ending(_) => Ok(None),
            LeaseState::Bound(view) if view.key != name.digest() => Err(OpenError::NotOurs),
            LeaseState::Bound(view) => {
                let bond = Bond {
                    guest,
                    standing: view.standing,
                    idle: None,
                };
                self.shared.remember_looked_at(&name, &bond);
                Ok(Some(self.session(name, bond)))
            }
        }
    }

    /// The newest sandbox of a session that has ended and whose news is not told yet, and what it has left behind.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn left_behind(
        &self,
        name: &SessionName,
    ) -> Result<Option<(SandboxId, Option<LastWords>)>, OpenError> {
        let found = self.shared.find(name).await?;
        let Some(Tombstone { id, .. }) = found.tombstones().next() else {
            return Ok(None);
        };
        let words = self.shared.engine.last_words(&id).await?;
        Ok(Some((id, words)))
    }

    /// How a sandbox ended that was the session's a moment ago, waited for at most `patience`. `None`: it goes on, or
    /// nothing tells.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn end_of(
        &self,
        name: &SessionName,
        id: &SandboxId,
        patience: Duration,
    ) -> Result<Option<(RestartReason, Option<LastWords>)>, OpenError> {
        if !self.shared.has_ended(name, id, patience).await? {
            return Ok(None);
        }
        let found = self.shared.find(name).await?;
        let its = found.tombstones().find(|tombstone| tombstone.id == *id);
        let Some(reason) = its.and_then(|tombstone| tombstone.fate.reason()) else {
            return Ok(None);
        };
        let words = self.shared.engine.last_words(id).await?;
        Ok(Some((reason, words)))
    }

    fn session(&self, name: SessionName, bond: Bond) -> Session {
        Session {
            guest: bond.guest,
            standing: bond.standing,
            name,
            shared: Arc::clone(&self.shared),
        }
    }

    /// The opening of a session that is under way, or a new one.
    async fn flight(
        &self,
        pool: &Pool,
        key: &SessionKey,
        name: &SessionName,
        terms: Terms,
    ) -> Result<Bond, OpenError> {
        let flight = self
            .shared
            .table
            .flight(name, || self.shared.take_off(pool, &key.principal, name, terms));
        flight.await
    }
}

/// Pools by their names.
fn by_name(pools: impl IntoIterator<Item = Pool>) -> HashMap<PoolName, Pool> {
    pools
        .into_iter()
        .map(|pool| (pool.spec().name().clone(), pool))
        .collect()
}

impl Shared {
    fn pools(&self) -> RwLockReadGuard<'_, HashMap<PoolName, Pool>> {
        self.pools.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, name: &PoolName) -> Option<Pool> {
        self.pools().get(name).cloned()
    }

    /// An opening that becomes a task once somebody waits for it, and goes on whoever still does.
    fn take_off(
        self: &Arc<Self>,
        pool: &Pool,
        whose: &Principal,
        name: &SessionName,
        terms: Terms,
    ) -> Flight {
        let opening = Opening::new(Arc::clone(self), pool.clone(), whose.clone(), name.clone(), terms);
        let landing = Landing {
            shared: Arc::clone(self),
            name: name.clone(),
        };
        let opening = async move {
            let open = Box::pin(timeout(OPENING, opening.open()));
            match landing.shared.closing.run_until_cancelled(open).await {
                Some(Ok(outcome)) => outcome,
                Some(Err(_)) => Err(OpenError::TimedOut {
                    seconds: OPENING.as_secs(),
                }),
                None => Err(OpenError::Broken),
            }
        };
        // Spawned at the first poll, never under the table's lock: a runtime that is shutting down drops what it is
        // given at once, and the landing takes that lock.
        async move { tokio::spawn(opening).await.unwrap_or(Err(OpenError::Broken)) }
            .boxed()
            .shared()
    }

    /// Waits for an answer with the session's news that is being written out.
    ///
    /// Race: a caller that has read an answer calls again before we have seen that answer leave and the agent has
    /// heard so. Without this, what it was just told would be told to it again: `new`, of its own variables.
    async fn news_settled(&self, name: &SessionName) {
        if let Some(mut telling) = self.table.told_soon(name) {
            // Either way there is nothing more to wait for: it was told, or it will be told again.
            let _settled = timeout(TELLING, telling.changed()).await;
        }
    }

    fn remember_looked_at(&self, name: &SessionName, bond: &Bond) {
        let memory = Memory {
            id: bond.guest.id().clone(),
            fate: None,
            bond: Some(bond.clone()),
        };
        self.table.remember(name, memory);
    }

    /// Destroys what was set aside of a session whose present sandbox has told its caller of the loss.
    async fn clear_tombstones(&self, name: &SessionName, present: &SandboxId) -> Result<(), OpenError> {
        for _ in 0..TOMBSTONES {
            let found = self.find(name).await?;
            // Race: should this sandbox have ended and been set aside by now, its own tombstone is news that
            // nobody has been told. While it holds the name, all that was set aside is older than it.
            let (Place::Running(holder), Some(tombstone)) = (found.place, found.tombstone) else {
                break;
            };
            if holder != *present {
                break;
            }
            self.engine.destroy(&tombstone.id).await?;
        }
        Ok(())
    }
}

/// Takes an opening off the table at its end, also where it panicked or was cancelled.
struct Landing {
    shared: Arc<Shared>,
    name: SessionName,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.shared.table.landed(&self.name);
    }
}

impl Session {
    /// An answer that says `standing`, and what run `loss` says of a kernel that lost its variables, is on its way:
    /// calls that come meanwhile wait for it a little.
    #[must_use]
    pub fn telling(self, standing: Standing, loss: Option<RunId>) -> Telling {
        let under_way = self.shared.table.telling(&self.name);
        Telling {
            session: self,
            standing,
            loss,
            _under_way: under_way,
        }
    }

    /// An answer that said `standing` was written out. News of a loss is repeated until then, here and on every
    /// other server; from now on the session is an existing one.
    ///
    /// # Errors
    /// [`OpenError`]: the news will be told again.
    pub async fn told(&self, standing: &Standing) -> Result<(), OpenError> {
        let lost = match standing {
            Standing::Existing => return Ok(()),
            Standing::New => false,
            Standing::Restarted { .. } => true,
        };
        self.guest.told().await?;
        self.shared.table.told(&self.name, self.guest.id());
        if lost {
            self.shared.clear_tombstones(&self.name, self.guest.id()).await?;
        }
        Ok(())
    }
}

/// News of a session on its way to a caller. Dropped before it has arrived, it is told again.
#[derive(Debug)]
pub struct Telling {
    session: Session,
    standing: Standing,
    loss: Option<RunId>,
    _under_way: watch::Sender<()>,
}

impl Telling {
    /// The answer was written out: see [`Session::told`].
    ///
    /// # Errors
    /// [`OpenError`]: the news will be told again.
    pub async fn told(self) -> Result<(), OpenError> {
        if let Some(run) = &self.loss {
            self.session.guest.told_loss(run).await?;
        }
        self.session.told(&self.standing).await
    }

    /// The session that it is about.
    #[must_use]
    pub const fn session(&self) -> &SessionName {
        &self.session.name
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("pools", &self.shared.pools().keys())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("name", &self.name.short())
            .field("guest", &self.guest)
            .field("standing", &self.standing)
            .finish_non_exhaustive()
    }
}
