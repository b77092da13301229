//! The queue before one kernel: who waits, who runs, and what is known of the kernel behind it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use greenroom_protocol::{
    EndReason, KernelState, KernelView, Language, RunError, RunEventKind, RunOutcome, RunStatus,
    limits::QUEUED_RUNS,
};
use tokio::sync::Notify;

use super::{Run, ended, known::Known, untold::Untold};
use crate::{agent::lock, kernel::KernelError};

/// One kernel's queue. The owner task takes from it; calls put in and withdraw.
#[derive(Debug)]
pub(crate) struct Lane {
    language: Language,
    known: Arc<Mutex<Known>>,
    queue: Mutex<Queue>,
    /// A loss of the kernel's that is still to be told.
    pub(super) untold: Untold,
    /// Wakes the owner; keeps a permit.
    work: Notify,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<Arc<Run>>,
    running: Option<Arc<Run>>,
    kernel: Behind,
    ending: Option<EndReason>,
}

/// What is known of the kernel behind the queue.
#[derive(Clone, Debug)]
pub(super) enum Behind {
    Dormant,
    Starting,
    Up(String),
    Absent(String),
}

/// What became of a run that wanted into the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Enqueue {
    Queued,
    Full,
    /// The image has no such program.
    Absent(String),
    Ending(EndReason),
}

impl Lane {
    pub(super) fn new(language: Language, known: Arc<Mutex<Known>>) -> Self {
        Self {
            language,
            known,
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                running: None,
                kernel: Behind::Dormant,
                ending: None,
            }),
            untold: Untold::default(),
            work: Notify::new(),
        }
    }

    pub(super) const fn language(&self) -> Language {
        self.language
    }

    pub(super) fn view(&self) -> KernelView {
        let queue = lock(&self.queue);
        let (state, version) = match &queue.kernel {
            Behind::Dormant => (KernelState::Dormant, None),
            Behind::Starting => (KernelState::Starting, None),
            Behind::Absent(_) => (KernelState::Absent, None),
            Behind::Up(version) if queue.running.is_some() => (KernelState::Busy, Some(version.clone())),
            Behind::Up(version) => (KernelState::Idle, Some(version.clone())),
        };
        KernelView {
            language: self.language,
            state,
            version,
        }
    }

    /// Puts a run at the end of the queue and tells it whom it waits for.
    pub(super) fn enqueue(&self, run: &Arc<Run>) -> Enqueue {
        let mut queue = lock(&self.queue);
        if let Some(reason) = queue.ending {
            return Enqueue::Ending(reason);
        }
        if let Behind::Absent(reason) = &queue.kernel {
            return Enqueue::Absent(reason.clone());
        }
        if queue.waiting.len() >= QUEUED_RUNS {
            return Enqueue::Full;
        }
        if let Some(front) = queue.running.as_ref().or(queue.waiting.front()) {
            run.log.push([queued_behind(front)]);
        }
        queue.waiting.push_back(Arc::clone(run));
        drop(queue);
        self.work.notify_one();
        Enqueue::Queued
    }

    /// Waits until somebody is in the queue. Cancel safe; one waiter only.
    pub(super) async fn work(&self) {
        while lock(&self.queue).waiting.is_empty() {
            self.work.notified().await;
        }
    }

    /// The next run and its code. Those behind it hear whom they wait for now.
    pub(super) fn take(&self) -> Option<(Arc<Run>, String)> {
        let mut queue = lock(&self.queue);
        let run = queue.waiting.pop_front()?;
        let code = run.begin();
        for other in &queue.waiting {
            other.log.push([queued_behind(&run)]);
        }
        queue.running = Some(Arc::clone(&run));
        Some((run, code))
    }

    /// The run that was taken is over.
    pub(super) fn done(&self, run: &Run, outcome: RunOutcome) {
        lock(&self.queue).running = None;
        self.close(run, outcome);
    }

    /// Takes a waiting run out of the queue and closes it as cancelled. False: it does not wait here.
    pub(super) fn withdraw(&self, run: &Arc<Run>) -> bool {
        let mut queue = lock(&self.queue);
        let Some(place) = queue.waiting.iter().position(|other| Arc::ptr_eq(other, run)) else {
            return false;
        };
        queue.waiting.remove(place);
        drop(queue);
        self.close(run, run.never_ran(RunStatus::Cancelled, None));
        true
    }

    /// What the owner knows of its kernel.
    pub(super) fn kernel(&self, kernel: Behind) {
        lock(&self.queue).kernel = kernel;
    }

    /// The kernel does not come up: nobody waits for it any longer. A missing one is never asked again.
    pub(super) fn failed(&self, error: &KernelError) {
        let name = match error {
            KernelError::Absent { .. } => {
                self.kernel(Behind::Absent(error.to_string()));
                "kernel_absent"
            }
            KernelError::Start { .. } => {
                self.kernel(Behind::Dormant);
                "kernel_start"
            }
        };
        let error = RunError {
            name: name.to_owned(),
            message: error.to_string(),
            traceback: String::new(),
        };
        self.turn_away(&error);
    }

    /// The sandbox ends: nobody gets in, and those that wait hear why.
    pub(super) fn end(&self, reason: EndReason) {
        lock(&self.queue).ending = Some(reason);
        self.turn_away(&ended(reason));
    }

    /// The owner is gone, by a failure of ours or with the whole agent: nobody is left waiting for it.
    pub(super) fn abandon(&self) {
        let running = {
            let mut queue = lock(&self.queue);
            queue.kernel = Behind::Absent(format!("the {} kernel's task has failed", self.language));
            queue.running.take()
        };
        let error = RunError {
            name: "agent_failed".to_owned(),
            message: format!("the {} kernel's task has failed", self.language),
            traceback: String::new(),
        };
        if let Some(run) = running {
            self.close(&run, run.never_ran(RunStatus::KernelDied, Some(error.clone())));
        }
        self.turn_away(&error);
    }

    fn turn_away(&self, error: &RunError) {
        let waiting = std::mem::take(&mut lock(&self.queue).waiting);
        for run in waiting {
            self.close(&run, run.never_ran(RunStatus::KernelDied, Some(error.clone())));
        }
    }

    fn close(&self, run: &Run, outcome: RunOutcome) {
        run.finish(outcome);
        lock(&self.known).finished(&run.id, run.log.bytes());
    }
}

fn queued_behind(front: &Run) -> RunEventKind {
    RunEventKind::Queued {
        behind: front.id.clone(),
        running_ms: front.running_ms(),
    }
}
