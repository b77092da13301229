//! What this server remembers: the identifiers that it has served, since the engine knows sessions by a hash that
//! leads back to none, and what each pool's image holds.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::OnceCell;

use super::Offered;
use crate::{
    config::PoolConfig,
    conversation::{ConversationId, PoolName, Principal, SessionKey},
};

/// Identifiers that are remembered of one principal in one pool, more than sandboxes that one machine carries; beyond
/// them the one that was opened longest ago is forgotten.
const MOST: usize = 4096;

/// What a pool's image holds, and the very offer of the pool that was asked.
type Contents = (Arc<PoolConfig>, Arc<OnceCell<Value>>);

/// The identifiers of one principal in one pool, each with the number of the last request that opened its session.
#[derive(Debug, Default)]
struct Own {
    next: u64,
    opened: BTreeMap<ConversationId, u64>,
}

/// Until the server ends.
#[derive(Debug, Default)]
pub(super) struct Roll {
    known: Mutex<HashMap<(PoolName, Principal), Own>>,
    contents: Mutex<HashMap<PoolName, Contents>>,
}

impl Roll {
    /// A session was opened.
    pub(super) fn note(&self, key: &SessionKey) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let own = known
            .entry((key.pool.clone(), key.principal.clone()))
            .or_default();
        own.next += 1;
        own.opened.insert(key.conversation.clone(), own.next);
        if own.opened.len() > MOST {
            let oldest = own.opened.iter().min_by_key(|(_, number)| **number);
            if let Some(oldest) = oldest.map(|(conversation, _)| conversation.clone()) {
                own.opened.remove(&oldest);
            }
        }
    }

    /// It is over.
    pub(super) fn strike(&self, key: &SessionKey) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = known.get_mut(&(key.pool.clone(), key.principal.clone())) {
            own.opened.remove(&key.conversation);
        }
    }

    /// What the pool's image holds, once that was asked; of a pool that is offered anew it is asked again.
    pub(super) fn contents(&self, pool: &Offered) -> Arc<OnceCell<Value>> {
        let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = contents.entry(pool.name.clone());
        let (of, cell) = entry.or_insert_with(|| (Arc::clone(&pool.config), Arc::default()));
        if !Arc::ptr_eq(of, &pool.config) {
            (*of, *cell) = (Arc::clone(&pool.config), Arc::default());
        }
        Arc::clone(cell)
    }

    /// In order.
    pub(super) fn of(&self, pool: &PoolName, principal: &Principal) -> Vec<ConversationId> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let own = known.get(&(pool.clone(), principal.clone()));
        own.map(|own| own.opened.keys().cloned().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(conversation: &str) -> SessionKey {
        SessionKey {
            pool: PoolName::parse("python").unwrap(),
            principal: Principal::Local,
            conversation: ConversationId::parse(conversation).unwrap(),
        }
    }

    #[test]
    fn a_full_roll_forgets_what_was_opened_longest_ago() {
        let roll = Roll::default();
        let one = |number: usize| key(&format!("conv-{number:04}"));
        for number in 0..MOST {
            roll.note(&one(number));
        }
        // Known already: it forgets none, and is the newest now.
        roll.note(&one(0));
        let known = || roll.of(&one(0).pool, &Principal::Local);
        assert_eq!(known().len(), MOST);
        roll.note(&one(MOST));
        assert_eq!(known().len(), MOST);
        for (number, is_known) in [(MOST, true), (0, true), (1, false), (2, true)] {
            assert_eq!(known().contains(&one(number).conversation), is_known, "{number}");
        }
        roll.strike(&one(2));
        roll.note(&one(MOST + 1));
        assert!(known().contains(&one(3).conversation), "there was room");
    }
}
