//! The pool: keeps some sandboxes of one kind warm, and hands each to exactly one session.
//!
//! ```text
//!                      ┌──────────── the keeper, one task ────────────┐
//!  claim() ─request──▶ │ queue · pace · looks                         │ ─spawns─▶ boot · destroy · look,
//!     ▲                │ ledger: Booting ─▶ Warm ─▶ Claimed ─▶ adopted │            tasks with deadlines
//!     └──── offer ──── │            │         │        │              │ ◀─join─── what came of them
//!  Claim ───return───▶ │            └─────────┴────────┴─▶ Condemned  │
//!   adopt: a task that │                                      │       │ ─watch──▶ census, readiness
//!   outlives its caller│                                      ▼ gone  │
//!                      └──────────────────────────────────────────────┘
//! ```
//! # Who holds what
//! One task, the keeper, owns the ledger and decides; everything that talks to the engine is a task of its
//! own whose result comes back to the keeper. A sandbox is exactly one `Custody`, made
//! *before* the engine is asked to create anything and handed on with it: boot → ledger → offer → claim.
//! Dropping it anywhere, a panic included, condemns the sandbox. The way back is reserved when it is made,
//! so a drop can always be told. From the moment a rename is *sent* nothing here destroys that sandbox: it
//! may be a session's.
//!
//! # How a sandbox becomes warm
//! packages installed on the image, where the pool adds some → image prepared → list (room?) → create → list (still room, mine included?) → start → channel → hello with
//! kernels and preloads done → generation and isolation proven → its work directory filled, where there is a seed. One deadline stands over it. Whatever goes wrong, the
//! sandbox is condemned and stays in the ledger until the engine is known to have nothing of it.
//!
//! # Several servers on one engine
//! They share `max` by what the engine lists, and nothing else. A boot for the reserve leaves one slot free,
//! a boot for a waiting claim may take the last; so only claims fill the pool, and a keeper that sees it
//! full lets go of one warm sandbox at a time.

mod appetite;
mod boot;
mod census;
mod claim;
mod image;
mod keeper;
mod ledger;
mod looks;
mod pace;
mod policy;
mod queue;
mod room;
mod seed;
mod sentence;
mod strays;
mod sweep;

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use self::{
    census::{BootFault, Census, Counts, Hit, PoolEvent, PoolObserver, Readiness, Unready, Why},
    claim::{AdoptError, Claim, ClaimError, Delay},
    image::{Install, prepare_image},
    seed::{Seed, SeedError},
    sweep::{Ground, Sweep, Swept},
};
use self::{
    claim::Request,
    keeper::{Ends, Keeper},
};
pub(crate) use self::{image::derivation, sweep::judge};
use crate::{
    conversation::{PoolName, Principal},
    engine::Engine,
    sandbox::{SandboxSpec, Start, Stay},
};

/// Requests on their way to the keeper, which takes each in microseconds.
const REQUESTS: usize = 64;
/// A keeper answers at a claim's deadline; one that does not within this is gone.
const KEEPER_GRACE: Duration = Duration::from_secs(5);

/// What a sandbox may run beyond its time: its agent needs seconds to end it.
const GRACE: Duration = Duration::from_secs(60);
/// An engine that is busy takes this long to start one.
const NEVER_STARTED: Duration = Duration::from_secs(40);

/// A handle on a pool. When the last one is dropped the pool closes.
#[derive(Clone, Debug)]
pub struct Pool {
    spec: Arc<PoolSpec>,
    requests: mpsc::Sender<Request>,
    hangups: Arc<Notify>,
    closing: CancellationToken,
    census: watch::Receiver<Census>,
}

impl Pool {
    /// Starts the keeper, which begins to fill the pool at once. `observer` hears what happens in it; `()`
    /// does not listen.
    #[must_use]
    pub fn start(spec: PoolSpec, engine: Arc<dyn Engine>, observer: Arc<dyn PoolObserver>) -> Self {
        if spec.isolation == Isolation::Waived {
            tracing::warn!(
                pool = %spec.name(),
                runtime = spec.sandbox.runtime,
                "INSECURE: sandboxes of this pool need not prove that they are isolated by gVisor"
            );
        }
        let spec = Arc::new(spec);
        let (requests, requested) = mpsc::channel(REQUESTS);
        let (counted, census) = watch::channel(Census::starting());
        let hangups = Arc::new(Notify::new());
        let closing = CancellationToken::new();
        let ends = Ends {
            requests: requested,
            hangups: Arc::clone(&hangups),
            closing: closing.clone(),
            census: counted,
        };
        tokio::spawn(Keeper::new(Arc::clone(&spec), engine, observer, ends).run());
        Self {
            spec,
            requests,
            hangups,
            closing,
            census,
        }
    }

    /// What the pool was started with.
    #[must_use]
    pub fn spec(&self) -> &PoolSpec {
        &self.spec
    }

    /// Claims one warm sandbox; waits for one until `deadline`, and no longer than the spec's `claim_wait`.
    /// Principals take turns; those of one are served in the order in which they asked.
    ///
    /// Cancel safe: a claim that is given up loses its place, and a sandbox that was granted in that moment
    /// goes back unused.
    ///
    /// # Errors
    /// [`ClaimError`] names the limit, or what was waited for.
    pub async fn claim(&self, whose: &Principal, deadline: Instant) -> Result<Claim, ClaimError> {
        /// Wakes the keeper when the claimer goes away, however that happens.
        struct Hangup<'a>(&'a Notify);
        impl Drop for Hangup<'_> {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }

