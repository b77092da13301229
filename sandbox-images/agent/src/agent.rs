//! The agent as a whole: what it is made of, its lease's clock, and how it winds down.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use greenroom_protocol::{
    AgentConfig, EndReason, GENERATION, Hello, KernelState, KernelView, Platform, Standing,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    kernel::Kernel,
    lease::{Lease, LeaseError, millis, whole_ms},
    serve,
};

/// How long a sandbox that ends waits for its kernels to die and for its last answers to be read.
const WIND_DOWN: Duration = Duration::from_secs(2);

/// What an agent is made of. `main` brings the real parts, tests bring scripted kernels.
#[derive(Debug)]
pub struct Parts {
    /// One for each language of the image.
    pub kernels: Vec<Box<dyn Kernel>>,
    /// What was seen of the machine before any guest code ran.
    pub platform: Platform,
}

/// A running agent. Dropping the last handle ends its tasks and kernels without a word, as SIGKILL would.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    _guardian: AbortOnDropHandle<()>,
}

impl Agent {
    /// Starts the clock of the lease and the kernels that the configuration wants ready.
    ///
    /// Must be called within a tokio runtime.
    #[must_use]
    pub fn start(config: AgentConfig, parts: Parts) -> Self {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            boot: boot_id(),
            started: now,
            lease: Mutex::new(Lease::new(millis(config.unbound_ms), now)),
            revision: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            ended: watch::Sender::new(None),
            kernels: Mutex::new(parts.kernels),
            platform: parts.platform,
            config,
        });
        let guardian = AbortOnDropHandle::new(tokio::spawn(guard(Arc::clone(&shared))));
        Self(Arc::new(Inner {
            shared,
            _guardian: guardian,
        }))
    }

    /// Serves one connection until either side closes it. It counts as a live channel meanwhile. Dropping
    /// the future drops the connection; runs go on.
    pub async fn serve<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let _channel = Channel::open(Arc::clone(&self.0.shared));
        serve::connection(Arc::clone(&self.0.shared), io).await;
    }

    /// Waits until the agent has ended: kernels dead, last answers read or given up. PID 1 exits then with
    /// [`EndReason::exit_code`]. Cancel safe.
    pub async fn ended(&self) -> EndReason {
        let mut ended = self.0.shared.ended.subscribe();
        loop {
            if let Some(reason) = *ended.borrow_and_update() {
                return reason;
            }
            if ended.changed().await.is_err() {
                // Only the guardian's own end closes it, and that is a failure of ours.
                return EndReason::Failed;
            }
        }
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("boot", &self.0.shared.boot)
            .finish_non_exhaustive()
    }
}

/// What connections, runs and the guardian share.
pub(crate) struct Shared {
    pub(crate) boot: String,
    started: Instant,
    pub(crate) config: AgentConfig,
    platform: Platform,
    kernels: Mutex<Vec<Box<dyn Kernel>>>,
    lease: Mutex<Lease>,
    /// Follows [`Lease::revision`].
    revision: watch::Sender<u64>,
    connections: watch::Sender<usize>,
    ended: watch::Sender<Option<EndReason>>,
}

impl Shared {
    /// Looks at the lease or changes it, and wakes whoever waits for a change.
    pub(crate) fn lease<T>(&self, act: impl FnOnce(&mut Lease, Instant) -> T) -> T {
        let (answer, revision) = {
            let mut lease = lock(&self.lease);
            let answer = act(&mut lease, Instant::now());
            (answer, lease.revision())
        };
        self.revision.send_if_modified(|seen| {
            // Two calls may get here in the other order: a revision never goes back.
            let newer = *seen < revision;
            *seen = revision.max(*seen);
            newer
        });
        answer
    }

    /// Sees each change of the lease.
    pub(crate) fn lease_changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the sandbox has decided to end.
    pub(crate) async fn ending(&self) -> EndReason {
        let mut changes = self.lease_changes();
        loop {
            changes.borrow_and_update();
            if let Some(reason) = self.lease(Lease::settle) {
                return reason;
            }
            if changes.changed().await.is_err() {
                // The sender is in `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Holds the lease open for a run, tunnel or transfer.
    pub(crate) fn open_activity(self: &Arc<Self>) -> Result<Activity, LeaseError> {
        let standing = self.lease(Lease::opened)?;
        Ok(Activity {
            standing,
            shared: Arc::clone(self),
        })
    }

    /// The agent's first answer.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            generation: GENERATION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.boot.clone(),
            ready: true,
            failed: None,
            platform: self.platform.clone(),
            kernels: lock(&self.kernels)
                .iter()
                .map(|kernel| KernelView {
                    language: kernel.language(),
                    state: KernelState::Dormant,
                    version: None,
                })
                .collect(),
            lease: self.lease(Lease::view),
            uptime_ms: whole_ms(self.started.elapsed()),
        }
    }
}

/// The idle clock stands still as long as one of these lives.
pub(crate) struct Activity {
    /// What its caller must hear.
    pub(crate) standing: Standing,
    shared: Arc<Shared>,
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.shared.lease(Lease::closed);
    }
}

/// A connection that is being served.
struct Channel(Arc<Shared>);

impl Channel {
    fn open(shared: Arc<Shared>) -> Self {
        shared.lease(Lease::channel_opened);
        shared.connections.send_modify(|n| *n += 1);
        Self(shared)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.0.lease(Lease::channel_closed);
        self.0.connections.send_modify(|n| *n -= 1);
    }
}

/// Lets time decide about the lease, then winds down.
async fn guard(shared: Arc<Shared>) {
    let mut changes = shared.lease_changes();
    let reason = loop {
        changes.borrow_and_update();
        let (ended, check) = shared.lease(|lease, now| (lease.settle(now), lease.next_check(now)));
        if let Some(reason) = ended {
            break reason;
        }
        let due = async {
            match check {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            // The sender is in `shared`, so this cannot be an error.
            _ = changes.changed() => {}
        }
    };
    let mut connections = shared.connections.subscribe();
    // Out of time or out of connections: both mean that there is nobody left to wait for.
    drop(timeout(WIND_DOWN, connections.wait_for(|n| *n == 0)).await);
    shared.ended.send_replace(Some(reason));
}

/// Random per start; the clock would do where the system has no randomness to give.
fn boot_id() -> String {
    let mut bytes = [0; 8];
    if getrandom::fill(&mut bytes).is_err() {
        bytes = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64)
            .to_ne_bytes();
    }
    format!("{:016x}", u64::from_be_bytes(bytes))
}

/// Nothing panics while it holds one of our locks; if it did, what it left behind is still consistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
