//! The pool: keeps some sandboxes of one kind warm, and hands each to exactly one session.
//!
//! ```text
//!  claim() ──requests──▶ ┌──────── keeper task ────────┐ ──spawns──▶ boot · destroy · look      (tasks with
//!     ▲                  │ ledger   Booting ─▶ Warm    │ ◀──join─── what came of it            deadlines)
//!     └──── Offer ────── │             │  ▲     ▼ ▲    │
//!  Claim ───returns────▶ │             │  └─reopen│    │ ──watch──▶ census, readiness
//!   adopt: one task      │             ▼          ▼    │
//!                        │ gone ◀─ Condemned ◀─ Claimed ─▶ Adopted │
//!                        └─────────────────────────────┘
//! ```
//! # Who holds what
//! One task, the keeper, owns the ledger and decides; everything that talks to the engine is a task of its
//! own whose result comes back to the keeper. A sandbox is exactly one [`Custody`](claim::Custody), made
//! *before* the engine is asked to create anything and handed on with it: boot → ledger → offer → claim.
//! Dropping it anywhere, a panic included, condemns the sandbox. The way back is reserved when it is made,
//! so a drop can always be told. From the moment a rename is *sent* nothing here destroys that sandbox: it
//! may be a session's.
//!
//! # How a sandbox becomes warm
//! image prepared → list (room?) → create → list (still room, mine included?) → start → channel → hello with
//! kernels and preloads done → generation and isolation proven. One deadline stands over it. Whatever goes wrong, the
//! sandbox is condemned and stays in the ledger until the engine is known to have nothing of it.
//!
//! # Several servers on one engine
//! They share `max` by what the engine lists, and nothing else. A boot for the reserve leaves one slot free,
//! a boot for a waiting claim may take the last; so only claims fill the pool, and a keeper that sees it
//! full lets go of one warm sandbox at a time.

mod census;
mod ledger;
mod policy;
mod sentence;

use std::time::Duration;

pub use self::census::{BootFault, Census, Counts, Hit, PoolEvent, PoolObserver, Readiness, Unready, Why};
use crate::{conversation::PoolName, sandbox::SandboxSpec};

/// A kind of sandbox and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// What the engine is asked for. Its `image` is the one configured: the pool has it prepared.
    pub sandbox: SandboxSpec,
    /// Sandboxes kept warm. Default 2.
    pub warm: usize,
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
    /// What a sandbox must prove before it is warm. Default [`Isolation::Proven`].
    pub isolation: Isolation,
}

impl PoolSpec {
    /// The defaults around one kind of sandbox.
    #[must_use]
    pub fn new(sandbox: SandboxSpec) -> Self {
        Self {
            sandbox,
            warm: 2,
            max: 32,
            parallel_boots: std::thread::available_parallelism().map_or(2, usize::from),
            boot_deadline: Duration::from_secs(20),
            claim_wait: Duration::from_secs(10),
            claims_waiting: 256,
            warm_age: Duration::from_secs(60 * 60),
            idle: Duration::from_secs(2 * 60 * 60),
            lifetime: Duration::from_secs(24 * 60 * 60),
            isolation: Isolation::Proven,
        }
    }

    /// The pool's name.
    #[must_use]
    pub const fn name(&self) -> &PoolName {
        &self.sandbox.pool
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