        let asked = Instant::now();
        let deadline = deadline.min(asked + self.spec.claim_wait);
        // Declared before the answer, so dropped after it: the keeper then sees that nobody listens.
        let _hangup = Hangup(&self.hangups);
        let (reply, answer) = oneshot::channel();
        let request = Request {
            reply,
            whose: whose.clone(),
            asked,
            deadline,
            hit: Hit::Warm,
        };
        let answered = timeout_at(deadline + KEEPER_GRACE, async {
            self.requests.send(request).await.ok()?;
            answer.await.ok()
        });
        let offer = answered.await.ok().flatten().ok_or(ClaimError::Closed)?;
        offer?.accept().ok_or(ClaimError::Closed)
    }

    /// The pool's numbers, now and whenever they change.
    #[must_use]
    pub fn census(&self) -> watch::Receiver<Census> {
        self.census.clone()
    }

    /// Whether a claim would be granted or booted now.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.census.borrow().readiness.clone()
    }

    /// Whether this is a handle on the same pool.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.requests.same_channel(&other.requests)
    }

    /// Whether it has been told to close.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// Stops refilling, refuses claims, and destroys what is warm or booting; adopted sandboxes are left to
    /// their conversations. Returns when nothing is left or after `grace`, with the last census: what it
    /// still holds is left to end itself, and to the sweep of the next server.
    ///
    /// Cancel safe: the pool goes on closing.
    pub async fn close(&self, grace: Duration) -> Census {
        self.closing.cancel();
        let mut census = self.census.clone();
        // Late or done: the census says which.
        drop(
            timeout(
                grace,
                census.wait_for(|census| census.counts.held() == 0 && census.is_closing()),
            )
            .await,
        );
        census.borrow().clone()
    }
}

/// A kind of sandbox and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// What the engine is asked for. Its `image` is the one configured: the pool has it prepared.
    pub sandbox: SandboxSpec,
    /// What each is told at its start. Default: nothing.
    pub start: Start,
    /// What is installed on its image first. Default: nothing.
    pub install: Option<Install>,
    /// What each finds in its work directory. Default: nothing.
    pub seed: Option<Seed>,
    /// Sandboxes kept warm; never the last of `max`, which is left to a conversation. Default 2.
    pub warm: usize,
    /// Sandboxes kept warm where many were claimed at once lately; below `warm` it means `warm`. Default 0: no more.
    pub warm_max: usize,
    /// Sandboxes of this pool that may exist on the engine at once, whoever made them. Default 32.
    pub max: usize,
    /// Boots under way at once. Default: this machine's cores; more is slower, measured.
    pub parallel_boots: usize,
    /// From the first look for room until warm. Default 20 s.
    pub boot_deadline: Duration,
    /// Longest that a claim waits. Default 10 s.
    pub claim_wait: Duration,
    /// Claims that may wait. Default 256.
    pub claims_waiting: usize,
    /// A warm sandbox older than this is replaced: nobody can prepare one for long before it is
    /// claimed, and the engine-side backstop knows its age. Default 1 h.
    pub warm_age: Duration,
    /// A session ends after this long without a run, tunnel or transfer. Default 2 h.
    pub idle: Duration,
    /// A session ends this long after it began. Default 24 h.
    pub lifetime: Duration,
    /// Where there is no room, a session that has been idle for so long makes some. Default: none does.
    pub evict_after: Option<Duration>,
    /// What a sandbox must prove before it is warm. Default [`Isolation::Proven`].
    pub isolation: Isolation,
}

impl PoolSpec {
    /// The defaults around one kind of sandbox.
    #[must_use]
    pub fn new(sandbox: SandboxSpec) -> Self {
        Self {
            sandbox,
            start: Start::default(),
            install: None,
            seed: None,
            warm: 2,
            warm_max: 0,
            max: 32,
            parallel_boots: std::thread::available_parallelism().map_or(2, usize::from),
            boot_deadline: Duration::from_secs(20),
            claim_wait: Duration::from_secs(30),
            claims_waiting: 256,
            warm_age: Duration::from_secs(60 * 60),
            idle: Duration::from_secs(2 * 60 * 60),
            lifetime: Duration::from_secs(24 * 60 * 60),
            evict_after: None,
            isolation: Isolation::Proven,
        }
    }

    /// The pool's name.
    #[must_use]
    pub const fn name(&self) -> &PoolName {
        &self.sandbox.pool
    }

    /// How long its sandboxes may stay what they are.
    fn stay(&self) -> Stay {
        Stay {
            created: (2 * self.boot_deadline).max(NEVER_STARTED),
            warm: self.warm_age + 2 * self.boot_deadline + GRACE,
            running: self.warm_age + self.lifetime + GRACE,
        }
    }
}

/// What a sandbox must prove at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// That it runs under gVisor; one that does not is destroyed.
    #[default]
    Proven,
    /// Nothing: the operator has said so in as many words, and it is logged loudly.
    Waived,
}

#[cfg(test)]
mod tests {
    use greenroom_protocol::AgentConfig;

    use super::*;

    pub(super) fn spec(warm: usize, max: usize) -> PoolSpec {
        let sandbox = SandboxSpec {
            pool: PoolName::parse("python").unwrap(),
            image: "greenroom/python".into(),
            runtime: "runsc".into(),
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            pids: 1024,
            nproc: 128,
            nofile: 1024,
            stay: Stay::default(),
            agent: AgentConfig::default(),
        };
        PoolSpec {
            warm,
            max,
            ..PoolSpec::new(sandbox)
        }
    }
}
