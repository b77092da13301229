//! One opening of a session: from what the engine shows to a sandbox that has granted its lease.
//!
//! ```text
//!            ┌──────────────── look again ◀───────────────┐
//!            ▼                                            │
//! find ─▶ decide ─┬─ Join ── hello ── lease ── granted ───┼──▶ Bond
//!                 │                    └── 410, lost ──────┤
//!                 ├─ Wait ── until it has ended ──────────┤
//!                 ├─ Bury ── destroy ─────────────────────┤
//!                 └─ Claim ─ fill ─ set aside ─ adopt ─ look ─ lease ──▶ Bond
//!                             └─ lost ──────── └── Taken, gone ─┘
//! ```
//! A server may die between any two of these steps. What it leaves is one of the states that
//! [`decide`] knows, so whoever comes next goes on from there, and no loss is forgotten: a tombstone goes
//! only once its news was told.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use greenroom_protocol::{
    ArchiveFault, EndReason, Ended, FilesFate, Hello, LeaseRequest, LeaseState, RefusalKind, RestartReason,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    OpenError, Provenance, Shared, Terms,
    decision::{Knowledge, Step, decide, presumed_by_archive},
    eviction::Room,
    table::{Bond, Memory},
};
use crate::{
    archive::Restored,
    conversation::{Principal, SessionName},
    engine::{EngineError, Found, Place},
    guest::{Guest, GuestError},
    pool::{Claim, ClaimError, Pool},
    sandbox::{SandboxId, restart_reason},
};

/// Looks at the engine before an opening is given up: each time something else changed in between.
const LOOKS: u32 = 12;
/// Places that are made for one opening: another may take the first one.
const PLACES: u32 = 3;
/// How long a sandbox that is ending may take.
const ENDING: Duration = Duration::from_secs(5);
/// How long an engine may be away: a restart takes it seconds, and costs no session.
const ENGINE_AWAY: Duration = Duration::from_secs(10);
/// Pauses between two looks at something that is about to change.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Hellos that a sandbox may leave unanswered, each for its deadline of 10 s.
const HELLOS: u32 = 3;
/// Renamed sandboxes that are asked whose they are, and how long each may take.
const STRAYS: usize = 8;
const STRAY: Duration = Duration::from_secs(2);

/// What the engine shows of a session that never was.
const NOTHING: Found = Found {
    place: Place::Absent,
    tombstone: None,
    strays: Vec::new(),
};

/// An opening under way.
pub(super) struct Opening {
    shared: Arc<Shared>,
    pool: Pool,
    /// Whose turn it is when a sandbox is free.
    whose: Principal,
    name: SessionName,
    terms: Terms,
    /// What is known of the sandbox that was last seen bound to this session.
    known: Option<SandboxId>,
    fate: Option<RestartReason>,
    /// A claim that was made for another purpose and is still good.
    hand: Option<Claim>,
    /// Why the session's archive is not tried again.
    refused: Option<ArchiveFault>,
    /// A claimed sandbox was lost while it was filled.
    lost_over_files: bool,
}

/// What came of asking one sandbox.
enum Asked {
    Granted(Box<Bond>),
    /// It is gone, or will be: the engine tells. With what was met, if that was no orderly end.
    Over(Option<GuestError>),
}

impl Opening {
    pub(super) fn new(
        shared: Arc<Shared>,
        pool: Pool,
        whose: Principal,
        name: SessionName,
        terms: Terms,
    ) -> Self {
        Self {
            shared,
            pool,
            whose,
            name,
            terms,
            known: None,
            fate: None,
            hand: None,
            refused: None,
            lost_over_files: false,
        }
    }

