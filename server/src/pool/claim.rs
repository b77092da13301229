//! The right to one sandbox, on its way from the pool to a session.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{
        mpsc::{OwnedPermit, Sender},
        oneshot,
    },
    time::{Instant, sleep, timeout},
};

use super::census::Hit;
use crate::{
    conversation::{PoolName, Principal, SessionName},
    engine::{Adoption, Engine, EngineError, Found, Place},
    guest::Guest,
    sandbox::SandboxId,
};

/// An engine's rename takes milliseconds; one that takes this long is in doubt.
const ADOPT: Duration = Duration::from_secs(10);
/// Looks for the name after a rename in doubt, and the time between them.
const LOOKS: u32 = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What comes back to the keeper of a sandbox that was out of its hands.
#[derive(Debug)]
pub(super) enum Returned {
    /// Somebody dropped it: it is to be destroyed.
    Dropped(SandboxId),
    /// It was not used, and is as warm as before.
    Unused(SandboxId, Guest),
    /// It is a session's.
    Adopted(SandboxId),
    /// It may be a session's.
    LetGo(SandboxId),
}

/// The duty to see to the end of one sandbox. Made before the engine is asked to create it; dropping it
/// condemns the sandbox, wherever that happens.
#[derive(Debug)]
pub(super) struct Custody {
    id: SandboxId,
    /// Reserved when the custody is made, so that a drop can be told without waiting. `None` once told.
    way_back: Option<OwnedPermit<Returned>>,
}

impl Custody {
    /// Custody of a sandbox that does not exist yet. `None`: as many are out as the pool may have.
    pub(super) fn of(id: SandboxId, returns: &Sender<Returned>) -> Option<Self> {
        let way_back = returns.clone().try_reserve_owned().ok();
        way_back.is_some().then_some(Self { id, way_back })
    }

    pub(super) const fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Ends the duty: the ledger has taken it over, and nothing is told.
    pub(super) fn discharge(mut self) {
        self.way_back = None;
    }

    fn tell(mut self, news: impl FnOnce(SandboxId) -> Returned) {
        if let Some(way_back) = self.way_back.take() {
            way_back.send(news(self.id.clone()));
        }
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        if let Some(way_back) = self.way_back.take() {
            way_back.send(Returned::Dropped(self.id.clone()));
        }
    }
}

/// Exactly one warm sandbox, in the hand of whoever claimed it. Dropping it destroys the sandbox, as its
/// holder may have used it.
#[derive(Debug)]
pub struct Claim {
    guest: Guest,
    custody: Custody,
    engine: Arc<dyn Engine>,
    contents: Contents,
}

/// What a claimed sandbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contents {
    /// What every fresh one holds.
    Fresh,
    /// Something of one session: it serves that one or none.
    OfASession,
}

impl Claim {
    pub(super) const fn new(guest: Guest, custody: Custody, engine: Arc<dyn Engine>) -> Self {
        Self {
            guest,
            custody,
            engine,
            contents: Contents::Fresh,
        }
    }

    /// The sandbox.
    #[must_use]
    pub const fn id(&self) -> &SandboxId {
        self.custody.id()
    }

    /// Its agent, over a channel that was open when it was claimed.
    #[must_use]
    pub const fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Its agent, to put something of a session into the sandbox: whatever comes of that, it goes to nobody else.
    pub const fn guest_to_fill(&mut self) -> &Guest {
        self.contents = Contents::OfASession;
        &self.guest
    }

    /// Gives it back as it is, for another claim.
    pub fn give_back(self) {
        let Self {
            guest,
            custody,
            contents,
            ..
        } = self;
        match contents {
            Contents::Fresh => custody.tell(|id| Returned::Unused(id, guest)),
            Contents::OfASession => custody.tell(Returned::Dropped),
        }
    }

