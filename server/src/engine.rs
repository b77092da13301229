//! The seam to whatever creates, finds, adopts and destroys sandboxes.

pub mod docker;
mod injection;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use greenroom_protocol::LastWords;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    conversation::{PoolName, SessionName},
    sandbox::{Dependencies, Fate, Program, SandboxId, SandboxSpec, Stay},
};

/// The byte stream to an agent.
pub type Channel = Box<dyn ChannelIo>;

/// What a channel must be.
pub trait ChannelIo: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin + 'static> ChannelIo for T {}

/// Creates, finds, adopts and destroys sandboxes. The engine's names are the truth about which sandbox
/// belongs to which session: nothing above this seam keeps a record of its own.
///
/// Every method bounds its own time. Unless it says otherwise, a call that is dropped may or may not have
/// taken effect: [`find`](Self::find) and [`list`](Self::list) tell, [`destroy`](Self::destroy) undoes.
#[async_trait]
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// Makes an image ready for sandboxes: the agent and the work directory are put into it, its volumes
    /// and health check are seen to. Answers the name to create from. Idempotent, and cheap the second time.
    async fn prepare(&self, image: &str) -> Result<String, EngineError>;

    /// Makes an image with packages installed on top of another, by its own installers, in a container of the runtime
    /// that the pool's sandboxes have and with a network. Answers its name, which says what is in it: it is to be
    /// prepared like any other. Idempotent, cheap the second time, and never a half of one: what broke off has no name.
    /// Dropped, it ends what it started.
    ///
    /// # Errors
    /// [`EngineError::Install`] has the installer's own words.
    async fn derive(&self, order: &Derivation) -> Result<String, EngineError>;

    /// Images that this deployment's secret derived and nobody needs: none of these wishes comes to them, no container
    /// stands on them, and they are not young. Those that stand on others come first.
    async fn unused_images(&self, wanted: &[Derivation]) -> Result<Vec<String>, EngineError>;

    /// Removes an image that was derived. A missing one is a success.
    async fn remove_image(&self, name: &str) -> Result<(), EngineError>;

    /// What a prepared image says of the program that it is for.
    async fn program(&self, prepared: &str) -> Result<Program, EngineError>;

    /// What an ended sandbox has left behind of its image's own program; `None` where it had none, or where the engine
    /// keeps nothing. It comes from inside.
    async fn last_words(&self, id: &SandboxId) -> Result<Option<LastWords>, EngineError>;

    /// Creates a sandbox under its id, not started. [`EngineError::NoImage`] means that the prepared image has
    /// been removed meanwhile: prepare it again.
    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<(), EngineError>;

    /// Starts it. Starting a running one is a success.
    async fn start(&self, id: &SandboxId) -> Result<(), EngineError>;

    /// Opens a channel to its agent. Returns once bytes can be written; that a relay comes up in it, which
    /// says so with [`RELAY_PREFACE`](greenroom_protocol::RELAY_PREFACE), and that an agent answers is for
    /// the caller to find out. Dropping the channel closes it.
    ///
    /// # Errors
    /// [`EngineError::NoSandbox`] where there is none or it does not run: a caller tries no further.
    async fn open(&self, id: &SandboxId) -> Result<Channel, EngineError>;

    /// Gives a warm sandbox a session's name: atomic against every other adoption of that name. Only the
    /// process that created a sandbox may call this, and once: an engine may let the last of two renames win.
    async fn adopt(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError>;

    /// Where a session's sandbox is, and the newest ended one whose news has not been told.
    async fn find(&self, name: &SessionName) -> Result<Found, EngineError>;

    /// Running sandboxes of this deployment that somebody has renamed, as [`Found::strays`].
    async fn strays(&self) -> Result<Vec<SandboxId>, EngineError>;

    /// Gives a stray the name back that it was adopted by. Taken where something else has it by now; where the stray
    /// itself has it, somebody else was quicker, and that is a success.
    async fn put_back(&self, id: &SandboxId, name: &SessionName) -> Result<Adoption, EngineError>;

    /// Renames an ended sandbox out of the session's way, to `<name>.<id>`. Already so named, or gone, is a success.
    async fn set_aside(&self, id: &SandboxId, name: &SessionName) -> Result<(), EngineError>;

    /// Ends a sandbox that runs at once, as SIGKILL would, and leaves it to tell of its loss. One that does not
    /// run, or is missing, is a success.
    async fn end(&self, id: &SandboxId) -> Result<(), EngineError>;

    /// Removes a sandbox in whatever state, and all that belongs to it. A missing one is a success.
    async fn destroy(&self, id: &SandboxId) -> Result<(), EngineError>;

    /// Every sandbox of this deployment.
    async fn list(&self) -> Result<Vec<Listed>, EngineError>;

    /// Bytes that sandboxes may still take from the host before it would miss them; `None` where that is not known.
    async fn spare_memory(&self) -> Result<Option<u64>, EngineError>;

    /// What a running sandbox uses.
    async fn usage(&self, id: &SandboxId) -> Result<Usage, EngineError>;

    /// Clears away what no sandbox owns any more, such as processes that an engine left behind when it
    /// forgot their sandbox, and answers how many such leftovers it ended. One that is seen for the first
    /// time is only noted. Call it every half minute or so.
    async fn sweep(&self) -> Result<usize, EngineError>;

    /// Sees to it that sandboxes which use the processors all the time are not felt by the others, where that is this
    /// process's to do. Call it every second or so.
    async fn balance(&self) {}
}

