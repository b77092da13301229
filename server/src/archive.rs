//! Files that outlive their sandbox: each session's work directory, packed by its agent, sealed, and kept in a store
//! for the session's next sandbox.
//!
//! ```text
//! guest ── tar ──▶ seal ──▶ store      after changes, before an end, before a server leaves   (`save`, `vigil`)
//! guest ◀── tar ── open ◀── store      before a fresh sandbox gets the session's name         (`restore`)
//!                             ✗        on `reset_session`, for what is still on its way, too    (`forget`)
//! ```
//! Everything streams: an archive costs a few megabytes of memory, whatever its size. What comes from inside is
//! opaque here, bounded, and goes back to the same session only: a hostile archive meets a guest's rights in a fresh
//! sandbox of its own.
//!
//! # Several servers
//! A server archives the sessions that it has a channel to. Where two have one, the header in the store says what was
//! archived already, and the agent packs for one of them at a time. Servers that share their sessions should share
//! their store.
//!
//! # What must never happen
//! Half an archive never takes the place of a whole one, and half a one is never unpacked. A store that fails harms
//! no call: that is logged, counted, and said where files are missed.

mod forget;
mod owners;
mod plan;
mod quota;
mod restore;
mod save;
mod seal;
mod store;
mod sweep;
mod vigil;

use std::{
    cmp::Reverse,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    plan::Stirred,
    save::{Belief, SAVE},
    store::Store,
    vigil::{Vigil, Watched},
};
pub use self::{
    restore::Restored,
    save::{SaveError, Saved},
    store::{Bucket, Place, PlaceError},
};
use crate::{
    config::Size,
    conversation::{Owner, Secret, SessionName},
    guest::Guest,
    sandbox::SandboxId,
};

/// Archives that are made at a time.
const SAVES: u32 = 2;
/// Archives that are unpacked at a time.
const RESTORES: usize = 4;
/// How long an agent may take to see that nothing has changed: it takes 32 ms, once it has given up what it was packing.
const UNCHANGED: Duration = Duration::from_secs(2);
/// Between two attempts to archive what somebody archives already.
const BUSY: Duration = Duration::from_millis(250);

/// What may be kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes of one session's archive, before it is compressed.
    pub session: Size,
    /// Bytes of all, as they lie in the store. Beyond it the oldest of who has most go.
    pub total: Size,
    /// Since it was written.
    pub keep: Duration,
}

/// What happened to an archive, for the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveEvent {
    /// One was to be made.
    Save {
        /// What came of it: `stored`, `unchanged`, `yielded`, `forgotten`, `too_large`, `busy`, `lost`,
        /// `store`.
        outcome: &'static str,
        /// How long it took.
        took: Duration,
    },
    /// One was looked for, for a fresh sandbox.
    Restore {
        /// What came of it: `kept`, `none`, `corrupt`, `too_large`, `unreadable`, `not_unpacked`, `lost`.
        outcome: &'static str,
        /// How long it took.
        took: Duration,
    },
    /// The store was swept.
    Swept {
        /// Bytes that are left.
        bytes: u64,
        /// Archives that went.
        gone: usize,
    },
}

/// Hears what happens to archives.
pub trait ArchiveObserver: fmt::Debug + Send + Sync + 'static {
    /// Something happened. Called on the task that it happened to, so it must not wait.
    fn observe(&self, event: ArchiveEvent);
}

/// Whom nothing is told.
impl ArchiveObserver for () {
    fn observe(&self, _event: ArchiveEvent) {}
}

/// The archives of a deployment. Clones are the same; with the last one their tasks end.
#[derive(Clone)]
pub struct Archive {
    shared: Arc<Shared>,
    _alive: Arc<DropGuard>,
}

struct Shared {
    store: Store,
    secret: Secret,
    allowance: Allowance,
    observer: Arc<dyn ArchiveObserver>,
    saves: Semaphore,
    restores: Semaphore,
    /// Sandboxes that are watched.
    watched: Mutex<HashMap<SandboxId, Arc<Watched>>>,
    written: Notify,
    closing: CancellationToken,
}

impl Archive {
    /// Archives in a place, and the task that sweeps it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The place cannot be one.
    pub fn open(
        place: &Place,
        deployment: &str,
        secret: Secret,
        allowance: Allowance,
        observer: Arc<dyn ArchiveObserver>,
    ) -> Result<Self, PlaceError> {
        let archive = Self::unswept(place, deployment, secret, allowance, observer)?;
        let (swept, closing) = (Arc::clone(&archive.shared), archive.shared.closing.clone());
        drop(tokio::spawn(async move {
            closing.run_until_cancelled(swept.keep_swept()).await
        }));
        Ok(archive)
    }

    /// The same for somebody who passes by: no task sweeps it.
    ///
    /// # Errors
    /// The place cannot be one.
    pub fn unswept(
        place: &Place,
        deployment: &str,
        secret: Secret,
        allowance: Allowance,
        observer: Arc<dyn ArchiveObserver>,
    ) -> Result<Self, PlaceError> {
        let closing = CancellationToken::new();
        let alive = Arc::new(closing.clone().drop_guard());
        let shared = Arc::new(Shared {
            store: Store::open(place, deployment)?,
            secret,
            allowance,
            observer,
            saves: Semaphore::new(SAVES as usize),
            restores: Semaphore::new(RESTORES),
            watched: Mutex::default(),
            written: Notify::new(),
            closing,
        });
        Ok(Self {
            shared,
            _alive: alive,
        })
    }

