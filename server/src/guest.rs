//! The client of the agent in a sandbox, over any channel: the only file that speaks HTTP/2 to it.
//!
//! ```text
//! Guest ─┬─ runs  ── link ──▶ exec stream 1: hello, lease, runs, archives (small windows)
//!        └─ bulk  ── link ──▶ exec stream 2: files, tunnels (large windows, opened when first needed)
//! ```
//! Archives are no hurry, and every session has them: they do without the process that a second stream costs each
//! sandbox. A stream's window is a quarter of its connection's, so runs get past one that stalls.
//!
//! A guest is a handle on a sandbox that may be gone at any moment: nothing it was told stays true. A
//! channel that broke is opened again by the next call. Every call has a deadline, and everything that
//! comes from inside is bounded before it is passed on: the server trusts no sandbox.

mod bounds;
mod call;
mod error;
mod files;
mod follow;
mod link;
mod transfer;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use greenroom_protocol::{
    AppLog, BootRequest, EndReason, GENERATION, Hello, LeaseGrant, LeaseRequest, LeaseState, Packages,
    RefusalKind, RunId, RunList, RunRequest, limits,
};
use http::{HeaderMap, Method};
use http_body_util::{Either, Full};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub(crate) use self::bounds::lines;
use self::{
    bounds::Bounded,
    call::{Ask, LIST, SMALL, Slashes, encode, end_target, parse, refused, request, send, target, within},
    link::{Link, Outgoing, Windows},
};
pub use self::{
    error::{GuestError, Lost},
    files::Depth,
    follow::RunFollow,
    transfer::{FileBody, FileRead, Packing, Picture, Tunnel, Upload, WriteMode},
};
use crate::{engine::Engine, sandbox::SandboxId};

/// How long an agent may take over what it does not have to wait for.
const CALL: Duration = Duration::from_secs(10);

/// Runs of one sandbox that this server follows at the same time. The rest of a connection's streams is
/// for what must always get through: a lease, a cancel.
const FOLLOWS: usize = limits::STREAMS as usize - 16;

/// Tunnels into one sandbox that this server has open at the same time. The rest of that connection's streams is for
/// files.
const TUNNELS: usize = limits::STREAMS as usize - 16;

/// A handle on the agent of one sandbox. Clones share its channels.
#[derive(Clone)]
pub struct Guest {
    shared: Arc<Shared>,
}

struct Shared {
    id: SandboxId,
    runs: Link,
    bulk: Link,
    follows: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    /// What its hello has said of its program's port.
    port: OnceLock<Option<u16>>,
    /// Set once the agent has said that it is ending.
    ended: AtomicBool,
    stirrings: watch::Sender<Stirrings>,
}

impl Guest {
    /// Opens the channel for runs. That an agent answers is for [`hello`](Self::hello) to find out.
    ///
    /// # Errors
    /// [`GuestError::Lost`], [`GuestError::Protocol`].
    pub async fn connect(engine: Arc<dyn Engine>, id: SandboxId) -> Result<Self, GuestError> {
        let runs = Link::new(Arc::clone(&engine), id.clone(), Windows::Runs);
        runs.wire().await?;
        let bulk = Link::new(engine, id.clone(), Windows::Bulk);
        Ok(Self {
            shared: Arc::new(Shared {
                id,
                runs,
                bulk,
                follows: Arc::new(Semaphore::new(FOLLOWS)),
                tunnels: Arc::new(Semaphore::new(TUNNELS)),
                port: OnceLock::new(),
                ended: AtomicBool::new(false),
                stirrings: watch::Sender::default(),
            }),
        })
    }

