//! Executions that began here: of what kind each was, in which sandbox, and whether its end was told, so that one whose
//! sandbox is gone is told as lost, and not as one that never was.
//!
//! A sandbox takes its executions along. What is remembered here is the least that makes a truthful answer, until the
//! session is ended by its caller, or the server ends.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use greenroom_protocol::RunId;

use crate::{
    conversation::{Principal, SessionKey},
    rest::execution::Kind,
    sandbox::SandboxId,
};

/// Executions that are remembered of one principal; beyond them the oldest are forgotten, first those whose end was told.
const MOST: usize = 4096;

/// Whether an answer told the end of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// None did.
    Untold,
    /// One did.
    Told,
}

/// Whether an execution was noted by this very note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It was.
    Now,
    /// Its sandbox has had it before.
    Before,
}

/// What is known of one execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) kind: Kind,
    /// Where it began.
    pub(super) sandbox: SandboxId,
    pub(super) end: End,
}

/// One execution.
#[derive(Debug)]
struct One {
    key: SessionKey,
    id: RunId,
    known: Known,
}

impl One {
    fn is(&self, key: &SessionKey, id: &RunId) -> bool {
        self.id == *id && self.key == *key
    }
}

/// Until the server ends.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    all: Mutex<HashMap<Principal, VecDeque<One>>>,
}

impl Accepted {
    /// An execution is about to begin. One that its sandbox has already is the same one.
    pub(super) fn note(&self, key: &SessionKey, id: &RunId, kind: Kind, sandbox: &SandboxId) -> Noted {
        let mut all = self.lock();
        let own = all.entry(key.principal.clone()).or_default();
        match own.iter().position(|one| one.is(key, id)) {
            Some(at) if own[at].known.sandbox == *sandbox => return Noted::Before,
            Some(at) => drop(own.remove(at)),
            None if own.len() >= MOST => {
                let told = own.iter().position(|one| one.known.end == End::Told);
                own.remove(told.unwrap_or(0));
            }
            None => {}
        }
        own.push_back(One {
            key: key.clone(),
            id: id.clone(),
            known: Known {
                kind,
                sandbox: sandbox.clone(),
                end: End::Untold,
            },
        });
        Noted::Now
    }

    /// It did not begin.
    pub(super) fn forget(&self, key: &SessionKey, id: &RunId) {
        self.drop_where(key, |one| one.is(key, id));
    }

    /// What is known of an execution, if it began here.
    pub(super) fn find(&self, key: &SessionKey, id: &RunId) -> Option<Known> {
        let all = self.lock();
        let one = all.get(&key.principal)?.iter().find(|one| one.is(key, id))?;
        Some(one.known.clone())
    }

    /// Its end was told.
    pub(super) fn told(&self, key: &SessionKey, id: &RunId) {
        let mut all = self.lock();
        let own = all.get_mut(&key.principal);
        if let Some(one) = own.and_then(|own| own.iter_mut().find(|one| one.is(key, id))) {
            one.known.end = End::Told;
        }
    }

    /// The session was ended by its own caller.
    pub(super) fn strike(&self, key: &SessionKey) {
        self.drop_where(key, |one| one.key == *key);
    }

    fn drop_where(&self, key: &SessionKey, is: impl Fn(&One) -> bool) {
        let mut all = self.lock();
        if let Some(own) = all.get_mut(&key.principal) {
            own.retain(|one| !is(one));
            if own.is_empty() {
                all.remove(&key.principal);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Principal, VecDeque<One>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{ConversationId, PoolName};

    fn key(conversation: &str) -> SessionKey {
        SessionKey {
            pool: PoolName::parse("python").unwrap(),
            principal: Principal::Local,
            conversation: ConversationId::parse(conversation).unwrap(),
        }
    }

    fn id(id: &(impl ToString + ?Sized)) -> RunId {
        RunId(id.to_string())
    }

    fn sandbox(n: u8) -> SandboxId {
        SandboxId::parse(&format!("grs-{n:024}")).unwrap()
    }

    fn note(accepted: &Accepted, key: &SessionKey, id: &RunId, kind: Kind) {
        assert_eq!(accepted.note(key, id, kind, &sandbox(1)), Noted::Now);
    }

    #[test]
    fn what_began_here_is_known_until_its_session_is_ended() {
        let accepted = Accepted::default();
        let (mine, other) = (key("conv-0001"), key("conv-0002"));
        let (one, two) = (id("one"), id("two"));
        note(&accepted, &mine, &one, Kind::Code);
        note(&accepted, &mine, &two, Kind::Shell);
        accepted.told(&mine, &one);
        let known = |key, id| accepted.find(key, id).map(|known| (known.kind, known.end));
        assert_eq!(known(&mine, &one), Some((Kind::Code, End::Told)));
        assert_eq!(known(&mine, &two), Some((Kind::Shell, End::Untold)));
        assert_eq!(known(&other, &one), None, "somebody else's");
        assert_eq!(accepted.note(&mine, &one, Kind::Code, &sandbox(1)), Noted::Before);
        assert_eq!(known(&mine, &one), Some((Kind::Code, End::Told)), "the same one");
        assert_eq!(accepted.note(&mine, &one, Kind::Code, &sandbox(2)), Noted::Now);
        assert_eq!(known(&mine, &one), Some((Kind::Code, End::Untold)), "another one");
        accepted.forget(&mine, &one);
        assert_eq!(known(&mine, &one), None);
        accepted.strike(&mine);
        assert_eq!((known(&mine, &one), known(&mine, &two)), (None, None));
        assert!(accepted.lock().is_empty(), "nothing is remembered");
    }

    #[test]
    fn the_oldest_are_forgotten_beyond_the_bound() {
        let accepted = Accepted::default();
        let mine = key("conv-0001");
        for n in 0..MOST {
            note(&accepted, &mine, &id(&n), Kind::Code);
        }
        accepted.told(&mine, &id(&7));
        for (later, forgotten) in [("a", 7), ("b", 0), ("c", 1)] {
            assert!(accepted.find(&mine, &id(&forgotten)).is_some(), "{later}");
            note(&accepted, &mine, &id(later), Kind::Code);
            assert!(accepted.find(&mine, &id(&forgotten)).is_none(), "{later}");
        }
        assert_eq!(accepted.lock()[&mine.principal].len(), MOST);
    }

    #[test]
    fn nobody_pushes_out_what_is_anothers() {
        let accepted = Accepted::default();
        let mine = key("conv-0001");
        let busy = SessionKey {
            principal: Principal::Key("busy".into()),
            ..mine.clone()
        };
        note(&accepted, &mine, &id("mine"), Kind::Code);
        for n in 0..=MOST {
            note(&accepted, &busy, &id(&n), Kind::Code);
        }
        assert!(accepted.find(&mine, &id("mine")).is_some());
    }
}
