//! What this server remembers: the identifiers that it has served, since the engine knows sessions by a hash that
//! leads back to none, and what each pool's image holds.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::OnceCell;

use super::Offered;
use crate::{
    config::PoolConfig,
    conversation::{ConversationId, PoolName, Principal, SessionKey},
};

/// Identifiers that are remembered of one principal in one pool: more than sandboxes that one machine carries.
const MOST: usize = 4096;

/// What a pool's image holds, and the very offer of the pool that was asked.
type Contents = (Arc<PoolConfig>, Arc<OnceCell<Value>>);

/// Until the server ends.
#[derive(Debug, Default)]
pub(super) struct Roll {
    known: Mutex<HashMap<(PoolName, Principal), BTreeSet<ConversationId>>>,
    contents: Mutex<HashMap<PoolName, Contents>>,
}

impl Roll {
    /// A session was opened.
    pub(super) fn note(&self, key: &SessionKey) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let own = known
            .entry((key.pool.clone(), key.principal.clone()))
            .or_default();
        if own.len() < MOST && !own.contains(&key.conversation) {
            own.insert(key.conversation.clone());
        }
    }

    /// It is over.
    pub(super) fn strike(&self, key: &SessionKey) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = known.get_mut(&(key.pool.clone(), key.principal.clone())) {
            own.remove(&key.conversation);
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
        own.map(|own| own.iter().cloned().collect()).unwrap_or_default()
    }
}
