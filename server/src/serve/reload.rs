//! The configuration read again while the server runs: pools come, change and go; sessions stay as they are.
//!
//! All or nothing. Pools that are new or changed are started beside those that are served, and only when each has shown
//! that it works does the offer change. Where one fails, or the file is wrong, everything is as it was.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::future::{join_all, try_join_all};
use tokio::{sync::watch, time::timeout};

use super::{CLOSING, spec};
use crate::{
    attach,
    config::{Config, Effective, Loaded, Offer, Offers, PoolConfig},
    conversation::{PoolName, Secret},
    engine::Engine,
    metrics::Metrics,
    pool::{Pool, Readiness, Unready, prepare_image},
    sessions::Sessions,
};

/// Reads the configuration from where it was read at the start; a text says what is wrong with it.
pub type Source = Box<dyn Fn() -> Result<Loaded, String> + Send + Sync>;

/// What a reload needs of its server.
pub(super) struct Reload {
    pub(super) source: Source,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) metrics: Metrics,
    pub(super) secret: Secret,
    pub(super) sessions: Sessions,
    pub(super) offers: Offers,
    /// What processes that attach must be configured like.
    pub(super) digest: watch::Sender<String>,
    /// What is in force.
    pub(super) current: Loaded,
}

/// What a reload has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Pools, and what became of them.
    pub pools: BTreeMap<PoolName, Change>,
    /// Keys that are otherwise now, and count after a restart only.
    pub after_restart: Vec<String>,
}

/// What became of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// Sandboxes are made in another way from now on.
    Changed,
    /// It takes no more calls. Its sessions end by their own time.
    Removed,
}