    /// Opens the session, and remembers what was learned of it, in failure too.
    pub(super) async fn open(mut self) -> Result<Bond, OpenError> {
        let memory = self.shared.table.memory(&self.name);
        let mut closed = None;
        if let Some(Memory { id, fate, bond }) = memory {
            self.known = Some(id);
            self.fate = fate;
            closed = bond.clone().filter(|bond| !bond.guest.is_open());
            if let Some(bond) = bond
                && bond.guest.is_open()
                && let Some(bond) = self.renew(bond).await
            {
                return Ok(self.opened(bond));
            }
        }
        match self.search().await {
            Ok(bond) => Ok(self.opened(bond)),
            Err(error) => {
                if let Some(id) = self.known {
                    // The engine may be away: the sandbox's guest opens another channel when it is back, and knows what
                    // has stirred since its files were archived.
                    let bond = closed.filter(|bond| *bond.guest.id() == id && self.fate.is_none());
                    let fate = self.fate;
                    self.shared.table.remember(&self.name, Memory { id, fate, bond });
                }
                Err(error)
            }
        }
    }

    fn opened(&self, bond: Bond) -> Bond {
        tracing::debug!(session = self.name.short(), sandbox = %bond.guest.id(), standing = ?bond.standing, "opened");
        let memory = Memory {
            id: bond.guest.id().clone(),
            fate: None,
            bond: Some(bond.clone()),
        };
        self.shared.table.remember(&self.name, memory);
        if let Some(archive) = &self.shared.archive {
            let owner = self.shared.secret.owner(&self.whose);
            archive.watch(&self.name, &bond.guest, owner, self.terms.idle);
        }
        bond
    }

    /// A cached guest that has news to tell, or that is to keep another time: its agent is asked again. An
    /// answer that is no grant is left to the search, which looks at the whole of it.
    async fn renew(&mut self, bond: Bond) -> Option<Bond> {
        match self.lease(bond.guest, None, FilesFate::Gone).await {
            Ok(Asked::Granted(bond)) => Some(*bond),
            Ok(Asked::Over(_)) => None,
            Err(error) => {
                tracing::debug!(session = self.name.short(), %error, "not renewed");
                None
            }
        }
    }

    async fn search(&mut self) -> Result<Bond, OpenError> {
        let mut met = None;
        for look in 0..LOOKS {
            let found = if look == 0 && self.terms.provenance == Provenance::JustMinted {
                // Nobody can have opened it before; if somebody has all the same, adopting says so.
                NOTHING
            } else {
                self.shared.find_or_bring_back(&self.name).await?
            };
            let knowledge = Knowledge {
                known: self.known.as_ref(),
                fate: self.fate,
                provenance: self.terms.provenance,
            };
            let step = decide(&found, knowledge);
            tracing::debug!(session = self.name.short(), ?step, "next step");
            let asked = match step {
                Step::Join {
                    id,
                    recorded,
                    presumed,
                } => self.join(&id, recorded, presumed).await?,
                Step::Claim { aside, news } => self.begin(aside, news).await?,
                Step::Wait(id) => {
                    if !self.has_ended(&id).await? {
                        return Err(OpenError::StillEnding {
                            seconds: ENDING.as_secs(),
                        });
                    }
                    Asked::Over(None)
                }
                Step::Bury(id) => {
                    self.destroy(&id).await?;
                    Asked::Over(None)
                }
            };
            match asked {
                Asked::Granted(bond) => return Ok(*bond),
                Asked::Over(error) => met = error.or(met),
            }
            sleep(pause(look)).await;
        }
        Err(met.map_or(OpenError::Unsettled { looks: LOOKS }, OpenError::Guest))
    }

