//! What others see of a pool: the census, whether a claim would be served, and what happens as it happens.

use std::{fmt, time::Duration};

use tokio::time::Instant;

/// A pool's numbers at one moment. Those of its sandboxes are moved by the ledger's one transition, so that
/// `begun = booting + warm + claimed + condemned + adopted + let_go + gone` in every census.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Where this pool's sandboxes stand.
    pub counts: Counts,
    /// Claims in the queue.
    pub waiting: usize,
    /// Sandboxes of this pool that the engine had when it was last asked, whoever made them; ended ones do
    /// not count.
    pub live: Option<usize>,
    /// The image that sandboxes are made from, once it is prepared.
    pub prepared: Option<String>,
    /// Boots, and preparations of the image, that failed in a row.
    pub failures: u32,
    /// Why the last of them failed. Kept until one succeeds.
    pub last_boot_error: Option<String>,
    /// Until when failures hold the next boot back.
    pub backoff_until: Option<Instant>,
    /// Why the last attempt to destroy something failed. Kept until all condemned ones are gone.
    pub last_destroy_error: Option<String>,
    /// Whether a claim would be granted or booted now.
    pub readiness: Readiness,
}

impl Census {
    pub(super) const fn starting() -> Self {
        Self {
            counts: Counts::ZERO,
            waiting: 0,
            live: None,
            prepared: None,
            failures: 0,
            last_boot_error: None,
            backoff_until: None,
            last_destroy_error: None,
            readiness: Readiness::Unready(Unready::Starting),
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.readiness == Readiness::Unready(Unready::Closing)
    }
}

/// Where a pool's sandboxes stand: four stages, and three ways out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sandboxes that this pool ever set out to create.
    pub begun: u64,
    /// Being created, started or waited for; or warm ones whose channel is being reopened.
    pub booting: usize,
    /// Ready to be claimed.
    pub warm: usize,
    /// In a claimer's hand, not yet a session's.
    pub claimed: usize,
    /// To be destroyed, or destroyed and not yet known to be gone.
    pub condemned: usize,
    /// Became a session's.
    pub adopted: u64,
    /// May or may not have become a session's: left alone, they end themselves.
    pub let_go: u64,
    /// Known to be gone from the engine.
    pub gone: u64,
}

impl Counts {
    pub(super) const ZERO: Self = Self {
        begun: 0,
        booting: 0,
        warm: 0,
        claimed: 0,
        condemned: 0,
        adopted: 0,
        let_go: 0,
        gone: 0,
    };

    /// Sandboxes that this pool still answers for.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.booting + self.warm + self.claimed + self.condemned
    }
}

/// Whether a claim would be granted or booted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It would.
    Ready,
    /// It would not.
    Unready(Unready),
}

/// Why a claim would not be served now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// The engine has not answered for the first time yet.
    #[error("the pool is starting")]
    Starting,
    /// What the pool adds to its image is being installed for the first time.
    #[error("the pool's packages are being installed")]
    Installing,
    /// What the pool adds to its image cannot be installed. Whoever asks may read this, and an installer's words are the
    /// operator's: the log, a reload's answer and `greenroom doctor` have them.
    #[error(
        "the pool's packages could not be installed, {failures} times in a row: the log and `greenroom doctor` say why"
    )]
    NotInstalled {
        /// In a row.
        failures: u32,
    },
    /// The engine cannot be asked.
    #[error("{reason}")]
    Engine {
        /// What it said, or did not.
        reason: String,
    },
    /// Boots fail.
    #[error("the last {failures} boots failed: {reason}")]
    Failing {
        /// In a row.
        failures: u32,
        /// The last one's.
        reason: String,
    },
    /// All of the pool's `max` sandboxes are conversations'.
    #[error("all {max} sandboxes of the pool are in use (limit max = {max})")]
    Full {
        /// The pool's `max`.
        max: usize,
    },
    /// The host has no memory for one more.
    #[error("the host has no memory for one more sandbox (limit memory)")]
    NoMemory,
    /// The pool is being closed.
    #[error("the pool is closing")]
    Closing,
}

/// Why a sandbox was condemned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// Its boot failed.
    BootFailed,
    /// There was no room for it.
    NoRoom,
    /// It died, or its channel broke and could not be opened again.
    Died,
    /// It was warm for too long.
    Aged,
    /// It made room for a conversation.
    Yielded,
    /// More were warm than are kept.
    Surplus,
    /// Whoever had claimed it did not adopt it.
    Dropped,
    /// The pool was closed.
    Closing,
}

impl Why {
    /// Every reason, for a metric's labels.
    pub const ALL: [Self; 8] = [
        Self::BootFailed,
        Self::NoRoom,
        Self::Died,
        Self::Aged,
        Self::Yielded,
        Self::Surplus,
        Self::Dropped,
        Self::Closing,
    ];

    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BootFailed => "boot_failed",
            Self::NoRoom => "no_room",
            Self::Died => "died",
            Self::Aged => "aged",
            Self::Yielded => "yielded",
            Self::Surplus => "surplus",
            Self::Dropped => "dropped",
            Self::Closing => "closing",
        }
    }
}

/// What happens in a pool, as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolEvent {
    /// A sandbox became warm for the first time.
    Booted {
        /// Since its boot began.
        took: Duration,
    },
    /// A boot did not get there.
    BootFailed(BootFault),
    /// A claim was granted.
    Granted {
        /// How.
        hit: Hit,
        /// How long it waited.
        waited: Duration,
    },
    /// A claim was refused, for the reason that its error names.
    Refused {
        /// How long it waited.
        waited: Duration,
    },
    /// A claim was given up by its claimer.
    Abandoned,
    /// A claimed sandbox became a session's.
    Adopted,
    /// Nobody knows whether it did.
    LetGo,
    /// A sandbox was condemned.
    Condemned(Why),
    /// A condemned one is known to be gone.
    Gone,
}

/// How a claim was granted: the pool's hit rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hit {
    /// A warm sandbox was there.
    Warm,
    /// It waited for a boot.
    Booted,
}

/// Where a boot failed, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BootFault {
    /// The engine refused or could not be reached.
    Engine,
    /// There was no room for it.
    NoRoom,
    /// The host had no memory for it.
    NoMemory,
    /// Its deadline passed.
    Deadline,
    /// The agent did not answer as it should, or could not start its kernels.
    Agent,
    /// It did not prove its isolation.
    Isolation,
    /// The pool was closed, or the boot itself broke off.
    Cancelled,
}

impl BootFault {
    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::NoRoom => "no_room",
            Self::NoMemory => "no_memory",
            Self::Deadline => "deadline",
            Self::Agent => "agent",
            Self::Isolation => "isolation",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Hears what happens in a pool; called by its keeper, so it must return at once.
pub trait PoolObserver: fmt::Debug + Send + Sync + 'static {
    /// One event.
    fn observe(&self, event: PoolEvent);
}

/// Nobody listens.
impl PoolObserver for () {
    fn observe(&self, _: PoolEvent) {}
}
