//! The sweep: clears away what no server and no agent will, whoever left it.
//!
//! It judges by what the engine lists and by nothing else, so any number of servers may sweep one engine,
//! and a server that was killed needs nobody to remember what it left. Everything is destroyed by id.
//!
//! What does not answer is not looked for here: a look costs a channel, and whoever meets such a sandbox
//! sees to it (`sessions`). One that nobody meets ends itself, and at the latest it is
//! [overdue](Ground::Overdue). Only those that somebody has renamed are asked whose they are, as nobody would meet
//! them ([`strays`](super::strays)).

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::strays::Strays;
use crate::{
    engine::{Engine, EngineError, Listed, ListedState},
    sandbox::SandboxId,
};

/// Between two looks; [`Engine::sweep`] wants to be called as often.
const EVERY: Duration = Duration::from_secs(30);
/// How long an ended session's news stays to be told.
const TOMBSTONE: Duration = Duration::from_secs(24 * 60 * 60);
/// One call to the engine, and destroys at once.
const CALL: Duration = Duration::from_secs(60);
const PARALLEL: usize = 4;

/// Why a sandbox is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ground {
    /// Created, and not started for twice as long as a boot may take.
    NeverStarted,
    /// Warm for longer than any keeper keeps one.
    Forgotten,
    /// Running beyond its lifetime.
    Overdue,
    /// It ended, and was nobody's.
    EndedUnbound,
    /// It ended a day ago, and its news is out of date.
    Tombstone,
}

impl Ground {
    /// Every ground, for a metric's labels.
    pub const ALL: [Self; 5] = [
        Self::NeverStarted,
        Self::Forgotten,
        Self::Overdue,
        Self::EndedUnbound,
        Self::Tombstone,
    ];

    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NeverStarted => "never_started",
            Self::Forgotten => "forgotten",
            Self::Overdue => "overdue",
            Self::EndedUnbound => "ended_unbound",
            Self::Tombstone => "tombstone",
        }
    }
}

/// What was swept so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Times that everything was looked at.
    pub passes: u64,
    /// Sandboxes that were destroyed, by ground.
    pub destroyed: BTreeMap<Ground, u64>,
    /// What the engine had left behind of sandboxes that it no longer knew.
    pub leftovers: u64,
    /// Renamed sandboxes that got their session's name back.
    pub put_back: u64,
    /// Why the last pass could not do all of it, if so.
    pub last_error: Option<String>,
}

/// A sweep that goes on until it is dropped. One per server and deployment.
#[derive(Debug)]
pub struct Sweep {
    swept: watch::Receiver<Swept>,
    _task: AbortOnDropHandle<()>,
}

impl Sweep {
    /// Starts it. `clock` is the wall clock, by which the engine says when things happened.
    #[must_use]
    pub fn start(engine: Arc<dyn Engine>, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        let (told, swept) = watch::channel(Swept::default());
        let broom = Broom {
            engine,
            clock: Box::new(clock),
            created: Created::default(),
            strays: Strays::default(),
            told,
        };
        Self {
            swept,
            _task: AbortOnDropHandle::new(tokio::spawn(broom.sweep())),
        }
    }

    /// What was swept, now and whenever that changes.
    #[must_use]
    pub fn swept(&self) -> watch::Receiver<Swept> {
        self.swept.clone()
    }
}

struct Broom {
    engine: Arc<dyn Engine>,
    clock: Box<dyn Fn() -> SystemTime + Send + Sync>,
    created: Created,
    strays: Strays,
    told: watch::Sender<Swept>,
}

impl fmt::Debug for Broom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broom").finish_non_exhaustive()
    }
}

impl Broom {
    async fn sweep(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let error = self.pass().await.err().map(|error| error.to_string());
            self.told.send_modify(|swept| {
                swept.passes += 1;
                if let Some(error) = error.as_ref().filter(|_| swept.last_error.is_none()) {
                    tracing::warn!(%error, "the sweep could not do all of its work");
                }
                swept.last_error = error;
            });
        }
    }

    /// Does as much as it can, and answers with what it could not.
    async fn pass(&mut self) -> Result<(), EngineError> {
        let put_back = self.put_back().await;
        self.clear().await.and(put_back)
    }

    async fn put_back(&mut self) -> Result<(), EngineError> {
        let count = bounded("put renamed sandboxes back", self.strays.put_back(&self.engine)).await?;
        self.told.send_if_modified(|swept| {
            swept.put_back += count as u64;
            count > 0
        });
        Ok(())
    }

    async fn clear(&mut self) -> Result<(), EngineError> {
        let listed = bounded("list its sandboxes", self.engine.list()).await?;
        let wall = (self.clock)();
        let ripe = self.created.ripe(&listed, Instant::now());
        let judged = listed.iter().filter_map(|sandbox| {
            let ground = if ripe.contains(&sandbox.id) {
                Some(Ground::NeverStarted)
            } else {
                judge(sandbox, wall)
            };
            Some((sandbox.id.clone(), ground?))
        });
        let judged: Vec<_> = judged.collect();
        let outcomes = stream::iter(judged)
            .map(|(id, ground)| self.destroy(id, ground))
            .buffer_unordered(PARALLEL)
            .collect::<Vec<_>>()
            .await;
        let leftovers = bounded("sweep", self.engine.sweep()).await?;
        self.told.send_if_modified(|swept| {
            swept.leftovers += leftovers as u64;
            leftovers > 0
        });
        outcomes.into_iter().collect()
    }

    async fn destroy(&self, id: SandboxId, ground: Ground) -> Result<(), EngineError> {
        bounded("destroy a sandbox", self.engine.destroy(&id)).await?;
        tracing::info!(sandbox = %id, ground = ground.as_str(), "swept");
        self.told
            .send_modify(|swept| *swept.destroyed.entry(ground).or_default() += 1);
        Ok(())
    }
}

