//! One boot: from an id to a sandbox that is ready, or to what is known of its failure.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use greenroom_protocol::{Begin, Hello};
use tokio::{
    select,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Isolation, PoolSpec, census::BootFault, claim::Custody, ledger::Boot, room::Room, seed::SeedError,
    sentence::Created,
};
use crate::{
    engine::{Engine, EngineError},
    guest::{Guest, GuestError, Lost, Upload},
    sandbox::{NoProgram, Program, SandboxSpec},
};

/// A warm sandbox is given this long to answer over a new channel: an engine that restarts takes seconds,
/// and after 30 s without a channel an unbound sandbox ends itself.
const REOPEN: Duration = Duration::from_secs(25);
/// Between tries to reopen a channel.
const REOPEN_AGAIN: Duration = Duration::from_millis(500);

/// What one more sandbox needs of its host: measured, 95 MiB when it is warm, and its conversation is to do something.
const NEEDS: u64 = 256 << 20;

/// A sandbox that is warm: whoever has this has the sandbox.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) custody: Custody,
    pub(super) guest: Guest,
}

/// A boot that did not get there.
pub(super) struct Failed {
    pub(super) error: BootError,
    pub(super) custody: Custody,
    /// What is known of the create.
    pub(super) created: Created,
    /// The create itself, where it is still under way: to be awaited, so that its outcome becomes known.
    pub(super) creating: Option<Creating>,
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed")
            .field("error", &self.error)
            .field("created", &self.created)
            .finish_non_exhaustive()
    }
}

/// A create that is under way.
pub(super) struct Creating {
    call: BoxFuture<'static, Result<(), EngineError>>,
    /// If it takes effect without saying so, that is seen by then: from then on the sweep of any server
    /// would take it as well.
    shows_by: Instant,
}

impl Creating {
    /// What became of it.
    pub(super) async fn settle(mut self) -> Created {
        let outcome = self.outcome().await;
        self.known(&outcome)
    }

    async fn outcome(&mut self) -> Result<(), EngineError> {
        timeout_at(self.shows_by, &mut self.call)
            .await
            .unwrap_or_else(|_| Err(EngineError::Unreachable("a create went unanswered".to_owned())))
    }

    const fn known(&self, outcome: &Result<(), EngineError>) -> Created {
        match outcome {
            Ok(()) => Created::Done,
            Err(error) if is_unreachable(error) => Created::Lost { by: self.shows_by },
            Err(_) => Created::Refused,
        }
    }
}

/// Why a boot failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum BootError {
    #[error("{0}")]
    Engine(#[from] EngineError),
    #[error("there is no room: {0}")]
    NoRoom(Room),
    #[error("the host has {} MiB left for sandboxes, and one needs {} MiB to begin with", spare >> 20, NEEDS >> 20)]
    NoMemory { spare: u64 },
    #[error("its image cannot be used: {0}")]
    NoProgram(#[from] NoProgram),
    #[error("{0}")]
    Guest(#[from] GuestError),
    #[error("its agent could not get ready: {0}")]
    Agent(String),
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("it does not prove that it runs under gVisor: its kernel says {0:?}")]
    NotIsolated(String),
    #[error("it was not ready within {seconds} s: {step} took too long")]
    Deadline { step: &'static str, seconds: u64 },
    #[error("the pool is closing")]
    Cancelled,
    #[error("its boot broke off")]
    Broken,
    #[error("no random bytes for an id, or too many sandboxes are out")]
    NoCustody,
}

impl BootError {
    pub(super) const fn fault(&self) -> BootFault {
        match self {
            Self::Engine(_) => BootFault::Engine,
            Self::NoRoom(_) => BootFault::NoRoom,
            Self::NoMemory { .. } => BootFault::NoMemory,
            Self::NoProgram(_) | Self::Guest(_) | Self::Agent(_) | Self::Seed(_) => BootFault::Agent,
            Self::NotIsolated(_) => BootFault::Isolation,
            Self::Deadline { .. } => BootFault::Deadline,
            Self::Cancelled | Self::Broken | Self::NoCustody => BootFault::Cancelled,
        }
    }

    /// Whether the engine itself does not answer.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Engine(error) => is_unreachable(error),
            Self::Guest(GuestError::Lost(Lost::Engine(error))) => is_unreachable(error),
            Self::NoRoom(_)
            | Self::NoMemory { .. }
            | Self::NoProgram(_)
            | Self::Guest(_)
            | Self::Agent(_)
            | Self::Seed(_)
            | Self::NotIsolated(_)
            | Self::Deadline { .. }
            | Self::Cancelled
            | Self::Broken
            | Self::NoCustody => false,
        }
    }
}