    /// Asks a sandbox that has the session's name.
    async fn join(
        &mut self,
        id: &SandboxId,
        recorded: Option<RestartReason>,
        presumed: Option<RestartReason>,
    ) -> Result<Asked, OpenError> {
        let guest = match self.shared.reach(&self.name, id).await {
            Ok(guest) => guest,
            Err(error) if error.is_silence() => return self.give_up(id).await,
            Err(error) if error.is_gone() => return Ok(Asked::Over(Some(error))),
            Err(error) => return Err(error.into()),
        };
        let hello = match greet(&guest).await {
            Ok(hello) => hello,
            Err(error) if error.is_silence() => return self.give_up(id).await,
            Err(error) if error.is_gone() => return Ok(Asked::Over(Some(error))),
            Err(error) => return Err(error.into()),
        };
        let news = match hello.lease {
            LeaseState::Ending(Ended { reason }) => return self.see_off(id, reason).await,
            LeaseState::Bound(view) if view.key != self.name.digest() => return Err(OpenError::NotOurs),
            LeaseState::Bound(_) => {
                self.know(id, None);
                recorded
            }
            LeaseState::Unbound => recorded.or(presumed),
        };
        // One that was filled before it got its name knows that itself.
        self.lease(guest, news, FilesFate::Gone).await
    }

    /// Asks for the lease; it is the second fence after the name.
    async fn lease(
        &mut self,
        guest: Guest,
        news: Option<RestartReason>,
        files: FilesFate,
    ) -> Result<Asked, OpenError> {
        let request = LeaseRequest {
            key: self.name.digest(),
            idle_ms: millis(self.terms.idle),
            lifetime_ms: millis(self.terms.lifetime),
            restarted: news,
            files,
        };
        match guest.lease(&request).await {
            Ok(grant) => Ok(Asked::Granted(Box::new(Bond {
                guest,
                standing: grant.standing,
                idle: Some(self.terms.idle),
            }))),
            Err(GuestError::Ended(reason)) => self.see_off(guest.id(), reason).await,
            Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::Conflict => {
                Err(OpenError::NotOurs)
            }
            Err(error) if error.is_gone() => Ok(Asked::Over(Some(error))),
            Err(error) => Err(error.into()),
        }
    }

    /// Claims a sandbox and gives it the session's name.
    async fn begin(
        &mut self,
        aside: Option<SandboxId>,
        news: Option<RestartReason>,
    ) -> Result<Asked, OpenError> {
        let mut claim = match self.hand.take() {
            Some(claim) => claim,
            None => self.claim_or_make_room().await?,
        };
        // Before it has the name: should this server die now, the archive is as it was, and so is the news.
        let (news, files) = match self.fill(&mut claim, news).await {
            Ok(filled) => filled,
            Err(lost) => return Ok(Asked::Over(Some(lost))),
        };
        if let Some(id) = aside {
            // By id: another server may have done it already, and its new sandbox has the name by now.
            self.shared.engine.set_aside(&id, &self.name).await?;
        }
        match claim.adopt(&self.name).await {
            Ok(guest) => {
                let news = match news {
                    None => self.lost_meanwhile().await?,
                    told => told,
                };
                self.lease(guest, news, files).await
            }
            // Whatever came of it: who has the name now is what counts.
            Err(error) => {
                tracing::debug!(session = self.name.short(), %error, "not adopted");
                Ok(Asked::Over(None))
            }
        }
    }

    /// Puts the files of the session's earlier sandbox into a claimed one, if they were archived. An archive proves
    /// that there was one, whatever else is known.
    ///
    /// # Errors
    /// The claimed sandbox was lost over it; after a second one none is asked to take the archive again.
    async fn fill(
        &mut self,
        claim: &mut Claim,
        news: Option<RestartReason>,
    ) -> Result<(Option<RestartReason>, FilesFate), GuestError> {
        let archive = match &self.shared.archive {
            Some(archive) if self.terms.provenance != Provenance::JustMinted => archive,
            Some(_) | None => return Ok((news, FilesFate::Gone)),
        };
        let restored = match self.refused {
            Some(fault) => Restored::Refused(fault),
            None => {
                archive
                    .restore(&self.name, || claim.guest_to_fill().clone())
                    .await
            }
        };
        Ok(match restored {
            Restored::Nothing => (news, FilesFate::Gone),
            Restored::Kept { fate, age } => (news.or(Some(presumed_by_archive(age))), fate),
            Restored::Refused(fault) => {
                self.refused = Some(fault);
                let news = news.or(Some(RestartReason::NoLongerOnRecord));
                (news, FilesFate::Refused { fault })
            }
            // An engine that goes away loses a channel, too; twice is no accident.
            Restored::Lost(error) if self.lost_over_files => {
                self.refused = Some(ArchiveFault::NotUnpacked);
                return Err(error);
            }
            Restored::Lost(error) => {
                self.lost_over_files = true;
                return Err(error);
            }
        })
    }

