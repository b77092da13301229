//! What to do about a session, from what the engine shows: pure, and tested as a table.

use std::time::Duration;

use greenroom_protocol::RestartReason;

use super::Provenance;
use crate::{
    engine::{Found, Place, Tombstone},
    sandbox::SandboxId,
};

/// How long tombstones stand.
const TOMBSTONES: Duration = Duration::from_secs(24 * 3600);

/// What this server knows of a session besides what the engine shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knowledge<'a> {
    /// The sandbox that it last saw bound to the session.
    pub(super) known: Option<&'a SandboxId>,
    /// What it learned of how that one ended.
    pub(super) fate: Option<RestartReason>,
    /// Where the conversation's id comes from.
    pub(super) provenance: Provenance,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this sandbox for its lease.
    Join {
        /// Which.
        id: SandboxId,
        /// The loss that stands on record beside it.
        recorded: Option<RestartReason>,
        /// What else is lost, should it turn out to be nobody's yet.
        presumed: Option<RestartReason>,
    },
    /// Wait until this sandbox has ended.
    Wait(SandboxId),
    /// Destroy this sandbox: it ended as nobody's, so it has no news to tell, and look again.
    Bury(SandboxId),
    /// Claim a sandbox.
    Claim {
        /// The ended one that is in the way of the name.
        aside: Option<SandboxId>,
        /// The loss that the new one's first answers tell.
        news: Option<RestartReason>,
    },
}

/// Decides. Where a session's sandbox is gone, the reason is taken from the most certain source: what it said of
/// itself or this server did to it, its tombstone, then what must be presumed.
pub(super) fn decide(found: &Found, knowledge: Knowledge<'_>) -> Step {
    // Only sandboxes with news are set aside; one without is a leftover.
    let recorded = match &found.tombstone {
        Some(tombstone) => match reason(tombstone, knowledge) {
            Some(reason) => Some(reason),
            None => return Step::Bury(tombstone.id.clone()),
        },
        None => None,
    };
    match &found.place {
        Place::Ending(id) => Step::Wait(id.clone()),
        Place::Running(id) => Step::Join {
            id: id.clone(),
            recorded,
            presumed: presumed(knowledge, Some(id)),
        },
        Place::Exited(tombstone) => match reason(tombstone, knowledge) {
            None => Step::Bury(tombstone.id.clone()),
            news => Step::Claim {
                aside: Some(tombstone.id.clone()),
                news,
            },
        },
        Place::Absent => Step::Claim {
            aside: None,
            news: recorded.or_else(|| presumed(knowledge, None)),
        },
    }
}

/// Why an ended sandbox ended; `None` where it was nobody's.
fn reason(tombstone: &Tombstone, knowledge: Knowledge<'_>) -> Option<RestartReason> {
    let recorded = tombstone.fate.reason()?;
    // One that had to be killed shows no more than that.
    let known = knowledge.fate.filter(|_| knowledge.known == Some(&tombstone.id));
    Some(known.unwrap_or(recorded))
}

/// The loss of which no record stands.
fn presumed(knowledge: Knowledge<'_>, running: Option<&SandboxId>) -> Option<RestartReason> {
    let lost = knowledge.known.is_some() && knowledge.known != running;
    match (lost, knowledge.provenance) {
        (true, _) => Some(knowledge.fate.unwrap_or(RestartReason::Removed)),
        // Such an id was handed out by an answer that came from a sandbox.
        (false, Provenance::Minted) => Some(RestartReason::NoLongerOnRecord),
        (false, Provenance::JustMinted | Provenance::Own) => None,
    }
}

