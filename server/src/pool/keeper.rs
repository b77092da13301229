//! The keeper: the one task that owns a pool's ledger and decides; what it decides is done by tasks of their own.

mod claims;
mod reports;

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    PoolSpec,
    appetite::Appetite,
    boot::{BootError, Failed, Order, Ready},
    census::{Census, PoolObserver, Readiness, Unready, Why},
    claim::{Custody, Request, Returned},
    image::prepare_image,
    ledger::{Boot, Ledger, Step},
    looks::{Looks, Need, Watch},
    pace::Pace,
    policy::{Boots, Demand, Installs},
    queue::Queue,
    sentence::Created,
};
use crate::{
    engine::{Engine, EngineError, Listed},
    sandbox::SandboxId,
};

/// A destroy takes 0.1 s, and 10 s where the engine has to thaw what somebody froze.
const DESTROY: Duration = Duration::from_secs(60);
/// Destroys under way at once: measured, four take 16 sandboxes down in 0.7 s.
const PARALLEL_DESTROYS: usize = 4;
/// A list takes milliseconds.
const LIST: Duration = Duration::from_secs(30);

/// What a warm sandbox holds in the ledger.
#[derive(Debug)]
struct Warm {
    ready: Ready,
    /// Ends with this: the guest's clone that it holds would keep a claimed sandbox's channel open.
    _watch: ChannelWatch,
}

/// The task that waits for a warm sandbox's channel to break.
#[derive(Debug)]
struct ChannelWatch(AbortHandle);

impl Drop for ChannelWatch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What came of what was to be done.
#[derive(Debug)]
enum Report {
    Prepared(Result<String, EngineError>),
    Booted(SandboxId, Boot, Result<Ready, Box<Failed>>),
    Settled(SandboxId, Created),
    ChannelBroke(SandboxId),
    Destroyed(SandboxId, Result<(), EngineError>),
    Looked {
        asked: Instant,
        outcome: Result<Vec<Listed>, EngineError>,
    },
}

/// The image that sandboxes are created from.
#[derive(Debug)]
enum Image {
    Wanted(Tried),
    Preparing(Tried),
    Prepared(String),
}

/// Whether preparing it has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    No,
    InVain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Closing,
}

/// The keeper's ends of what the pool's handles hold.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) requests: mpsc::Receiver<Request>,
    /// A claimer went away; which one shows in the queue.
    pub(super) hangups: Arc<Notify>,
    pub(super) closing: CancellationToken,
    pub(super) census: watch::Sender<Census>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    spec: Arc<PoolSpec>,
    engine: Arc<dyn Engine>,
    observer: Arc<dyn PoolObserver>,
    ends: Ends,
    returns: mpsc::Receiver<Returned>,
    way_back: mpsc::Sender<Returned>,
    ledger: Ledger<Warm>,
    queue: Queue,
    pace: Pace,
    looks: Looks,
    appetite: Appetite,
    image: Image,
    installs: Installs,
    phase: Phase,
    tasks: JoinSet<Report>,
    stop: CancellationToken,
    last_destroy_error: Option<String>,
}

impl Keeper {
    pub(super) fn new(
        spec: Arc<PoolSpec>,
        engine: Arc<dyn Engine>,
        observer: Arc<dyn PoolObserver>,
        ends: Ends,
    ) -> Self {
        // One place for each sandbox that may be out of the ledger's hands: custody is refused beyond.
        let (way_back, returns) = mpsc::channel(spec.max + spec.parallel_boots.max(1));
        let queue = Queue::new(spec.claims_waiting);
        Self {
            spec,
            engine,
            observer,
            ends,
            returns,
            way_back,
            ledger: Ledger::new(),
            queue,
            pace: Pace::new(),
            looks: Looks::new(),
            appetite: Appetite::default(),
            image: Image::Wanted(Tried::No),
            installs: Installs::new(),
            phase: Phase::Open,
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
            last_destroy_error: None,
        }
    }