pub(super) const fn is_unreachable(error: &EngineError) -> bool {
    matches!(error, EngineError::Unreachable(_) | EngineError::Timeout { .. })
}

/// What a boot needs.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) custody: Custody,
    pub(super) boot: Boot,
    /// As the engine prepared it.
    pub(super) image: String,
    pub(super) spec: Arc<PoolSpec>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) stop: CancellationToken,
}

/// How far a boot has come; outlives the climb when that is broken off.
struct Progress {
    step: &'static str,
    created: Created,
    creating: Option<Creating>,
}

impl Order {
    /// Boots one sandbox within the spec's deadline. However it ends, custody comes back.
    pub(super) async fn boot(self) -> Result<Ready, Box<Failed>> {
        let deadline = Instant::now() + self.spec.boot_deadline;
        let mut progress = Progress {
            step: "asking the engine for room",
            created: Created::Never,
            creating: None,
        };
        let climbed = select! {
            () = self.stop.cancelled() => Err(BootError::Cancelled),
            climbed = timeout_at(deadline, self.climb(deadline, &mut progress)) => climbed.unwrap_or_else(|_| {
                Err(BootError::Deadline {
                    step: progress.step,
                    seconds: self.spec.boot_deadline.as_secs(),
                })
            }),
        };
        let custody = self.custody;
        match climbed {
            Ok(guest) => Ok(Ready { custody, guest }),
            Err(error) => Err(Box::new(Failed {
                error,
                custody,
                created: progress.created,
                creating: progress.creating,
            })),
        }
    }

    async fn climb(&self, deadline: Instant, progress: &mut Progress) -> Result<Guest, BootError> {
        let id = self.custody.id();
        // A look before the create, so that a full pool costs a list and no sandbox …
        self.check_room().await?;
        self.check_memory().await?;
        progress.step = "looking for its image's program";
        let program = self.program().await?;
        progress.step = "creating it";
        self.create(&program, progress).await?;
        // Race: two servers may both have seen the last slot free. Both have created by now, so whoever lists
        // last sees the other, and neither starts beyond the limit.
        progress.step = "asking the engine for room";
        self.check_room().await?;
        progress.step = "starting it";
        self.engine.start(id).await?;
        progress.step = "reaching its agent";
        let guest = Guest::connect(Arc::clone(&self.engine), id.clone()).await?;
        if self.spec.start.begin() != Begin::AtOnce {
            guest.boot(&self.spec.start.request(&program)?).await?;
        }
        progress.step = match self.spec.start.app {
            Some(_) => "starting its program and waiting for its startup probe",
            None => "starting its kernels",
        };
        let hello = ready(&guest, deadline).await?;
        prove_isolation(&hello, self.spec.isolation)?;
        if let Some(seed) = &self.spec.seed {
            progress.step = "filling its work directory";
            seed.check().await?;
            guest.unpack(Upload::stream(seed.archive())).await?;
        }
        Ok(guest)
    }

    /// What the image says of its own program, where that is to run.
    async fn program(&self) -> Result<Program, BootError> {
        match self.spec.start.app {
            Some(_) => Ok(self.engine.program(&self.image).await?),
            None => Ok(Program::default()),
        }
    }

