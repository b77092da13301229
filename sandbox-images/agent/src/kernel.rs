//! The seam between runs and language processes: what a kernel must be able to do.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use greenroom_protocol::{AgentConfig, Language, RunError, RunId, Stream, StreamSummary};
use tokio::sync::mpsc;

use crate::child::Quarters;

mod control;
mod dialect;
mod driver;
pub(crate) mod jupyter;
mod python;
mod sh;
mod shell;
mod voice;

/// The kernels of an image, none of them started: Python, bash or else the plain shell, and what Jupyter kernels it
/// has. One whose program is missing says so when it is.
#[must_use]
pub fn all(config: &AgentConfig, quarters: Quarters) -> Vec<Box<dyn Kernel>> {
    let quarters = Arc::new(quarters);
    let mut kernels: Vec<Box<dyn Kernel>> = vec![
        Box::new(python::Python::kernel(config, Arc::clone(&quarters))),
        if quarters.find("bash").is_none() && quarters.find("sh").is_some() {
            Box::new(sh::Sh::kernel(config, Arc::clone(&quarters)))
        } else {
            Box::new(shell::Shell::kernel(config, Arc::clone(&quarters)))
        },
    ];
    let ours = [Language::Python, Language::Bash, Language::Sh];
    for kernel in jupyter::kernels(config, &quarters, &ours) {
        kernels.push(Box::new(kernel));
    }
    kernels
}

/// A language process that the agent drives, one run at a time.
///
/// The task that owns a kernel calls [`start`](Self::start) and [`run`](Self::run); deadlines, the queue
/// and what callers see are the owner's. To stop a run that is under way the owner uses
/// [`control`](Self::control), and `run` then returns by itself.
#[async_trait]
pub trait Kernel: fmt::Debug + Send + 'static {
    /// What it runs.
    fn language(&self) -> Language;

    /// Brings a process up to where it answers, preloads included, and says its version for people. A
    /// live process is left as it is. After an error or a cancelled start the next one begins afresh.
    ///
    /// # Errors
    /// The image cannot run this language, or the process did not come up.
    async fn start(&mut self) -> Result<String, KernelError>;

    /// Runs code in the started process and sends what it shows into `events` as it happens. Returns when
    /// the code is over, was interrupted, or its process is gone; all output that can be waited for within
    /// 50 ms has been sent by then. Not cancel safe: use [`control`](Self::control).
    async fn run(&mut self, run: &KernelRun, events: &mpsc::Sender<KernelEvent>) -> KernelOutcome;

    /// Interrupts or kills, from another task and at any time.
    fn control(&self) -> Arc<dyn KernelControl>;

    /// Waits until a process that is between runs has died, and says how. Pending for ever where none is
    /// started. Cancel safe.
    async fn died(&mut self) -> RunError;
}

/// Stops what a kernel does. Both calls are idempotent and return at once.
pub trait KernelControl: fmt::Debug + Send + Sync {
    /// As Ctrl-C does.
    fn interrupt(&self);
    /// Ends the process and everything that descends from it, and nothing of its neighbours.
    fn kill(&self);
}

/// One run as a kernel sees it.
#[derive(Clone, Debug)]
pub struct KernelRun {
    /// Its name, also that of its spill files.
    pub id: RunId,
    /// The code.
    pub code: String,
}

/// What a run shows while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// Text of an output stream, escaped and within the bounds of head and tail.
    Output {
        /// Which.
        stream: Stream,
        /// What.
        text: String,
        /// Written before this run began.
        late: bool,
        /// Bytes left out directly before this text.
        omitted: u64,
    },
    /// A MIME bundle, images in base64 and within their bounds.
    Display {
        /// MIME type → value.
        data: BTreeMap<String, String>,
        /// Where it was saved, relative to the work directory.
        path: Option<String>,
    },
}

/// How a run ended, as the kernel knows it. Time-outs and cancellations are the owner's to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelOutcome {
    /// In one word.
    pub ending: Ending,
    /// What was raised, or how the process died.
    pub error: Option<RunError>,
    /// The last expression as text/plain.
    pub result: Option<String>,
    /// Exit code of the last command, for shells.
    pub exit_code: Option<i32>,
    /// Descriptor 1 in all.
    pub stdout: StreamSummary,
    /// Descriptor 2 in all.
    pub stderr: StreamSummary,
    /// Images beyond the bound.
    pub images_omitted: u32,
    /// Processes in the background that were ended, since the sandbox had no room for another.
    pub background_ended: u32,
}

/// How the code itself ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It ran to its end.
    Ok,
    /// It raised, was interrupted, or its last command failed; the process lives.
    Error,
    /// The process is gone.
    Died,
}

/// Why a kernel does not come up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The image has no such program.
    #[error("{language} is not in this image: {reason}")]
    Absent {
        /// The language.
        language: Language,
        /// What was looked for.
        reason: String,
    },
    /// It was started and did not get to where it answers.
    #[error("{language} did not start: {reason}")]
    Start {
        /// The language.
        language: Language,
        /// What was seen, bounded.
        reason: String,
    },
}