    /// Gives the sandbox a session's name.
    ///
    /// Cancel safe: before the first poll the sandbox is condemned; afterwards the adoption goes on to its
    /// end by itself, and a sandbox that became the session's is left to whoever finds it under the name.
    ///
    /// # Errors
    /// [`AdoptError`]; after each of them the sandbox is seen to, and the session may claim another.
    pub async fn adopt(self, name: &SessionName) -> Result<Guest, AdoptError> {
        let (answer, adopted) = oneshot::channel();
        let name = name.clone();
        // Race: a caller that goes away while the rename is under way must not leave a sandbox that nobody
        // answers for, or that the pool destroys under its new session: so a task of its own sees it through.
        tokio::spawn(async move {
            // A caller that went away wants no answer; dropping the guest closes the channel.
            drop(answer.send(self.see_adopted(&name).await));
        });
        adopted.await.unwrap_or(Err(AdoptError::Broken))
    }

    async fn see_adopted(self, name: &SessionName) -> Result<Guest, AdoptError> {
        let Self {
            guest,
            custody,
            engine,
            contents,
        } = self;
        // From here on the rename counts as sent: should this task break off, the sandbox is let go.
        let custody = Sent(Some(custody));
        let renamed = timeout(ADOPT, engine.adopt(guest.id(), name)).await;
        let doubt = match renamed {
            Ok(Ok(Adoption::Adopted)) => {
                custody.tell(Returned::Adopted);
                return Ok(guest);
            }
            Ok(Ok(Adoption::Taken)) => {
                match contents {
                    Contents::Fresh => custody.tell(|id| Returned::Unused(id, guest)),
                    Contents::OfASession => custody.tell(Returned::Dropped),
                }
                return Err(AdoptError::Taken);
            }
            // It died in the claimer's hand: there was nothing to rename.
            Ok(Err(EngineError::NoSandbox(_))) => {
                custody.tell(Returned::Dropped);
                return Err(AdoptError::Gone);
            }
            Ok(Err(error)) => error,
            Err(_) => EngineError::Timeout {
                what: "rename a sandbox",
                seconds: ADOPT.as_secs(),
            },
        };
        match whose(&*engine, name, guest.id()).await {
            Whose::Ours => {
                custody.tell(Returned::Adopted);
                Ok(guest)
            }
            // Race: the rename may still take effect once the other is gone, so this sandbox must not serve
            // anybody else: it is neither put back nor destroyed, and ends itself when its channel closes.
            Whose::Anothers => {
                custody.tell(Returned::LetGo);
                Err(AdoptError::Taken)
            }
            Whose::Unknown => {
                custody.tell(Returned::LetGo);
                Err(AdoptError::Unknown(doubt))
            }
        }
    }
}

/// Custody of a sandbox whose rename was sent: no drop destroys it any more.
#[derive(Debug)]
struct Sent(Option<Custody>);

impl Sent {
    fn tell(mut self, news: impl FnOnce(SandboxId) -> Returned) {
        if let Some(custody) = self.0.take() {
            custody.tell(news);
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(custody) = self.0.take() {
            custody.tell(Returned::LetGo);
        }
    }
}

enum Whose {
    Ours,
    Anothers,
    Unknown,
}

/// Looks at who has a name after a rename whose outcome is unknown.
async fn whose(engine: &dyn Engine, name: &SessionName, id: &SandboxId) -> Whose {
    for look in 0..LOOKS {
        if look > 0 {
            sleep(LOOK_AGAIN).await;
        }
        let Ok(Ok(Found { place, .. })) = timeout(ADOPT, engine.find(name)).await else {
            continue;
        };
        let holder = match place {
            Place::Absent => continue,
            Place::Running(holder) | Place::Ending(holder) => holder,
            Place::Exited(tombstone) => tombstone.id,
        };
        return if holder == *id {
            Whose::Ours
        } else {
            Whose::Anothers
        };
    }
    Whose::Unknown
}

/// Why a sandbox did not become the session's.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Another sandbox has the name: that one is the session's.
    #[error("another sandbox was bound to this session first")]
    Taken,
    /// The sandbox was gone before it could be given a name.
    #[error("the sandbox ended before it was bound")]
    Gone,
    /// Nobody knows whether it has the name.
    #[error("whether the sandbox was bound is unknown: {0}")]
    Unknown(#[source] EngineError),
    /// The adoption broke off: a bug, or the server is ending.
    #[error("binding the sandbox broke off")]
    Broken,
}

/// A claim that is on its way to whoever waits for it.
#[derive(Debug)]
pub(super) struct Offer(Option<Claim>);

impl Offer {
    pub(super) const fn new(claim: Claim) -> Self {
        Self(Some(claim))
    }