    /// Runs the create apart from the climb, so that one which outlasts the deadline can still be awaited.
    async fn create(&self, program: &Program, progress: &mut Progress) -> Result<(), BootError> {
        let (engine, id) = (Arc::clone(&self.engine), self.custody.id().clone());
        let mut spec = SandboxSpec {
            image: self.image.clone(),
            stay: self.spec.stay(),
            ..self.spec.sandbox.clone()
        };
        if let Some(app) = &self.spec.start.app {
            spec.agent.user = Some(app.user(program));
        }
        progress.created = Created::Pending;
        let creating = progress.creating.insert(Creating {
            call: async move { engine.create(&id, &spec).await }.boxed(),
            shows_by: Instant::now() + 2 * self.spec.boot_deadline,
        });
        let outcome = creating.outcome().await;
        progress.created = creating.known(&outcome);
        progress.creating = None;
        Ok(outcome?)
    }

    /// Sandboxes may use less than their limit, so what counts is what the host has, not what was promised.
    async fn check_memory(&self) -> Result<(), BootError> {
        match self.engine.spare_memory().await? {
            Some(spare) if spare < NEEDS => Err(BootError::NoMemory { spare }),
            Some(_) | None => Ok(()),
        }
    }

    async fn check_room(&self) -> Result<(), BootError> {
        let listed = self.engine.list().await?;
        let room = Room::of(&listed, self.spec.name(), Some(self.custody.id()));
        if room.admits(self.boot, self.spec.max) {
            Ok(())
        } else {
            Err(BootError::NoRoom(room))
        }
    }
}

/// Waits until every kernel answers and the preloads are done.
async fn ready(guest: &Guest, deadline: Instant) -> Result<Hello, BootError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let hello = guest.wait_ready(left.max(Duration::from_secs(1))).await?;
        if let Some(reason) = hello.failed {
            return Err(BootError::Agent(reason));
        }
        if hello.ready {
            return Ok(hello);
        }
    }
}

fn prove_isolation(hello: &Hello, isolation: Isolation) -> Result<(), BootError> {
    match isolation {
        Isolation::Proven if !hello.platform.gvisor => {
            Err(BootError::NotIsolated(hello.platform.kernel.clone()))
        }
        Isolation::Proven | Isolation::Waived => Ok(()),
    }
}

/// Opens a warm sandbox's channel again: a restarted engine closes them all and keeps the sandboxes.
pub(super) async fn reopen(ready: Ready, stop: CancellationToken) -> Result<Ready, Box<Failed>> {
    let deadline = Instant::now() + REOPEN;
    let reopened = select! {
        () = stop.cancelled() => Err(BootError::Cancelled),
        reopened = timeout_at(deadline, answers(&ready.guest)) => reopened.unwrap_or(Err(BootError::Deadline {
            step: "opening its channel again",
            seconds: REOPEN.as_secs(),
        })),
    };
    match reopened {
        Ok(()) => Ok(ready),
        Err(error) => Err(Box::new(Failed {
            error,
            custody: ready.custody,
            created: Created::Done,
            creating: None,
        })),
    }
}

async fn answers(guest: &Guest) -> Result<(), BootError> {
    loop {
        match guest.hello().await {
            Ok(hello) => {
                return match hello.failed {
                    None => Ok(()),
                    Some(reason) => Err(BootError::Agent(reason)),
                };
            }
            Err(GuestError::Lost(Lost::Engine(error))) if matches!(*error, EngineError::NoSandbox(_)) => {
                return Err(BootError::Guest(GuestError::Lost(Lost::Engine(error))));
            }
            Err(error @ (GuestError::Ended(_) | GuestError::Protocol(_) | GuestError::Generation { .. })) => {
                return Err(error.into());
            }
            Err(GuestError::Lost(_) | GuestError::Refused(_) | GuestError::Timeout { .. }) => {
                sleep(REOPEN_AGAIN).await;
            }
        }
    }
}