/// Why nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is no configuration to change to.
    #[error("{0}")]
    Unread(String),
    /// A pool cannot be served.
    #[error("pool {pool}: {reason}")]
    Pool {
        /// Which.
        pool: PoolName,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pools.is_empty() {
            write!(f, "no pool has changed")?;
        }
        for (n, (name, change)) in self.pools.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            let change = match change {
                Change::Added => "added",
                Change::Changed => "changed",
                Change::Removed => "removed",
            };
            write!(f, "{separator}pool {name} {change}")?;
        }
        if !self.after_restart.is_empty() {
            write!(f, "; after a restart only: {}", self.after_restart.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

impl Reload {
    /// Reads the configuration, and serves what it says.
    ///
    /// Cancel safe before the offer changes; what is dropped after that closes by itself.
    pub(super) async fn run(&mut self) -> Result<Changes, ReloadError> {
        let read = (self.source)().map_err(ReloadError::Unread)?;
        let served = self.sessions.pools();
        let mut pools = changes(&self.current.config.pools, &read.config.pools);
        for pool in &served {
            let name = pool.spec().name();
            if !pools.contains_key(name) && self.image_has_changed(pool).await {
                pools.insert(name.clone(), Change::Changed);
            }
        }
        let fresh = self.started(&read.config, &pools).await?;

        let after_restart = other_keys(&self.current.effective, &read.effective);
        let (stay, go): (Vec<_>, Vec<_>) = served
            .into_iter()
            .partition(|pool| !pools.contains_key(pool.spec().name()));
        self.sessions.claim_from(stay.into_iter().chain(fresh));
        self.offers
            .replace(offer(&read.config, &self.offers.now(), &pools));
        self.current.config.pools = read.config.pools;
        self.current.config.default_pool = read.config.default_pool;
        self.digest
            .send_replace(attach::digest(&self.current.config, &self.secret));
        join_all(go.iter().map(|pool| pool.close(CLOSING))).await;
        Ok(Changes { pools, after_restart })
    }

    /// Whether the image of a pool's name is another one by now. One that cannot be looked at has not changed.
    async fn image_has_changed(&self, pool: &Pool) -> bool {
        let Some(used) = pool.census().borrow().prepared.clone() else {
            return false;
        };
        match prepare_image(&*self.engine, pool.spec()).await {
            Ok(prepared) => prepared != used,
            Err(error) => {
                tracing::warn!(pool = %pool.spec().name(), %error, "its image could not be looked at");
                false
            }
        }
    }

    /// The pools that are new or changed, each of which has shown that it works.
    async fn started(
        &self,
        config: &Config,
        changes: &BTreeMap<PoolName, Change>,
    ) -> Result<Vec<Pool>, ReloadError> {
        let wanted = config
            .pools
            .iter()
            .filter(|(name, _)| matches!(changes.get(*name), Some(Change::Added | Change::Changed)));
        let pools: Vec<Pool> = wanted
            .map(|(name, pool)| {
                let observer = self.metrics.observer(name);
                Pool::start(spec(config, name, pool), Arc::clone(&self.engine), observer)
            })
            .collect();
        match try_join_all(pools.iter().map(proof)).await {
            Ok(_) => Ok(pools),
            Err(error) => {
                join_all(pools.iter().map(|pool| pool.close(CLOSING))).await;
                Err(error)
            }
        }
    }
}

/// Returns when a pool has shown that it works: by a warm sandbox, or, where there may be none, by a prepared image.
async fn proof(pool: &Pool) -> Result<(), ReloadError> {
    let spec = pool.spec();
    let failed = |reason| ReloadError::Pool {
        pool: spec.name().clone(),
        reason,
    };
    let mut census = pool.census();
    let shown = census.wait_for(|census| {
        let is_full = matches!(
            census.readiness,
            Readiness::Unready(Unready::Full { .. } | Unready::NoMemory)
        );
        census.failures > 0
            || census.counts.warm > 0
            || is_full
            || (spec.warm == 0 && census.prepared.is_some())
    });
    // The image has no deadline of its own but the engine's; a boot has its own, and so have installers.
    let installing = spec
        .install
        .as_ref()
        .map_or(Duration::ZERO, |install| install.deadline);
    match timeout(installing + 2 * spec.boot_deadline + CLOSING, shown).await {
        Ok(Ok(census)) if census.failures == 0 => Ok(()),
        Ok(Ok(census)) => Err(failed(census.last_boot_error.clone().unwrap_or_default())),
        Ok(Err(_)) => Err(failed("its keeper has ended".to_owned())),
        Err(_) => Err(failed("no sandbox of it became warm in time".to_owned())),
    }
}

/// What becomes of each pool, as far as the configuration says.
fn changes(
    old: &BTreeMap<PoolName, PoolConfig>,
    new: &BTreeMap<PoolName, PoolConfig>,
) -> BTreeMap<PoolName, Change> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let gone = gone.map(|name| (name.clone(), Change::Removed));
    let come = new.iter().filter_map(|(name, pool)| match old.get(name) {
        None => Some((name.clone(), Change::Added)),
        Some(before) if before != pool => Some((name.clone(), Change::Changed)),
        Some(_) => None,
    });
    gone.chain(come).collect()
}

/// The new offer. What has not changed is the very same: others remember things by it.
fn offer(config: &Config, before: &Offer, changes: &BTreeMap<PoolName, Change>) -> Offer {
    let mut offer = Offer::of(config);
    for (name, pool) in &mut offer.pools {
        if let (None, Some(same)) = (changes.get(name), before.pools.get(name)) {
            *pool = Arc::clone(same);
        }
    }
    offer
}

/// Keys that are no pool's and have another value.
fn other_keys(old: &[Effective], new: &[Effective]) -> Vec<String> {
    let is_pool = |key: &str| key.starts_with("pool.") || key == "default_pool";
    let values: BTreeMap<&str, &str> = old
        .iter()
        .map(|one| (one.key.as_str(), one.value.as_str()))
        .collect();
    let known: BTreeMap<&str, &str> = new
        .iter()
        .map(|one| (one.key.as_str(), one.value.as_str()))
        .collect();
    let mut keys: Vec<&str> = values.keys().chain(known.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| !is_pool(key) && values.get(key) != known.get(key));
    keys.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Inputs;

    fn read(toml: &str) -> Loaded {
        let inputs = Inputs {
            text: toml.to_owned(),
            ..Inputs::default()
        };
        Loaded::read(&inputs).unwrap()
    }

    fn told(old: &str, new: &str) -> String {
        let (old, new) = (read(old), read(new));
        let changes = Changes {
            pools: changes(&old.config.pools, &new.config.pools),
            after_restart: other_keys(&old.effective, &new.effective),
        };
        changes.to_string()
    }

    #[test]
    fn what_changes_is_told() {
        let two = "default_pool = \"a\"\n[pool.a]\n[pool.b]\nmax = 4";
        for (old, new, text) in [
            (two, two, "no pool has changed"),
            ("", "[pool.python]\nwarm = 3", "pool python changed"),
            (
                two,
                "default_pool = \"a\"\n[pool.a]\nidle = \"5m\"\n[pool.c]",
                "pool a changed, pool b removed, pool c added",
            ),
            (
                "listen = \"127.0.0.1:1\"",
                "patience = \"5s\"",
                "no pool has changed; after a restart only: listen, patience",
            ),
            (
                "[auth.issuer.x]\nissuer = \"https://x.example\"\naudience = [\"a\"]",
                "",
                "no pool has changed; after a restart only: ",
            ),
        ] {
            assert!(told(old, new).starts_with(text), "{}", told(old, new));
        }
    }

    #[test]
    fn a_secret_that_changes_changes_its_pool() {
        let with = |value: &str| format!("[pool.python]\nenv = {{ TOKEN = \"{value}\" }}");
        assert_eq!(told(&with("one"), &with("two")), "pool python changed");
    }

    #[test]
    fn what_has_not_changed_is_the_very_same() {
        let old = Offer::of(&read("default_pool = \"a\"\n[pool.a]\n[pool.b]").config);
        let new = read("default_pool = \"b\"\n[pool.a]\n[pool.b]\nmax = 3").config;
        let changed = changes(
            &read("default_pool = \"a\"\n[pool.a]\n[pool.b]").config.pools,
            &new.pools,
        );
        let offer = offer(&new, &old, &changed);
        assert_eq!(offer.default_pool.as_str(), "b");
        for (name, is_same) in [("a", true), ("b", false)] {
            let (one, other) = (old.find(name).unwrap().1, offer.find(name).unwrap().1);
            assert_eq!(Arc::ptr_eq(one, other), is_same, "{name}");
        }
    }
}
