//! The agent as a whole: what it is made of, its lease's clock, and how it winds down.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use greenroom_protocol::{AgentConfig, Begin, EndReason, FilesFate, GENERATION, Hello, LastWords, Platform};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    app::{App, Gate},
    child::Quarters,
    files::Files,
    kernel::Kernel,
    lease::{Lease, millis, whole_ms},
    platform, processes,
    runs::{Owners, Runs},
    serve::{self, Once},
    tenure::Tenure,
};

/// How long a sandbox that ends waits for its kernels to die and for its last answers to be read.
const WIND_DOWN: Duration = Duration::from_secs(2);
/// How long a relay may take to exit once its connection has closed: it has nothing else to do.
const RELAY_ENDS: Duration = Duration::from_millis(500);
/// How long the engine may take to hear of it.
const TOLD_OUTSIDE: Duration = Duration::from_millis(50);

/// What an agent is made of. `main` brings the real parts, tests bring scripted kernels.
#[derive(Debug)]
pub struct Parts {
    /// One for each language of the image.
    pub kernels: Vec<Box<dyn Kernel>>,
    /// The work directory's.
    pub files: Files,
    /// As whom the guest's processes live.
    pub quarters: Quarters,
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
    pub fn start(config: &AgentConfig, parts: Parts) -> Self {
        let now = Instant::now();
        let gate = match config.begin {
            Begin::AtOnce => Gate::Open,
            Begin::Told | Begin::WithApp => Gate::Shut,
        };
        let app = App::new(parts.quarters, gate);
        let (runs, owners) = Runs::start(parts.kernels, &config.ready, &parts.files, &app);
        let shared = Arc::new(Shared {
            boot: boot_id(),
            started: now,
            tenure: Tenure::new(Lease::new(millis(config.unbound_ms), now)),
            runs,
            app,
            files: parts.files,
            once: Arc::default(),
            kept: Mutex::default(),
            platform: parts.platform,
            port: config.port,
            connections: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Serving),
        });
        let guardian = tokio::spawn(guard(Arc::clone(&shared), owners));
        Self(Arc::new(Inner {
            shared,
            _guardian: AbortOnDropHandle::new(guardian),
        }))
    }

    /// Serves one connection until either side closes it. It counts as a live channel meanwhile. Dropping
    /// the future drops the connection; runs go on.
    pub async fn serve<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let _connection = Connection::count(&self.0.shared);
        let _channel = self.0.shared.tenure.channel();
        serve::connection(Arc::clone(&self.0.shared), io).await;
    }

    /// The same, for the end of a relay, and until that has exited. An engine that hears of a sandbox's end before it
    /// hears of the end of a process that it started in there waits for the latter for ever, with all it holds for it.
    pub async fn serve_relay(&self, stream: UnixStream) {
        let _connection = Connection::count(&self.0.shared);
        let relay = stream.peer_cred().ok().and_then(|peer| peer.pid());
        self.serve(stream).await;
        if let Some(pid) = relay {
            drop(timeout(RELAY_ENDS, processes::gone(pid)).await);
            sleep(TOLD_OUTSIDE).await;
        }
    }

    /// What is to be left behind of the image's own program, if there was one.
    #[must_use]
    pub fn last_words(&self, reason: EndReason) -> Option<LastWords> {
        self.0.shared.app.last_words(reason)
    }

    /// Waits until the agent has ended: kernels dead, last answers read or given up. PID 1 exits then with
    /// [`EndReason::exit_code`]. Cancel safe.
    pub async fn ended(&self) -> EndReason {
        let mut phase = self.0.shared.phase.subscribe();
        loop {
            if let Phase::Ended(reason) = *phase.borrow_and_update() {
                return reason;
            }
            if phase.changed().await.is_err() {
                // The sender is in `self`; were it gone, that would be a failure of ours.
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

/// What connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) boot: String,
    started: Instant,
    pub(crate) tenure: Arc<Tenure>,
    pub(crate) runs: Runs,
    pub(crate) app: App,
    pub(crate) files: Files,
    pub(crate) once: Arc<Once>,
    /// What the sandbox was filled with, where that is an earlier one's.
    pub(crate) kept: Mutex<Option<FilesFate>>,
    platform: Platform,
    port: Option<u16>,
    connections: watch::Sender<usize>,
    phase: watch::Sender<Phase>,
}

/// How far the agent's own end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Calls are answered; once the lease has ended, with that.
    Serving,
    /// Nothing runs any more: connections carry their last answers away and close.
    Draining,
    /// Nothing is left to wait for.
    Ended(EndReason),
}

impl Shared {
    /// Waits until connections should close.
    pub(crate) async fn draining(&self) {
        let mut phase = self.phase.subscribe();
        // The sender is in `self`, so this cannot be an error.
        drop(phase.wait_for(|phase| *phase != Phase::Serving).await);
    }

    /// The agent's first answer.
    pub(crate) fn hello(&self) -> Hello {
        let boot = self.runs.boot().borrow().clone();
        Hello {
            generation: GENERATION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.boot.clone(),
            ready: boot.is_ready(),
            failed: boot.failed,
            platform: self.platform.clone(),
            kernels: self.runs.kernels(),
            port: self.port,
            lease: self.tenure.with(Lease::view),
            uptime_ms: whole_ms(self.started.elapsed()),
            disk_used_bytes: platform::disk_used(),
        }
    }
}

/// A connection that is being served.
struct Connection<'a>(&'a Shared);

impl<'a> Connection<'a> {
    fn count(shared: &'a Shared) -> Self {
        shared.connections.send_modify(|n| *n += 1);
        Self(shared)
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.0.connections.send_modify(|n| *n -= 1);
    }
}

/// Lets time decide about the lease, then winds down: runs are told, kernels die, answers are read.
async fn guard(shared: Arc<Shared>, owners: Owners) {
    let reason = shared.tenure.ended().await;
    shared.runs.end(reason);
    let wind_down = async {
        for owner in owners {
            // An owner that panicked is over too.
            drop(owner.await);
        }
        shared.app.over().await;
        shared.phase.send_replace(Phase::Draining);
        let mut connections = shared.connections.subscribe();
        drop(connections.wait_for(|n| *n == 0).await);
    };
    // Out of time: what is still open goes down with PID 1.
    drop(timeout(WIND_DOWN, wind_down).await);
    shared.phase.send_replace(Phase::Ended(reason));
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
