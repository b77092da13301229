//! Room in a full pool: the session that has been idle longest, and for longer than the pool allows, makes it.
//!
//! Its files are archived first, and where they cannot be, another makes room. Whether it is still idle is decided by
//! its agent in the moment it ends, so no run is cut off. Its next call is told `restarted(evicted)`.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use greenroom_protocol::{EndReason, LeaseState, RefusalKind};
use tokio::time::timeout;

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
    /// Ends a session of this pool that has been idle for `after`. One search at a time: each makes one place.
    ///
    /// # Errors
    /// The engine failed.
    pub(super) async fn make_room(&self, pool: &PoolName, after: Duration) -> Result<Room, OpenError> {
        // Never closed.
        let _turn = self.evictions.acquire().await;
        let listed = self.engine.list().await?;
        let bound = listed.into_iter().filter(|sandbox| {
            sandbox.pool == *pool && sandbox.adopted && sandbox.state == ListedState::Running
        });
        let asked = stream::iter(bound)
            .map(|sandbox| self.ask_idle(sandbox.id))
            .buffer_unordered(ASKED);
        let answers: Vec<_> = asked.filter_map(std::future::ready).collect().await;
        for candidate in in_turn(answers, after).into_iter().take(TRIES) {
            let id = candidate.guest.id().clone();
            match self.evict(&candidate, after).await {
                Ok(Room::Made) => {
                    tracing::info!(session = candidate.name.short(), sandbox = %id, %pool, "made room for another session");
                    return Ok(Room::Made);
                }
                Ok(Room::None) => {}
                Err(error) => tracing::debug!(sandbox = %id, %error, "makes no room"),
            }
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
            && archive.save(name, guest).await.is_err()
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

/// Those that have been idle for long enough, the longest first. Pure.
fn in_turn<T>(mut idle: Vec<(Duration, T)>, after: Duration) -> Vec<T> {
    idle.retain(|(idle, _)| *idle >= after);
    idle.sort_by_key(|(idle, _)| std::cmp::Reverse(*idle));
    idle.into_iter().map(|(_, session)| session).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_makes_room_and_nobody_before_their_time() {
        let seconds = Duration::from_secs;
        for (idle, after, turn) in [
            (&[][..], 10, &[][..]),
            (&[(9, 'a')], 10, &[]),
            (&[(10, 'a')], 10, &['a']),
            (
                &[(11, 'a'), (300, 'b'), (0, 'c'), (12, 'd')],
                10,
                &['b', 'd', 'a'],
            ),
            (&[(0, 'a'), (1, 'b')], 0, &['b', 'a']),
        ] {
            let sessions = idle.iter().map(|(idle, who)| (seconds(*idle), *who)).collect();
            assert_eq!(in_turn(sessions, seconds(after)), turn, "{idle:?}");
        }
    }
}
