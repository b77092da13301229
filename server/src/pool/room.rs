//! Whether there is room on the engine for one more sandbox of a pool. Pure.

use std::{collections::BTreeSet, fmt};

use super::ledger::Boot;
use crate::{
    conversation::PoolName,
    engine::{Listed, ListedState},
    sandbox::SandboxId,
};

/// The sandboxes of one pool on the engine, whoever made them; ended ones do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// How many there are.
    pub(super) live: usize,
    /// Those among them that are nobody's yet or on their way out: room that may appear by itself.
    pub(super) spare: usize,
}

impl Room {
    /// What a list shows of a pool, `mine` not counted.
    pub(super) fn of(listed: &[Listed], pool: &PoolName, mine: Option<&SandboxId>) -> Self {
        let mut room = Self { live: 0, spare: 0 };
        for sandbox in listed.iter().filter(|s| s.pool == *pool && Some(&s.id) != mine) {
            let spare = match sandbox.state {
                ListedState::Exited(_) => continue,
                ListedState::Created | ListedState::Ending => true,
                ListedState::Running => !sandbox.adopted,
            };
            room.live += 1;
            room.spare += usize::from(spare);
        }
        room
    }

    /// Whether one more may start. A boot for the reserve leaves one slot free, so that only claims fill a
    /// pool, and keepers that see it full know that a conversation wants room.
    pub(super) fn admits(self, boot: Boot, max: usize) -> bool {
        let limit = match boot {
            Boot::Claim | Boot::Reopen => max,
            Boot::Reserve => max.saturating_sub(1),
        };
        self.live < limit
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there are {} already, {} of them not in use",
            self.live, self.spare
        )
    }
}

/// The ids that a list shows: all of them, and those that run.
pub(super) fn ids(listed: &[Listed]) -> (BTreeSet<SandboxId>, BTreeSet<SandboxId>) {
    let ids = |running: bool| {
        listed
            .iter()
            .filter(|s| !running || s.state == ListedState::Running)
            .map(|s| s.id.clone())
            .collect()
    };
    (ids(false), ids(true))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::sandbox::Fate;
    use crate::sandbox::Stay;

    fn listed(n: u8, pool: &str, state: ListedState, adopted: bool) -> Listed {
        Listed {
            id: SandboxId::parse(&format!("grs-{n:024x}")).unwrap(),
            pool: PoolName::parse(pool).unwrap(),
            creator: "another".into(),
            state,
            adopted,
            created_at: SystemTime::UNIX_EPOCH,
            stay: Stay::default(),
            started_at: None,
        }
    }

    #[test]
    fn what_runs_or_will_run_takes_room() {
        let fate = Fate {
            exit_code: 81,
            oom_killed: false,
            finished_at: SystemTime::UNIX_EPOCH,
        };
        let list = [
            listed(0, "a", ListedState::Created, false),
            listed(1, "a", ListedState::Running, false),
            listed(2, "a", ListedState::Running, true),
            listed(3, "a", ListedState::Ending, true),
            listed(4, "a", ListedState::Exited(fate), true),
            listed(5, "b", ListedState::Running, false),
        ];
        let pool = PoolName::parse("a").unwrap();
        assert_eq!(Room::of(&list, &pool, None), Room { live: 4, spare: 3 });
        assert_eq!(
            Room::of(&list, &pool, Some(&list[0].id)),
            Room { live: 3, spare: 2 }
        );
        let (any, running) = ids(&list);
        assert_eq!((any.len(), running.len()), (6, 3));
    }

    #[test]
    fn only_a_claim_takes_the_last_slot() {
        for (live, max, claim, reserve) in [
            (0, 0, false, false),
            (0, 1, true, false),
            (0, 2, true, true),
            (1, 2, true, false),
            (2, 2, false, false),
            (9, 2, false, false),
        ] {
            let room = Room { live, spare: 0 };
            assert_eq!(room.admits(Boot::Claim, max), claim, "{live} of {max}");
            assert_eq!(room.admits(Boot::Reserve, max), reserve, "{live} of {max}");
        }
    }
}