    /// The sandbox.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.shared.id
    }

    /// Whether it is a clone of this one, not only the same sandbox's.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether the channel for runs is open, and the agent has not said that it is ending. A hint.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared.runs.is_open() && !self.shared.ended.load(Ordering::Relaxed)
    }

    /// Resolves when the channel for runs that is open now has closed; at once where none is. The next
    /// call opens another. Cancel safe.
    pub async fn closed(&self) {
        self.shared.runs.closed().await;
    }

    /// Who the agent is and where it stands.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Generation`] where it speaks another generation of the protocol.
    pub async fn hello(&self) -> Result<Hello, GuestError> {
        self.greet(Ask::new("hello", Method::GET, target("/"))).await
    }

    /// The same, once it is ready or has failed; after at most `wait` in any case.
    ///
    /// # Errors
    /// As [`hello`](Self::hello).
    pub async fn wait_ready(&self, wait: Duration) -> Result<Hello, GuestError> {
        let path = format!("/?wait={}", wait.as_secs());
        self.greet(Ask::new("hello", Method::GET, target(&path)).waiting(wait))
            .await
    }

    async fn greet(&self, ask: Ask) -> Result<Hello, GuestError> {
        /// What every generation of hello has.
        #[derive(Deserialize)]
        struct Origin {
            generation: u32,
            version: String,
        }
        let bytes = ask.bytes(&self.shared.runs, SMALL).await?;
        let origin: Origin = parse(&bytes)?;
        if origin.generation != GENERATION {
            return Err(GuestError::Generation {
                generation: origin.generation,
                theirs: error::shown(&origin.version),
                expected: GENERATION,
                ours: env!("CARGO_PKG_VERSION"),
            });
        }
        let hello = parse::<Hello>(&bytes)?.bounded()?;
        self.shared.port.get_or_init(|| hello.port);
        Ok(hello)
    }

    /// Where its image's own program listens, as its pool was when it was made. `None`: it was not told.
    ///
    /// # Errors
    /// [`GuestError`]; only where no hello has told it yet.
    pub async fn port(&self) -> Result<Option<u16>, GuestError> {
        match self.shared.port.get() {
            Some(port) => Ok(*port),
            None => Ok(self.hello().await?.port),
        }
    }

    /// Binds the sandbox to a session, or finds it bound to it.
    ///
    /// # Errors
    /// [`GuestError::Refused`] with [`RefusalKind::Conflict`] where it is another session's,
    /// [`GuestError::Ended`] where it is ending.
    pub async fn lease(&self, lease: &LeaseRequest) -> Result<LeaseGrant, GuestError> {
        let ask = Ask::new("a lease", Method::POST, target("/lease")).json(lease)?;
        self.heed(ask.answer(&self.shared.runs, SMALL).await)
    }

    /// Says that an answer with the session's notice was written out.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn told(&self) -> Result<(), GuestError> {
        let ask = Ask::new("that its notice was told", Method::POST, target("/lease/told"));
        self.note(ask.done(&self.shared.runs).await)
    }

    /// Tells the sandbox what it waits for: its environment, and its image's program.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn boot(&self, request: &BootRequest) -> Result<(), GuestError> {
        let ask = Ask::new("what it is to start", Method::POST, target("/boot")).json(request)?;
        self.note(ask.done(&self.shared.runs).await)
    }

    /// What its image's program has written, head and tail.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn log(&self) -> Result<AppLog, GuestError> {
        let ask = Ask::new("for its log", Method::GET, target("/log"));
        self.heed(ask.answer(&self.shared.runs, LIST).await)
    }

    /// Acknowledges what a run said of a kernel that lost its variables.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn told_loss(&self, run: &RunId) -> Result<(), GuestError> {
        check_run(run)?;
        let path = format!("/runs/{}/told", encode(&run.0, Slashes::Encoded));
        let ask = Ask::new("that a loss was told", Method::POST, target(&path));
        self.note(ask.done(&self.shared.runs).await)
    }

    /// The lease as it stands.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Ended`] once it is ending.
    pub async fn lease_state(&self) -> Result<LeaseState, GuestError> {
        let ask = Ask::new("about its lease", Method::GET, target("/lease"));
        self.heed(ask.answer(&self.shared.runs, SMALL).await)
    }

    /// The same, once it changes or after `wait`; the agent cuts that to [`limits::WAIT_SECS`].
    ///
    /// # Errors
    /// As [`lease_state`](Self::lease_state).
    pub async fn watch_lease(&self, wait: Duration) -> Result<LeaseState, GuestError> {
        let path = format!("/lease?wait={}", wait.as_secs());
        let ask = Ask::new("about its lease", Method::GET, target(&path)).waiting(wait);
        self.heed(ask.answer(&self.shared.runs, SMALL).await)
    }

    /// Ends the sandbox.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Ended`] where it was ending already.
    pub async fn end(&self, reason: EndReason) -> Result<(), GuestError> {
        self.end_at(end_target(reason, None)).await
    }

    /// Ends the sandbox if nothing has run in it for `idle`; decided by the agent, so that no run slips in.
    ///
    /// # Errors
    /// As [`end`](Self::end); [`GuestError::Refused`] with [`RefusalKind::Conflict`] where it was not idle.
    pub async fn end_if_idle(&self, reason: EndReason, idle: Duration) -> Result<(), GuestError> {
        self.end_at(end_target(reason, Some(idle))).await
    }

    async fn end_at(&self, target: String) -> Result<(), GuestError> {
        let ask = Ask::new("to its end", Method::DELETE, target);
        self.note(ask.done(&self.shared.runs).await)
    }

    /// Starts a run, or finds the one with this id, and follows its events.
    ///
    /// Returns before anything was sent: the first [`RunFollow::next`] sends it.
    ///
    /// # Errors
    /// [`GuestError::Refused`] where the code is too large, the id is none, or too many runs are followed
    /// already.
    pub fn run(&self, run: &RunRequest) -> Result<RunFollow, GuestError> {
        check_run(&run.id)?;
        if run.code.len() > limits::CODE_BYTES {
            return Err(call::too_large(format!(
                "code of {} bytes, the limit is {}",
                run.code.len(),
                limits::CODE_BYTES
            )));
        }
        let ask = Ask::new("a run", Method::POST, target("/runs")).json(run)?;
        Ok(RunFollow::start(
            self.clone(),
            run.id.clone(),
            ask,
            self.follow_permit()?,
        ))
    }

    /// Replays a run's events from number `from`, and follows for at most `wait`, which is cut to
    /// [`limits::WAIT_SECS`].
    ///
    /// # Errors
    /// [`GuestError::Refused`] where the id is none or too many runs are followed already.
    pub fn follow(&self, run: &RunId, from: u64, wait: Duration) -> Result<RunFollow, GuestError> {
        check_run(run)?;
        let wait = wait.min(Duration::from_secs(limits::WAIT_SECS));
        Ok(RunFollow::replay(
            self.clone(),
            run.clone(),
            from,
            wait,
            self.follow_permit()?,
        ))
    }

    fn follow_permit(&self) -> Result<OwnedSemaphorePermit, GuestError> {
        Arc::clone(&self.shared.follows).try_acquire_owned().map_err(|_| {
            refused(
                RefusalKind::QueueFull,
                format!("{FOLLOWS} calls wait for runs of this session already, which is the limit"),
            )
        })
    }

    /// The runs that the agent knows, newest first.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn runs(&self) -> Result<RunList, GuestError> {
        let ask = Ask::new("for its runs", Method::GET, target("/runs"));
        self.heed(ask.answer(&self.shared.runs, LIST).await)
    }

    /// The packages of its image, as that lists them.
    ///
    /// # Errors
    /// [`GuestError`].
    pub async fn packages(&self) -> Result<Packages, GuestError> {
        let ask = Ask::new("for its packages", Method::GET, target("/packages"));
        self.heed(ask.answer(&self.shared.runs, LIST).await)
    }

    /// Interrupts a run, and kills it after a grace.
    ///
    /// # Errors
    /// [`GuestError::Refused`] with [`RefusalKind::NotFound`] or, where it is over, [`RefusalKind::Conflict`].
    pub async fn cancel(&self, run: &RunId) -> Result<(), GuestError> {
        check_run(run)?;
        let path = format!("/runs/{}", encode(&run.0, Slashes::Encoded));
        let ask = Ask::new("a cancel", Method::DELETE, target(&path));
        self.note(ask.done(&self.shared.runs).await)
    }

    /// What may have changed files, as far as this server knows.
    #[must_use]
    pub fn stirrings(&self) -> watch::Receiver<Stirrings> {
        self.shared.stirrings.subscribe()
    }

    fn stir(&self, how: impl FnOnce(&mut Stirrings)) {
        self.shared.stirrings.send_modify(how);
    }

    /// Opens a byte stream to a TCP port inside.
    ///
    /// # Errors
    /// [`GuestError`]; [`GuestError::Refused`] where nothing listens, and with [`RefusalKind::QueueFull`] where too
    /// many are open already.
    pub async fn tunnel(&self, port: u16) -> Result<Tunnel, GuestError> {
        let permit = Arc::clone(&self.shared.tunnels).try_acquire_owned();
        let permit = permit.map_err(|_| {
            refused(
                RefusalKind::QueueFull,
                format!("{TUNNELS} connections into this sandbox are open already, which is the limit"),
            )
        })?;
        let target = format!("127.0.0.1:{port}");
        let open = async {
            let wire = self.shared.bulk.wire().await?;
            let empty: Outgoing = Either::Left(Full::default());
            let response = send(&wire, request(Method::CONNECT, &target, HeaderMap::new(), empty)?).await?;
            hyper::upgrade::on(response)
                .await
                .map(|upgraded| Tunnel::new(upgraded, permit))
                .map_err(|error| GuestError::Lost(Lost::broke(error)))
        };
        self.note(within("a tunnel", CALL, open).await)
    }

    fn runs_link(&self) -> &Link {
        &self.shared.runs
    }

    /// Bounds an answer.
    fn heed<T: Bounded>(&self, answer: Result<T, GuestError>) -> Result<T, GuestError> {
        self.note(answer.and_then(Bounded::bounded))
    }

    /// Remembers that the agent is ending, so that nobody builds on its open channel any more.
    fn note<T>(&self, answer: Result<T, GuestError>) -> Result<T, GuestError> {
        if let Err(GuestError::Ended(_)) = &answer {
            self.shared.ended.store(true, Ordering::Relaxed);
        }
        answer
    }
}

/// Counts what may have changed a sandbox's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stirrings {
    /// Uploads, deletions, and runs that say that they have.
    pub changes: u64,
    /// Runs that name no file that they changed. Agents follow so many files only.
    pub runs: u64,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest")
            .field("id", &self.shared.id)
            .field("open", &self.is_open())
            .finish_non_exhaustive()
    }
}

fn check_run(run: &RunId) -> Result<(), GuestError> {
    if run.is_valid() {
        return Ok(());
    }
    Err(refused(
        RefusalKind::BadRequest,
        format!(
            "a run's id is 1 to {} letters, digits, - and _",
            limits::RUN_ID_BYTES
        ),
    ))
}