    /// What was set aside since this opening looked.
    ///
    /// Race: a claim may wait for half a minute. In that time another server may have opened the session, and its
    /// sandbox may have ended and been set aside. Now that the name is ours, all that was set aside is older than
    /// us, and shows. `server/tests/session_model.rs` finds the silent loss without this.
    async fn lost_meanwhile(&self) -> Result<Option<RestartReason>, OpenError> {
        if self.terms.provenance == Provenance::JustMinted {
            return Ok(None);
        }
        let tombstone = self.shared.find(&self.name).await?.tombstone;
        Ok(tombstone.and_then(|tombstone| tombstone.fate.reason()))
    }

    /// A sandbox, if need be in the place of a session that nobody has called for long.
    async fn claim_or_make_room(&mut self) -> Result<Claim, OpenError> {
        for _ in 0..PLACES {
            let refused = match self.claim().await {
                Err(OpenError::Claim(refused)) if refused.is_of_room() => refused,
                outcome => return outcome,
            };
            let spec = self.pool.spec();
            let room = match spec.evict_after {
                Some(after) => self.shared.make_room(spec.name(), after).await?,
                None => Room::None,
            };
            if room == Room::None {
                return Err(refused.into());
            }
        }
        // Others were quicker each time.
        self.claim().await
    }

    /// Race: the pool may be replaced, or no longer be offered, while this waits for it.
    async fn claim(&mut self) -> Result<Claim, OpenError> {
        loop {
            // The pool bounds the wait; the opening as a whole is bounded by whoever started it.
            let claimed = self
                .pool
                .claim(&self.whose, Instant::now() + super::OPENING)
                .await;
            let Err(ClaimError::Closed) = claimed else {
                return Ok(claimed?);
            };
            match self.shared.pool(self.pool.spec().name()) {
                None => return Err(OpenError::NoPool(self.pool.spec().name().clone())),
                Some(pool) if pool.is_closing() || pool.is(&self.pool) => return Ok(claimed?),
                Some(pool) => self.pool = pool,
            }
        }
    }

    /// A sandbox has decided to end: waits for that. One that goes on running has given up its lease all the
    /// same, so it is ended, or destroyed where there is no loss to tell of.
    async fn see_off(&mut self, id: &SandboxId, reason: EndReason) -> Result<Asked, OpenError> {
        let lost = restart_reason(reason);
        if lost.is_some() {
            self.know(id, lost);
        }
        if !self.has_ended(id).await? {
            tracing::warn!(session = self.name.short(), sandbox = %id, "says that it ends, and does not");
            match lost {
                Some(_) => self.shared.engine.end(id).await?,
                None => self.destroy(id).await?,
            }
        }
        Ok(Asked::Over(None))
    }

    /// No channel into a sandbox comes up, or nobody answers there. Where one comes up and somebody answers in
    /// another one, it is the sandbox that hangs and not the host or the engine, and it is ended.
    async fn give_up(&mut self, id: &SandboxId) -> Result<Asked, OpenError> {
        let other = match self.shared.table.another(id) {
            Some(other) => other.id().clone(),
            None => {
                let claim = self.claim().await?;
                let other = claim.guest().id().clone();
                self.hand = Some(claim);
                other
            }
        };
        // A channel that is open proves nothing about an engine that opens none.
        let answers = match Guest::connect(Arc::clone(&self.shared.engine), other).await {
            Ok(guest) => guest.hello().await.is_ok(),
            Err(_) => false,
        };
        if !answers {
            return Err(OpenError::Silent);
        }
        tracing::warn!(session = self.name.short(), sandbox = %id, "hangs, while another answers: ended");
        self.know(id, Some(RestartReason::Unresponsive));
        // Not destroyed: should this server die before it has told of the loss, the next one finds it on record.
        self.shared.engine.end(id).await?;
        Ok(Asked::Over(None))
    }

