//! The configuration read again while the server runs: pools come, change and go; sessions stay as they are.
//!
//! All or nothing. Pools that are new or changed are started beside those that are served, and only when each has shown
//! that it works does the offer change. Where one fails, or the file is wrong, everything is as it was. Where there is
//! no room for one more sandbox, a prepared image has to do.

use std::{collections::BTreeMap, fmt, pin::pin, sync::Arc};

use futures_util::future::{join_all, try_join_all};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    CLOSING,
    signals::{Hangup, Hangups},
    spec,
};
use crate::{
    attach,
    config::{Config, Effective, Loaded, Offer, Offers, PoolConfig},
    control::{self, Control},
    conversation::{PoolName, Principal, Secret},
    engine::{Engine, EngineError},
    metrics::Metrics,
    pool::{ClaimError, Pool, PoolSpec, prepare_image},
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
    /// Pools that stay as they are since their image cannot be looked at, and why.
    pub unseen: Vec<(PoolName, String)>,
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
    /// What isolates sandboxes, and what makes them, is no pool's to choose.
    #[error("[engine] cannot change while the server runs: restart it")]
    Engine,
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
        for (name, why) in &self.unseen {
            write!(f, "; pool {name} stays with the image that it has: {why}")?;
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
        if read.config.engine != self.current.config.engine {
            return Err(ReloadError::Engine);
        }
        let served = self.sessions.pools();
        let mut unseen = Vec::new();
        let mut pools = changes(&self.current.config.pools, &read.config.pools);
        for pool in &served {
            let name = pool.spec().name();
            if pools.contains_key(name) {
                continue;
            }
            match self.image_has_changed(pool).await {
                Ok(true) => drop(pools.insert(name.clone(), Change::Changed)),
                Ok(false) => {}
                Err(error) => unseen.push((name.clone(), error.to_string())),
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
        Ok(Changes {
            pools,
            after_restart,
            unseen,
        })
    }

    /// Whether the image of a pool's name is another one by now.
    async fn image_has_changed(&self, pool: &Pool) -> Result<bool, EngineError> {
        let used = pool.census().borrow().prepared.clone();
        match used {
            Some(used) => Ok(prepare_image(&*self.engine, pool.spec()).await? != used),
            None => Ok(false),
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
        let specs: Vec<_> = wanted.map(|(name, pool)| spec(config, name, pool)).collect();
        // One after the other, each in its own time: installing packages takes minutes.
        for spec in &specs {
            let prepared = prepare_image(&*self.engine, spec).await;
            prepared.map_err(|error| failed(spec.name(), error.to_string()))?;
        }
        let start = |spec: PoolSpec| {
            let observer = self.metrics.observer(spec.name());
            Pool::start(spec, Arc::clone(&self.engine), observer)
        };
        let pools: Vec<Pool> = specs.into_iter().map(start).collect();
        match try_join_all(pools.iter().map(proof)).await {
            Ok(_) => Ok(pools),
            Err(error) => {
                join_all(pools.iter().map(|pool| pool.close(CLOSING))).await;
                Err(error)
            }
        }
    }
}

fn failed(pool: &PoolName, reason: String) -> ReloadError {
    ReloadError::Pool {
        pool: pool.clone(),
        reason,
    }
}

/// Returns when a pool whose image is prepared has shown that it works: by a sandbox that could be claimed. For one that
/// waits there may be no room beside those of the pool in whose place it comes; a claim gets the last place, too.
async fn proof(pool: &Pool) -> Result<(), ReloadError> {
    let spec = pool.spec();
    let by = Instant::now() + 2 * spec.boot_deadline + CLOSING;
    let mut census = pool.census();
    loop {
        let claim = tokio::select! {
            claim = pool.claim(&Principal::Local, by) => claim,
            fails = census.wait_for(|census| census.failures > 0) => {
                let reason = fails.ok().and_then(|census| census.last_boot_error.clone());
                return Err(failed(spec.name(), reason.unwrap_or_default()));
            }
        };
        match claim {
            Ok(claim) => {
                claim.give_back();
                return Ok(());
            }
            // Its image is prepared, and more cannot be tried.
            Err(error) if error.is_of_room() => return Ok(()),
            // Its callers would give up sooner than a first boot may take.
            Err(ClaimError::TimedOut { .. }) if Instant::now() < by => {}
            Err(error) => return Err(failed(spec.name(), error.to_string())),
        }
    }
}

/// Hears who wants the configuration read again: by a signal, or by the socket, if there is one.
pub(super) async fn hear(
    mut reload: Reload,
    mut hangups: Hangups,
    control: Option<Control>,
    stop: CancellationToken,
) {
    let asked = async || match &control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    };
    loop {
        tokio::select! {
            hangup = hangups.next() => match hangup {
                Hangup::Reload => drop(reload.heard(&mut hangups, &stop).await),
                Hangup::Leave => stop.cancel(),
            },
            asked = asked() => match asked.request {
                control::Request::Reload => {
                    let answer = reload.heard(&mut hangups, &stop).await;
                    asked.answer(&answer).await;
                }
            },
        }
    }
}

impl Reload {
    /// Reads the configuration, and logs what came of it. Whoever asks meanwhile may have changed it meanwhile.
    async fn heard(&mut self, hangups: &mut Hangups, stop: &CancellationToken) -> control::Answer {
        loop {
            let mut again = false;
            let outcome = {
                let mut run = pin!(self.run());
                loop {
                    tokio::select! {
                        outcome = &mut run => break outcome,
                        hangup = hangups.next() => match hangup {
                            Hangup::Reload => again = true,
                            Hangup::Leave => stop.cancel(),
                        },
                    }
                }
            };
            let answer = logged(outcome);
            if !again {
                return answer;
            }
        }
    }
}

fn logged(outcome: Result<Changes, ReloadError>) -> control::Answer {
    match outcome {
        Ok(changes) => {
            let text = changes.to_string();
            tracing::info!("the configuration was read again: {text}");
            control::Answer::Done { text }
        }
        Err(error) => {
            let text = error.to_string();
            tracing::error!("the configuration was not taken over, nothing has changed: {text}");
            control::Answer::Refused { text }
        }
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
            unseen: Vec::new(),
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
