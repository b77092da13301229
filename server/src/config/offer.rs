//! What of the configuration changes while a server runs: the pools that it offers.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::{Config, PoolConfig};
use crate::conversation::PoolName;

/// The pools on offer at one moment. A call goes by the one offer that it began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `default_pool`: the pool of a call that names none.
    pub default_pool: PoolName,
    /// `[pool.*]`.
    pub pools: BTreeMap<PoolName, Arc<PoolConfig>>,
}

impl Offer {
    /// What a configuration offers.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let pools = config.pools.iter();
        Self {
            default_pool: config.default_pool.clone(),
            pools: pools
                .map(|(name, pool)| (name.clone(), Arc::new(pool.clone())))
                .collect(),
        }
    }

    /// The pool of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<(&PoolName, &Arc<PoolConfig>)> {
        self.pools.iter().find(|(known, _)| known.as_str() == name)
    }
}

/// The offer in force. Clones share it.
#[derive(Clone, Debug)]
pub struct Offers(watch::Sender<Arc<Offer>>);

impl Offers {
    /// Begins with this one.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self(watch::Sender::new(Arc::new(offer)))
    }

    /// The one in force.
    #[must_use]
    pub fn now(&self) -> Arc<Offer> {
        Arc::clone(&self.0.borrow())
    }

    /// Puts another in its place. Calls in flight go on by the one that they began with.
    pub fn replace(&self, offer: Offer) {
        self.0.send_replace(Arc::new(offer));
    }
}

impl From<&Config> for Offers {
    fn from(config: &Config) -> Self {
        Self::new(Offer::of(config))
    }
}