async fn bounded<T>(
    what: &'static str,
    call: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    timeout(CALL, call).await.unwrap_or_else(|_| {
        Err(EngineError::Timeout {
            what,
            seconds: CALL.as_secs(),
        })
    })
}

/// Sandboxes that were seen created and not started, and since when by this server's own clock. An engine
/// on another host may have another time of day, and a boot in progress must never be swept.
#[derive(Debug, Default)]
struct Created {
    since: BTreeMap<SandboxId, Instant>,
}

impl Created {
    /// Those that have been seen for longer than a boot takes.
    fn ripe(&mut self, listed: &[Listed], now: Instant) -> Vec<SandboxId> {
        let created = || listed.iter().filter(|s| s.state == ListedState::Created);
        self.since = created()
            .map(|s| (s.id.clone(), self.since.get(&s.id).copied().unwrap_or(now)))
            .collect();
        created()
            .filter(|s| now - self.since[&s.id] >= s.stay.created)
            .map(|s| s.id.clone())
            .collect()
    }
}

/// What the wall clock says of a sandbox.
pub(crate) fn judge(sandbox: &Listed, wall: SystemTime) -> Option<Ground> {
    let times = sandbox.stay;
    // A time that is still to come is no age.
    let age = |at: SystemTime| wall.duration_since(at).unwrap_or_default();
    let running = sandbox.started_at.map(age).unwrap_or_default();
    match sandbox.state {
        ListedState::Created => None,
        ListedState::Running | ListedState::Ending if running > times.running => Some(Ground::Overdue),
        // Race: it could be adopted at this moment only by a claim that was in hand for a minute.
        ListedState::Running if !sandbox.adopted && running > times.warm => Some(Ground::Forgotten),
        ListedState::Running | ListedState::Ending => None,
        ListedState::Exited(fate) if !sandbox.adopted || fate.reason().is_none() => {
            Some(Ground::EndedUnbound)
        }
        ListedState::Exited(fate) => (age(fate.finished_at) > TOMBSTONE).then_some(Ground::Tombstone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conversation::PoolName,
        pool::tests::spec,
        sandbox::{Fate, Stay},
    };

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn id(n: u8) -> SandboxId {
        SandboxId::parse(&format!("grs-{n:024x}")).unwrap()
    }

    fn listed(state: ListedState, adopted: bool, started_at: Option<SystemTime>) -> Listed {
        Listed {
            id: id(1),
            pool: PoolName::parse("python").unwrap(),
            creator: "another".into(),
            state,
            adopted,
            created_at: SystemTime::UNIX_EPOCH,
            started_at,
            stay: spec(2, 4).stay(),
        }
    }

    #[test]
    fn each_is_judged_by_what_it_is_and_how_long() {
        let wall = SystemTime::UNIX_EPOCH + 1000 * HOUR;
        let minutes = |n: u32| wall - n * Duration::from_secs(60);
        let exited = |exit_code, ago: u32| {
            ListedState::Exited(Fate {
                exit_code,
                oom_killed: false,
                finished_at: minutes(ago),
            })
        };
        let (day, hour) = (24 * 60, 60);
        for (state, adopted, started, ground) in [
            (ListedState::Created, false, None, None),
            (ListedState::Running, false, Some(hour), None),
            (
                ListedState::Running,
                false,
                Some(hour + 3),
                Some(Ground::Forgotten),
            ),
            (ListedState::Running, true, Some(hour + 3), None),
            (ListedState::Running, true, Some(day + hour), None),
            (
                ListedState::Running,
                true,
                Some(day + hour + 2),
                Some(Ground::Overdue),
            ),
            (
                ListedState::Ending,
                true,
                Some(day + hour + 2),
                Some(Ground::Overdue),
            ),
            (exited(81, day - 1), true, Some(2 * day), None),
            (exited(81, day + 1), true, Some(2 * day), Some(Ground::Tombstone)),
            (exited(137, 1), false, Some(2), Some(Ground::EndedUnbound)),
            (exited(80, 1), false, Some(2), Some(Ground::EndedUnbound)),
            (exited(80, 1), true, Some(2), Some(Ground::EndedUnbound)),
        ] {
            let sandbox = listed(state, adopted, started.map(minutes));
            assert_eq!(judge(&sandbox, wall), ground, "{sandbox:?}");
        }
        let early = listed(ListedState::Running, false, Some(wall + HOUR));
        assert_eq!(judge(&early, wall), None, "its clock is ahead");
        let mut unknown = listed(ListedState::Running, false, Some(wall - 100 * HOUR));
        unknown.stay = Stay::default();
        assert_eq!(judge(&unknown, wall), None, "it does not say");
    }

    #[test]
    fn a_created_one_is_swept_by_our_own_clock_alone() {
        let (now, long) = (Instant::now(), spec(2, 4).stay().created);
        let created = [listed(ListedState::Created, false, None)];
        let running = [listed(ListedState::Running, false, None)];
        let mut seen = Created::default();
        assert_eq!(seen.ripe(&created, now), []);
        assert_eq!(seen.ripe(&created, now + long / 2), []);
        assert_eq!(seen.ripe(&created, now + long), [id(1)]);
        assert_eq!(seen.ripe(&running, now + long), []);
        assert_eq!(seen.ripe(&created, now + 2 * long), [], "seen anew");
    }
}