/// The loss that an archive proves where nothing else tells of it. A sandbox that ended stands as a tombstone for a
/// day: where there is none, one that was archived since then was removed.
pub(super) fn presumed_by_archive(age: Duration) -> RestartReason {
    if age < TOMBSTONES {
        RestartReason::Removed
    } else {
        RestartReason::NoLongerOnRecord
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::sandbox::Fate;

    const IDLE: i64 = 81;
    const UNBOUND: i64 = 80;

    fn id(n: u8) -> SandboxId {
        SandboxId::parse(&format!("grs-{:024x}", n)).unwrap()
    }

    fn tombstone(n: u8, exit_code: i64) -> Tombstone {
        Tombstone {
            id: id(n),
            fate: Fate {
                exit_code,
                oom_killed: false,
                finished_at: SystemTime::UNIX_EPOCH,
            },
        }
    }

    fn step(place: Place, aside: Option<Tombstone>, known: Option<u8>, provenance: Provenance) -> Step {
        let known = known.map(id);
        decide(
            &Found {
                place,
                tombstone: aside,
                strays: Vec::new(),
            },
            Knowledge {
                known: known.as_ref(),
                fate: None,
                provenance,
            },
        )
    }

    fn claim(aside: Option<u8>, news: Option<RestartReason>) -> Step {
        Step::Claim {
            aside: aside.map(id),
            news,
        }
    }

    fn join(n: u8, recorded: Option<RestartReason>, presumed: Option<RestartReason>) -> Step {
        Step::Join {
            id: id(n),
            recorded,
            presumed,
        }
    }

    #[test]
    fn every_state_of_the_engine_has_its_step() {
        use Provenance::{JustMinted, Minted, Own};
        use RestartReason::{EndedInside, Idle, NoLongerOnRecord, Removed};
        let exited = |n, code| Place::Exited(tombstone(n, code));
        for (place, aside, known, provenance, expected) in [
            // A conversation that nobody has seen, and ids that say so themselves.
            (Place::Absent, None, None, Own, claim(None, None)),
            (Place::Absent, None, None, JustMinted, claim(None, None)),
            (
                Place::Absent,
                None,
                None,
                Minted,
                claim(None, Some(NoLongerOnRecord)),
            ),
            // Removed behind our back; what was set aside is the better witness.
            (Place::Absent, None, Some(1), Own, claim(None, Some(Removed))),
            (Place::Absent, None, Some(1), Minted, claim(None, Some(Removed))),
            (
                Place::Absent,
                Some(tombstone(1, IDLE)),
                Some(1),
                Own,
                claim(None, Some(Idle)),
            ),
            (
                Place::Absent,
                Some(tombstone(1, IDLE)),
                None,
                Minted,
                claim(None, Some(Idle)),
            ),
            (
                Place::Absent,
                Some(tombstone(1, UNBOUND)),
                None,
                Own,
                Step::Bury(id(1)),
            ),
            // Ended under its name.
            (exited(1, IDLE), None, None, Own, claim(Some(1), Some(Idle))),
            (
                exited(1, 137),
                None,
                Some(1),
                Minted,
                claim(Some(1), Some(EndedInside)),
            ),
            (
                exited(2, IDLE),
                Some(tombstone(1, 137)),
                None,
                Own,
                claim(Some(2), Some(Idle)),
            ),
            (exited(1, UNBOUND), None, None, Own, Step::Bury(id(1))),
            (
                exited(2, UNBOUND),
                Some(tombstone(1, IDLE)),
                None,
                Own,
                Step::Bury(id(2)),
            ),
            // Running, perhaps since before anybody leased it.
            (Place::Running(id(1)), None, None, Own, join(1, None, None)),
            (Place::Running(id(1)), None, Some(1), Own, join(1, None, None)),
            (
                Place::Running(id(2)),
                None,
                Some(1),
                Own,
                join(2, None, Some(Removed)),
            ),
            (
                Place::Running(id(2)),
                None,
                None,
                Minted,
                join(2, None, Some(NoLongerOnRecord)),
            ),
            (Place::Running(id(2)), None, None, JustMinted, join(2, None, None)),
            (
                Place::Running(id(2)),
                Some(tombstone(1, IDLE)),
                Some(1),
                Own,
                join(2, Some(Idle), Some(Removed)),
            ),
            (Place::Ending(id(1)), None, Some(1), Own, Step::Wait(id(1))),
            (
                Place::Ending(id(2)),
                Some(tombstone(1, IDLE)),
                None,
                Own,
                Step::Wait(id(2)),
            ),
        ] {
            let case = format!("{place:?} {aside:?} {known:?} {provenance:?}");
            assert_eq!(step(place, aside, known, provenance), expected, "{case}");
        }
    }

    #[test]
    fn an_archive_proves_a_loss() {
        for (hours, reason) in [
            (0, RestartReason::Removed),
            (23, RestartReason::Removed),
            (24, RestartReason::NoLongerOnRecord),
        ] {
            assert_eq!(presumed_by_archive(Duration::from_secs(hours * 3600)), reason);
        }
    }

    #[test]
    fn what_a_sandbox_said_of_itself_beats_a_presumption() {
        let known = id(1);
        let knowledge = Knowledge {
            known: Some(&known),
            fate: Some(RestartReason::Reset),
            provenance: Provenance::Own,
        };
        for (place, aside) in [(Place::Absent, None), (Place::Exited(tombstone(1, 137)), Some(1))] {
            let found = Found {
                place,
                tombstone: None,
                strays: Vec::new(),
            };
            assert_eq!(
                decide(&found, knowledge),
                claim(aside, Some(RestartReason::Reset))
            );
        }
        // What is known of one says nothing of another.
        let found = Found {
            place: Place::Exited(tombstone(2, 137)),
            tombstone: None,
            strays: Vec::new(),
        };
        assert_eq!(
            decide(&found, knowledge),
            claim(Some(2), Some(RestartReason::EndedInside))
        );
    }
}