    /// Archives a session's files from now on, until its sandbox is gone. `idle`: how long it may be idle.
    pub fn watch(&self, name: &SessionName, guest: &Guest, owner: Owner, idle: Duration) {
        let mut watched = self.shared.watched();
        let before = watched.get(guest.id());
        if before.is_some_and(|before| before.guest.is(guest)) {
            return;
        }
        let session = Arc::new(match before {
            None => Watched::new(name.clone(), guest.clone(), owner),
            // Another guest has counted what stirred until now; its vigil ends.
            Some(_) => Watched::stirred_before(name.clone(), guest.clone(), owner),
        });
        watched.insert(guest.id().clone(), Arc::clone(&session));
        drop(watched);
        let vigil = Vigil::new(Arc::clone(&self.shared), session, idle);
        let closing = self.shared.closing.clone();
        drop(tokio::spawn(async move {
            closing.run_until_cancelled(vigil.keep()).await
        }));
    }

    /// Archives a session's files now, unless nothing has changed. Where somebody archives them already, it waits for
    /// that: what has changed since that began is to be in the archive as well.
    ///
    /// # Errors
    /// [`SaveError`]; the archive that was there stays.
    pub async fn save(&self, name: &SessionName, guest: &Guest) -> Result<Saved, SaveError> {
        let watched = self.shared.watched_by(guest);
        let belief = watched.map_or(Belief::None, |watched| watched.belief());
        self.save_by(name, guest, belief).await
    }

    /// The same, for a caller that has so much time: what would take longer is believed to be unchanged, if its times say
    /// so. `None`: it is not.
    pub async fn save_within(
        &self,
        name: &SessionName,
        guest: &Guest,
        time: Duration,
    ) -> Option<Result<Saved, SaveError>> {
        match timeout(time, self.save(name, guest)).await {
            Ok(saved) => Some(saved),
            Err(_) => timeout(UNCHANGED, self.save_by(name, guest, Belief::Changes))
                .await
                .ok(),
        }
    }

    async fn save_by(&self, name: &SessionName, guest: &Guest, belief: Belief) -> Result<Saved, SaveError> {
        let until = Instant::now() + SAVE;
        loop {
            match self.shared.save(name, guest, belief).await {
                Err(error) if error.is_busy() && Instant::now() < until => sleep(BUSY).await,
                saved => return saved,
            }
        }
    }

    /// Whether there is an archive of a session that would be taken.
    pub async fn has(&self, name: &SessionName) -> bool {
        // A store that does not say has none for now.
        matches!(self.shared.known(name).await, Ok(Some(_)))
    }

    /// Fills a fresh sandbox with the files of a session's earlier one. It is taken only if there are any.
    pub async fn restore(&self, name: &SessionName, fresh: impl FnMut() -> Guest) -> Restored {
        self.shared.restore(name, fresh).await
    }

    /// Forgets a session's files as they were up to that time, as far as the store does.
    pub async fn forget(&self, name: &SessionName, up_to: SystemTime) {
        if let Err(error) = self.shared.forget(name, up_to).await {
            tracing::warn!(session = name.short(), %error, "an archive could not be forgotten");
        }
    }

    /// Archives what has changed, as far as that goes within `grace`, and watches nothing any more.
    pub async fn close(&self, grace: Duration) {
        let mut stirred: Vec<Arc<Watched>> = self
            .shared
            .watched()
            .values()
            .filter(|session| session.stirred() != Stirred::No)
            .cloned()
            .collect();
        // In this order they have their turns.
        stirred.sort_by_key(|session| Reverse(session.stirred()));
        let saves = stirred.iter().map(|session| async {
            // Logged and counted where it is done; there is nobody else to tell. The sandbox goes on.
            drop(self.save_by(&session.name, &session.guest, Belief::Changes).await);
        });
        let work = async {
            join_all(saves).await;
            // Those that vigils had begun are not stirred any more, and are seen through as well.
            drop(self.shared.saves.acquire_many(SAVES).await);
        };
        if timeout(grace, work).await.is_err() {
            tracing::warn!(
                "not all files could be archived before the server's end: their last archives stand"
            );
        }
        self.shared.closing.cancel();
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Watched>>> {
        // Nothing panics while it holds the lock.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a session here whose files this guest has.
    fn watched_by(&self, guest: &Guest) -> Option<Arc<Watched>> {
        let watched = self.watched();
        let session = watched.get(guest.id())?;
        session.guest.is(guest).then(|| Arc::clone(session))
    }

    /// Whose a session is that is watched.
    fn owner(&self, name: &SessionName) -> Option<Owner> {
        let watched = self.watched();
        let mut sessions = watched.values();
        sessions
            .find(|session| session.name == *name)
            .map(|session| session.owner)
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("store", &self.shared.store)
            .field("allowance", &self.shared.allowance)
            .finish_non_exhaustive()
    }
}