/// An image to be made from another one: the order for [`Engine::derive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derivation {
    /// The pool that it is for, as logs name it.
    pub pool: PoolName,
    /// The image as configured.
    pub image: String,
    /// What is installed on it.
    pub dependencies: Dependencies,
    /// The runtime that installers run in.
    pub runtime: String,
    /// Their processors, in thousandths.
    pub cpu_millis: u32,
    /// Their memory, in bytes.
    pub memory_bytes: u64,
    /// How long they may take.
    pub deadline: Duration,
}

/// The answer to [`Engine::adopt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// The name is this sandbox's now.
    Adopted,
    /// Another has it; this one keeps its old name and may serve somebody else.
    Taken,
}

/// The answer to [`Engine::find`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What stands under the name itself.
    pub place: Place,
    /// The newest ended sandbox that was set aside.
    pub tombstone: Option<Tombstone>,
    /// Running sandboxes of the deployment under names that Greenroom gives to none: somebody has renamed them. Whose
    /// they are they know themselves.
    pub strays: Vec<SandboxId>,
}

impl Found {
    /// Ended sandboxes of the session, the one that still has its name first.
    pub fn tombstones(self) -> impl Iterator<Item = Tombstone> {
        let named = match self.place {
            Place::Exited(tombstone) => Some(tombstone),
            Place::Running(_) | Place::Ending(_) | Place::Absent => None,
        };
        named.into_iter().chain(self.tombstone)
    }
}

/// What stands under a session's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing.
    Absent,
    /// A running sandbox.
    Running(SandboxId),
    /// One that is on its way out.
    Ending(SandboxId),
    /// One that has ended.
    Exited(Tombstone),
}

/// An ended sandbox: it still tells why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// Which.
    pub id: SandboxId,
    /// How it ended.
    pub fate: Fate,
}

/// A sandbox as [`Engine::list`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub id: SandboxId,
    /// The pool it was created for.
    pub pool: PoolName,
    /// The server process that created it, as it called itself.
    pub creator: String,
    /// What it is doing.
    pub state: ListedState,
    /// Whether it has a session's name.
    pub adopted: bool,
    /// When it was created.
    pub created_at: SystemTime,
    /// When it was started, if it was.
    pub started_at: Option<SystemTime>,
    /// How long it may stay created, warm and running.
    pub stay: Stay,
}

/// What a sandbox uses of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since it was started.
    pub cpu: Duration,
    /// Memory, but for caches that the host would drop.
    pub memory_bytes: u64,
}

/// What a listed sandbox is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListedState {
    /// Created and not started.
    Created,
    /// Running, or paused.
    Running,
    /// On its way out.
    Ending,
    /// Ended.
    Exited(Fate),
}

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It cannot be reached, or does not answer.
    #[error("the engine cannot be reached: {0}")]
    Unreachable(String),
    /// It took longer than it may.
    #[error("the engine did not {what} within {seconds} s")]
    Timeout {
        /// The call.
        what: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// There is no such image, and it cannot be had.
    #[error("image {image:?} is not there: {reason}")]
    NoImage {
        /// The image as configured.
        image: String,
        /// What the engine said.
        reason: String,
    },
    /// The image cannot be used.
    #[error("image {image:?} cannot be used: {reason}")]
    BadImage {
        /// The image as configured.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Packages could not be installed on an image.
    #[error("{command} on image {image:?} {outcome}{}", said(.words))]
    Install {
        /// The image as configured.
        image: String,
        /// What was run.
        command: String,
        /// How it ended.
        outcome: String,
        /// The last lines that it wrote, bounded; an installer's, so anybody's.
        words: Vec<String>,
    },
    /// The agent's binary is missing or cannot be put into an image.
    #[error("{0}")]
    BadAgent(String),
    /// The engine has no such runtime.
    #[error("the engine has no runtime {0:?}")]
    NoRuntime(String),
    /// There is no such sandbox, or it does not run.
    #[error("sandbox {0} is not there or does not run")]
    NoSandbox(SandboxId),
    /// It refused for another reason.
    #[error("the engine refused to {what}: {reason}")]
    Refused {
        /// The call.
        what: &'static str,
        /// What the engine said, bounded.
        reason: String,
    },
}

fn said(words: &[String]) -> String {
    if words.is_empty() {
        String::new()
    } else {
        format!(": {}", words.join(" | "))
    }
}
