//! Executions that were accepted and have not been seen to end: so that one whose sandbox is gone is told as lost, and
//! not as one that never was.
//!
//! A sandbox takes its executions along. What is remembered here is the least that makes a truthful answer, until an
//! answer told the end, or the server ends.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use greenroom_protocol::RunId;

use crate::{conversation::SessionKey, rest::execution::Kind};

/// Executions that are remembered; beyond them the oldest are forgotten.
const MOST: usize = 4096;

/// One execution.
#[derive(Clone, Debug)]
struct One {
    key: SessionKey,
    id: RunId,
    kind: Kind,
}

/// Until the server ends.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    known: Mutex<VecDeque<One>>,
}

impl Accepted {
    /// An execution was handed back before its end.
    pub(super) fn note(&self, key: &SessionKey, id: &RunId, kind: Kind) {
        let mut known = self.lock();
        known.retain(|one| !(one.id == *id && one.key == *key));
        if known.len() >= MOST {
            known.pop_front();
        }
        known.push_back(One {
            key: key.clone(),
            id: id.clone(),
            kind,
        });
    }

    /// What was run, if it was accepted here and nobody was told its end.
    pub(super) fn kind(&self, key: &SessionKey, id: &RunId) -> Option<Kind> {
        let known = self.lock();
        let one = known.iter().find(|one| one.id == *id && one.key == *key);
        one.map(|one| one.kind)
    }

    /// Its end was told.
    pub(super) fn told(&self, key: &SessionKey, id: &RunId) {
        self.lock().retain(|one| !(one.id == *id && one.key == *key));
    }

    /// The session was ended by its own caller.
    pub(super) fn strike(&self, key: &SessionKey) {
        self.lock().retain(|one| one.key != *key);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<One>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{ConversationId, PoolName, Principal};

    fn key(conversation: &str) -> SessionKey {
        SessionKey {
            pool: PoolName::parse("python").unwrap(),
            principal: Principal::Local,
            conversation: ConversationId::parse(conversation).unwrap(),
        }
    }

    #[test]
    fn what_was_accepted_is_known_until_it_is_told() {
        let accepted = Accepted::default();
        let (one, two) = (RunId("one".into()), RunId("two".into()));
        accepted.note(&key("conv-0001"), &one, Kind::Code);
        accepted.note(&key("conv-0001"), &two, Kind::Shell);
        assert_eq!(accepted.kind(&key("conv-0001"), &one), Some(Kind::Code));
        assert_eq!(accepted.kind(&key("conv-0002"), &one), None, "somebody else's");
        accepted.told(&key("conv-0001"), &one);
        assert_eq!(accepted.kind(&key("conv-0001"), &one), None);
        assert_eq!(accepted.kind(&key("conv-0001"), &two), Some(Kind::Shell));
        accepted.strike(&key("conv-0001"));
        assert_eq!(accepted.kind(&key("conv-0001"), &two), None);
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_the_bound() {
        let accepted = Accepted::default();
        for n in 0..=MOST {
            accepted.note(&key("conv-0001"), &RunId(n.to_string()), Kind::Code);
        }
        assert_eq!(accepted.kind(&key("conv-0001"), &RunId("0".into())), None);
        assert!(accepted.kind(&key("conv-0001"), &RunId("1".into())).is_some());
        assert_eq!(accepted.lock().len(), MOST);
    }
}