    pub(super) fn accept(mut self) -> Option<Claim> {
        self.0.take()
    }
}

/// Race: a claim that is granted in the moment in which its caller gives up would be dropped unseen. Nobody
/// has touched that sandbox, so it goes back warm.
impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(Claim { guest, custody, .. }) = self.0.take() {
            custody.tell(|id| Returned::Unused(id, guest));
        }
    }
}

/// Why no sandbox was granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// All of the pool's sandboxes are conversations'.
    #[error(
        "all {max} sandboxes of pool {pool} are in use (limit {limit} = {max}): try again in {} s, or end a session",
        .retry_after.as_secs()
    )]
    Capacity {
        /// The pool.
        pool: PoolName,
        /// The configuration's name for the limit.
        limit: &'static str,
        /// The limit.
        max: usize,
        /// When trying again is worthwhile.
        retry_after: Duration,
    },
    /// The host has no memory for one more.
    #[error(
        "the host has no memory for one more sandbox of pool {pool} (limit memory): try again in {} s, or end a session",
        .retry_after.as_secs()
    )]
    Memory {
        /// The pool.
        pool: PoolName,
        /// When trying again is worthwhile.
        retry_after: Duration,
    },
    /// Too many wait already.
    #[error("{bound} claims wait for a sandbox of pool {pool} already (limit {limit} = {bound})")]
    QueueFull {
        /// The pool.
        pool: PoolName,
        /// The configuration's name for the limit.
        limit: &'static str,
        /// The limit.
        bound: usize,
    },
    /// None became warm in time.
    #[error("no sandbox of pool {pool} was ready within {} s: {delay}", .waited.as_secs())]
    TimedOut {
        /// The pool.
        pool: PoolName,
        /// How long.
        waited: Duration,
        /// Why.
        delay: Delay,
    },
    /// What the pool adds to its image could not be installed: waiting would be in vain.
    #[error("pool {pool} has no sandboxes: {reason}")]
    NotInstalled {
        /// The pool.
        pool: PoolName,
        /// Why, in the installer's words.
        reason: String,
    },
    /// The pool is closing.
    #[error("the server is shutting down")]
    Closed,
}

impl ClaimError {
    /// Whether one sandbox less would help.
    #[must_use]
    pub const fn is_of_room(&self) -> bool {
        match self {
            Self::Capacity { .. } | Self::Memory { .. } => true,
            Self::QueueFull { .. } | Self::TimedOut { .. } | Self::NotInstalled { .. } | Self::Closed => {
                false
            }
        }
    }
}

/// What a claim was waiting for when its time was up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Delay {
    /// Boots are under way.
    #[error("{booting} are booting, and {waiting} calls wait for one")]
    Booting {
        /// Boots under way.
        booting: usize,
        /// Claims that wait, with this one.
        waiting: usize,
    },
    /// What the pool adds to its image is being installed, which is done once.
    #[error("its packages are being installed")]
    Installing,
    /// The image is made ready, which is done once.
    #[error("its image is still being prepared")]
    Preparing,
    /// Boots fail.
    #[error("the last {failures} boots failed: {reason}")]
    Failing {
        /// In a row.
        failures: u32,
        /// The last one's.
        reason: String,
    },
    /// The engine does not answer.
    #[error("{reason}")]
    EngineUnreachable {
        /// What was tried.
        reason: String,
    },
}

/// A claim that waits.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) reply: oneshot::Sender<Result<Offer, ClaimError>>,
    pub(super) whose: Principal,
    pub(super) asked: Instant,
    pub(super) deadline: Instant,
    /// [`Hit::Warm`] until it had to wait.
    pub(super) hit: Hit,
}