    /// Runs until the pool is closed and nothing is left that it answers for.
    pub(super) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.act(now);
            self.publish();
            if self.phase == Phase::Closing && self.ledger.counts().held() == 0 {
                break;
            }
            let open = self.phase == Phase::Open;
            let wake = self.wake(now);
            select! {
                Some(returned) = self.returns.recv() => self.take_back(returned, Instant::now()),
                Some(report) = self.tasks.join_next() => self.heed(report, Instant::now()),
                request = self.ends.requests.recv(), if open || !self.ends.requests.is_empty() => match request {
                    Some(request) => self.enqueue(request, Instant::now()),
                    // The last handle is gone.
                    None => self.close(Instant::now()),
                },
                () = self.ends.closing.cancelled(), if open => self.close(Instant::now()),
                () = self.ends.hangups.notified() => {}
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    /// Begins everything that the present state asks for.
    fn act(&mut self, now: Instant) {
        self.tend_queue(now);
        self.replace_aged(now);
        self.begin_boots(now);
        self.begin_destroys(now);
        if self.looks.begin(self.need(), now) {
            let engine = Arc::clone(&self.engine);
            self.tasks.spawn(async move {
                let outcome = timeout(LIST, engine.list()).await;
                let outcome = outcome.unwrap_or_else(|_| Err(overdue("list its sandboxes", LIST)));
                Report::Looked { asked: now, outcome }
            });
        }
        for event in self.ledger.take_events() {
            self.observer.observe(event);
        }
    }

    /// When to act again though nothing happens. What is due by now and was not begun waits for an end of
    /// something that is under way, and that end wakes the keeper.
    fn wake(&self, now: Instant) -> Option<Instant> {
        [
            self.queue.next_deadline(),
            self.pace.next(self.queue.len() > 0, now),
            self.ledger.next_destroy(),
            self.installs.from(),
            self.looks.next(self.need(), now),
            self.ledger.next_beyond(self.spec.warm_age, now),
            self.ledger.next_beyond(self.ripe_age(), now),
            self.appetite.next(),
        ]
        .into_iter()
        .flatten()
        .filter(|at| *at > now)
        .min()
    }

    /// How many to keep warm now.
    fn target(&mut self, now: Instant) -> usize {
        self.appetite.target(self.spec.warm, self.spec.warm_max, now)
    }

    /// Warm sandboxes of this age get their replacement booted, so that one is there when they have to go.
    fn ripe_age(&self) -> Duration {
        let age = self.spec.warm_age;
        age.saturating_sub(self.spec.boot_deadline).max(age / 2)
    }

    /// Condemns warm sandboxes past their age, and earlier where enough younger ones are there.
    fn replace_aged(&mut self, now: Instant) {
        let ripe = self.ledger.warm_beyond(self.ripe_age(), now);
        let fresh = self.ledger.counts().warm - ripe.len();
        let aged = if fresh >= self.target(now) {
            ripe
        } else {
            self.ledger.warm_beyond(self.spec.warm_age, now)
        };
        for id in aged {
            self.condemn(&id, Why::Aged, Created::Done, now);
        }
    }

    fn begin_boots(&mut self, now: Instant) {
        if self.phase == Phase::Closing {
            return;
        }
        let Image::Prepared(image) = &self.image else {
            return self.begin_prepare(now);
        };
        let image = image.clone();
        let counts = self.ledger.counts();
        let demand = Demand {
            waiting: self.queue.len(),
            warm: counts.warm - self.ledger.warm_beyond(self.ripe_age(), now).len(),
            booting: counts.booting,
            target: self.target(now),
            parallel: self.spec.parallel_boots.max(1),
            free: self
                .pace
                .room()
                .map_or(usize::MAX, |room| self.spec.max.saturating_sub(room.live)),
        };
        let Boots { claims, reserve } = self.pace.boots(demand, now);
        for boot in
            std::iter::repeat_n(Boot::Claim, claims).chain(std::iter::repeat_n(Boot::Reserve, reserve))
        {
            self.begin_boot(boot, image.clone(), now);
        }
    }

    fn begin_boot(&mut self, boot: Boot, image: String, now: Instant) {
        let custody = SandboxId::mint()
            .ok()
            .and_then(|id| Custody::of(id, &self.way_back));
        let Some(custody) = custody else {
            self.pace.boot_failed(&BootError::NoCustody, now, rand::random());
            return;
        };
        let id = custody.id().clone();
        tracing::debug!(pool = %self.spec.name(), sandbox = %id, ?boot, "booting");
        // A minted id is new, so this step is never refused.
        drop(self.ledger.step(&id, Step::Begin(boot), now));
        let order = Order {
            custody,
            boot,
            image,
            spec: Arc::clone(&self.spec),
            engine: Arc::clone(&self.engine),
            stop: self.stop.clone(),
        };
        self.tasks
            .spawn(async move { Report::Booted(id, boot, order.boot().await) });
    }

    /// Has the image prepared: once, and again where the engine says that it has none.
    fn begin_prepare(&mut self, now: Instant) {
        let held = self.pace.held_until(self.queue.len() > 0);
        let Image::Wanted(tried) = self.image else { return };
        if held.max(self.installs.from()).is_some_and(|at| at > now) {
            return;
        }
        self.image = Image::Preparing(tried);
        let (engine, spec) = (Arc::clone(&self.engine), Arc::clone(&self.spec));
        self.tasks
            .spawn(async move { Report::Prepared(prepare_image(&*engine, &spec).await) });
    }

    fn begin_destroys(&mut self, now: Instant) {
        for id in self.ledger.begin_destroys(PARALLEL_DESTROYS, now) {
            let engine = Arc::clone(&self.engine);
            self.tasks.spawn(async move {
                let outcome = timeout(DESTROY, engine.destroy(&id)).await;
                let outcome = outcome.unwrap_or_else(|_| Err(overdue("destroy a sandbox", DESTROY)));
                Report::Destroyed(id, outcome)
            });
        }
    }

    fn condemn(&mut self, id: &SandboxId, why: Why, created: Created, now: Instant) {
        let Ok(held) = self.ledger.step(id, Step::Condemn(why, created), now) else {
            // Race: two reasons may meet, such as a dropped claim of a pool that closes. The first counts.
            return;
        };
        tracing::debug!(pool = %self.spec.name(), sandbox = %id, why = why.as_str(), "condemned");
        if let Some(Warm { ready, .. }) = held {
            ready.custody.discharge();
        }
        if created == Created::Never {
            drop(self.ledger.step(id, Step::Forget, now));
        }
    }

    /// Stops refilling; destroys what is warm or booting. Adopted ones are nobody's here, and those in a
    /// claimer's hand are his to adopt or drop.
    fn close(&mut self, now: Instant) {
        self.phase = Phase::Closing;
        self.ends.requests.close();
        self.stop.cancel();
        self.refuse_all(now);
        for id in self.ledger.warm_beyond(Duration::ZERO, now) {
            self.condemn(&id, Why::Closing, Created::Done, now);
        }
    }

    fn need(&self) -> Need {
        let max = self.spec.max;
        let live = self.pace.room().map_or(0, |room| room.live);
        let counts = self.ledger.counts();
        let lacks = counts.warm + counts.booting < self.spec.warm;
        let watch = if self.pace.is_full(max) {
            Watch::Full
        } else if lacks || (counts.held() > 0 && max.saturating_sub(live) <= max / 4 + 1) {
            Watch::Watchful
        } else if counts.held() == 0 {
            Watch::None
        } else {
            Watch::Calm
        };
        Need {
            sentences_from: self.ledger.next_look(),
            watch,
        }
    }

    fn readiness(&self) -> Readiness {
        if self.phase == Phase::Closing {
            return Readiness::Unready(Unready::Closing);
        }
        if let Some(reason) = self.looks.failure() {
            let reason = reason.to_owned();
            return Readiness::Unready(Unready::Engine { reason });
        }
        if self.ledger.counts().warm > 0 {
            return Readiness::Ready;
        }
        match (self.pace.readiness(&self.spec), &self.image) {
            (Readiness::Unready(Unready::Failing { failures, .. }), _)
                if self.installs.reason().is_some() =>
            {
                Readiness::Unready(Unready::NotInstalled { failures })
            }
            (Readiness::Ready | Readiness::Unready(Unready::Starting), Image::Preparing(_))
                if self.spec.install.is_some() =>
            {
                Readiness::Unready(Unready::Installing)
            }
            (Readiness::Ready, Image::Wanted(_) | Image::Preparing(_)) => {
                Readiness::Unready(Unready::Starting)
            }
            (readiness, _) => readiness,
        }
    }

    fn publish(&mut self) {
        let counts = self.ledger.counts();
        if counts.condemned == 0 {
            self.last_destroy_error = None;
        }
        let census = Census {
            counts,
            waiting: self.queue.len(),
            live: self.pace.room().map(|room| room.live),
            prepared: match &self.image {
                Image::Prepared(image) => Some(image.clone()),
                Image::Wanted(_) | Image::Preparing(_) => None,
            },
            failures: self.pace.failures(),
            last_boot_error: self.pace.reason(),
            backoff_until: self.pace.held_until(self.queue.len() > 0),
            last_destroy_error: self.last_destroy_error.clone(),
            readiness: self.readiness(),
        };
        self.ends.census.send_if_modified(|published| {
            let changed = *published != census;
            *published = census;
            changed
        });
    }
}

fn overdue(what: &'static str, deadline: Duration) -> EngineError {
    EngineError::Timeout {
        what,
        seconds: deadline.as_secs(),
    }
}
