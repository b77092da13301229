//! Room in a full pool: the session that has been idle longest, and for longer than the pool allows, makes it.
//!
//! Its files are archived first, and where they cannot be, another makes room. Whether it is still idle is decided by
//! its agent in the moment it ends, so no run is cut off. Its next call is told `restarted(evicted)`.
//!
//! A sandbox that gives its files slowly, or not at all, must not hold up everybody who needs room: each has a short
//! time for it, and who has made no room is asked last for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use greenroom_protocol::{EndReason, LeaseState, RefusalKind};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::{OpenError, RESET, Shared};
use crate::{
    conversation::{PoolName, SessionName},
    engine::{ListedState, Place},
    guest::{Guest, GuestError},
    sandbox::SandboxId,
};

/// How long a sandbox may take to say how idle it is.
const ANSWER: Duration = Duration::from_secs(5);
/// Sandboxes that are asked at a time.
const ASKED: usize = 8;
/// Sessions that are tried for one place: some have files that cannot be kept, some wake up.
const TRIES: usize = 4;

/// How long files may take to be archived: 256 MiB take most of it. Where they take longer, another makes room.
const ARCHIVING: Duration = Duration::from_secs(12);
/// How long a search goes on to begin with another, its wait for those before it included: whoever needs room hears then
/// that there is none. One that was begun with is seen through, or its end would be told to nobody.
const SEARCH: Duration = Duration::from_secs(30);
/// How long a session that has made no room is asked last.
const ASIDE: Duration = Duration::from_secs(300);

/// The searches for room of one server: one at a time, each makes one place.
#[derive(Debug)]
pub(super) struct Evictions {
    turn: Semaphore,
    /// Sandboxes that have made no room, and when.
    failed: Mutex<HashMap<SandboxId, Instant>>,
}

impl Default for Evictions {
    fn default() -> Self {
        Self {
            turn: Semaphore::new(1),
            failed: Mutex::default(),
        }
    }
}

impl Evictions {
    fn note_failed(&self, id: &SandboxId) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(id.clone(), Instant::now());
    }

    /// Those that have failed a short time ago.
    fn failed(&self) -> HashMap<SandboxId, Instant> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < ASIDE);
        failed.clone()
    }
}

/// What is left of a search for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// A session has ended.
    Made,
    /// None could.
    None,
}

/// A session that may make room.
#[derive(Clone, Debug)]
struct Candidate {
    name: SessionName,
    guest: Guest,
}

impl Shared {
    /// Ends a session of this pool that has been idle for `after`.
    ///
    /// # Errors
    /// The engine failed.
    pub(super) async fn make_room(&self, pool: &PoolName, after: Duration) -> Result<Room, OpenError> {
        let by = Instant::now() + SEARCH;
        let Ok(_turn) = timeout_at(by, self.evictions.turn.acquire()).await else {
            return Ok(Room::None);
        };
        let listed = self.engine.list().await?;
        let bound = listed.into_iter().filter(|sandbox| {
            sandbox.pool == *pool && sandbox.adopted && sandbox.state == ListedState::Running
        });
        let asked = stream::iter(bound)
            .map(|sandbox| self.ask_idle(sandbox.id))
            .buffer_unordered(ASKED);
        let answers: Vec<_> = asked.filter_map(std::future::ready).collect().await;
        let failed = self.evictions.failed();
        let in_turn = in_turn(answers, after, |candidate| {
            failed.contains_key(candidate.guest.id())
        });
        for candidate in in_turn.into_iter().take(TRIES) {
            if Instant::now() >= by {
                break;
            }
            let id = candidate.guest.id();
            match self.evict(&candidate, after).await {
                Ok(Room::Made) => {
                    tracing::info!(session = candidate.name.short(), sandbox = %id, %pool, "made room for another session");
                    return Ok(Room::Made);
                }
                Ok(Room::None) => {}
                Err(error) => tracing::debug!(sandbox = %id, %error, "makes no room"),
            }
            self.evictions.note_failed(id);
        }
        Ok(Room::None)
    }

    async fn ask_idle(&self, id: SandboxId) -> Option<(Duration, Candidate)> {
        let ask = async {
            let guest = match self.table.guest_of(&id) {
                Some(guest) => guest,
                None => Guest::connect(Arc::clone(&self.engine), id).await?,
            };
            let state = guest.lease_state().await?;
            Ok::<_, GuestError>((guest, state))
        };
        // One that does not say cannot be told to end either.
        let (guest, state) = timeout(ANSWER, ask).await.ok()?.ok()?;
        let LeaseState::Bound(view) = state else {
            return None;
        };
        let name = SessionName::from_digest(&view.key)?;
        Some((Duration::from_millis(view.idle_ms), Candidate { name, guest }))
    }

    async fn evict(&self, candidate: &Candidate, after: Duration) -> Result<Room, OpenError> {
        let Candidate { name, guest } = candidate;
        // Whose it is the engine says: a sandbox that claims to be another session's is not archived as that one's.
        if self.find(name).await?.place != Place::Running(guest.id().clone()) {
            return Ok(Room::None);
        }
        if let Some(archive) = &self.archive
            && !matches!(archive.save_within(name, guest, ARCHIVING).await, Some(Ok(_)))
        {
            return Ok(Room::None);
        }
        match guest.end_if_idle(EndReason::Evicted, after).await {
            Ok(()) | Err(GuestError::Ended(_)) => {}
            // Race: it was called meanwhile.
            Err(GuestError::Refused(refusal)) if refusal.kind == RefusalKind::Conflict => {
                return Ok(Room::None);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(if self.has_ended(name, guest.id(), RESET).await? {
            Room::Made
        } else {
            Room::None
        })
    }
}

/// Those that have been idle for long enough, the longest first, but those that have failed after the others. Pure.
fn in_turn<T>(mut idle: Vec<(Duration, T)>, after: Duration, failed: impl Fn(&T) -> bool) -> Vec<T> {
    idle.retain(|(idle, _)| *idle >= after);
    idle.sort_by_key(|(idle, session)| (failed(session), std::cmp::Reverse(*idle)));
    idle.into_iter().map(|(_, session)| session).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_makes_room_and_nobody_before_their_time() {
        let seconds = Duration::from_secs;
        for (idle, after, failed, turn) in [
            (&[][..], 10, "", &[][..]),
            (&[(9, 'a')], 10, "", &[]),
            (&[(10, 'a')], 10, "", &['a']),
            (
                &[(11, 'a'), (300, 'b'), (0, 'c'), (12, 'd')],
                10,
                "",
                &['b', 'd', 'a'],
            ),
            (&[(0, 'a'), (1, 'b')], 0, "", &['b', 'a']),
            (
                &[(11, 'a'), (300, 'b'), (200, 'c'), (12, 'd')],
                10,
                "bc",
                &['d', 'a', 'b', 'c'],
            ),
            (&[(300, 'b'), (5, 'a')], 10, "b", &['b']),
        ] {
            let sessions = idle.iter().map(|(idle, who)| (seconds(*idle), *who)).collect();
            let in_turn = in_turn(sessions, seconds(after), |who| failed.contains(*who));
            assert_eq!(in_turn, turn, "{idle:?} {failed}");
        }
    }
}