    fn know(&mut self, id: &SandboxId, fate: Option<RestartReason>) {
        self.known = Some(id.clone());
        self.fate = fate;
    }

    async fn has_ended(&self, id: &SandboxId) -> Result<bool, OpenError> {
        self.shared.has_ended(&self.name, id, ENDING).await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), OpenError> {
        Ok(self.shared.engine.destroy(id).await?)
    }
}

impl Shared {
    /// What the engine shows; an engine that is away for a moment is waited for.
    pub(super) async fn find(&self, name: &SessionName) -> Result<Found, OpenError> {
        let until = Instant::now() + ENGINE_AWAY;
        let mut attempt = 0;
        loop {
            match self.engine.find(name).await {
                Err(EngineError::Unreachable(_)) if Instant::now() < until => sleep(pause(attempt)).await,
                outcome => return Ok(outcome?),
            }
            attempt += 1;
        }
    }

    /// The same, once the session's sandbox has its name back, should somebody have renamed it: else a fresh one would
    /// silently take its place, or a reset would find none.
    pub(super) async fn find_or_bring_back(&self, name: &SessionName) -> Result<Found, OpenError> {
        let found = self.find(name).await?;
        if found.place == Place::Absent && self.bring_back(name, &found.strays).await? {
            return self.find(name).await;
        }
        Ok(found)
    }

    /// Looks for the session's sandbox among those that somebody has renamed, and gives it its name back. A sandbox cannot
    /// claim to be another session's: only who was bound to it knows its digest.
    async fn bring_back(&self, name: &SessionName, strays: &[SandboxId]) -> Result<bool, OpenError> {
        let asked = strays.iter().take(STRAYS).map(async |id| {
            let hello = async { self.reach(name, id).await?.hello().await };
            // One that says nothing is not to hold up conversations whose it is not.
            let hello = timeout(STRAY, hello).await.ok()?.ok()?;
            matches!(hello.lease, LeaseState::Bound(view) if view.key == name.digest()).then_some(id)
        });
        let Some(id) = join_all(asked).await.into_iter().flatten().next() else {
            return Ok(false);
        };
        tracing::warn!(session = name.short(), sandbox = %id, "somebody has renamed it; it gets its name back");
        self.engine.put_back(id, name).await?;
        Ok(true)
    }

    /// Waits for at most `patience` until the engine shows a sandbox neither running nor ending.
    pub(super) async fn has_ended(
        &self,
        name: &SessionName,
        id: &SandboxId,
        patience: Duration,
    ) -> Result<bool, OpenError> {
        let until = Instant::now() + patience;
        let mut look = 0;
        loop {
            match self.find(name).await?.place {
                Place::Running(holder) | Place::Ending(holder) if holder == *id => {}
                Place::Running(_) | Place::Ending(_) | Place::Exited(_) | Place::Absent => return Ok(true),
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            sleep(pause(look)).await;
            look += 1;
        }
    }

    /// The guest of a running sandbox: the one that is there, or a new one.
    pub(super) async fn reach(&self, name: &SessionName, id: &SandboxId) -> Result<Guest, GuestError> {
        match self.table.guest(name, id) {
            Some(guest) => Ok(guest),
            None => Guest::connect(Arc::clone(&self.engine), id.clone()).await,
        }
    }
}

/// Says hello until it is answered or left unanswered too often.
async fn greet(guest: &Guest) -> Result<Hello, GuestError> {
    for _ in 1..HELLOS {
        match guest.hello().await {
            Err(GuestError::Timeout { .. }) => {}
            answer => return answer,
        }
    }
    guest.hello().await
}

fn pause(n: u32) -> Duration {
    (PAUSE * (1 << n.min(10))).min(LONGEST_PAUSE)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
