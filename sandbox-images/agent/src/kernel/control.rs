//! Stopping what a kernel does, from another task: interrupt and kill.

use std::{
    cmp::Reverse,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::KernelControl;
use crate::{child::Quarters, crowd, descent, processes};

/// A kernel's handle for other tasks, and what it knows of the process behind it.
#[derive(Debug)]
pub(super) struct Control {
    quarters: Arc<Quarters>,
    state: Mutex<State>,
    tags: AtomicU64,
    /// Processes in the background that were ended to make room, until a run has told.
    ended: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Incarnation>,
    phase: Phase,
    /// SIGINT was sent, or is wanted, in the current run.
    interrupted: bool,
    killed: bool,
    /// When the current run began, in the clock ticks of the process table.
    since: u64,
}

/// One life of a kernel's process, and the mark of everything that descends from it.
#[derive(Clone, Debug)]
pub(super) struct Incarnation {
    pub(super) tag: String,
    pub(super) pid: Option<Pid>,
}

/// Where a kernel's process is in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is nothing to interrupt.
    #[default]
    Between,
    /// The code is on its way: an interrupt has to wait for it.
    Sent,
    /// The code runs.
    Running,
}

impl Control {
    pub(super) fn new(quarters: Arc<Quarters>) -> Self {
        Self {
            quarters,
            state: Mutex::default(),
            tags: AtomicU64::new(0),
            ended: AtomicU32::new(0),
        }
    }

    /// The mark of a process that is about to start, random, so that guest code cannot prepare for it.
    pub(super) fn next_tag(&self) -> String {
        let mut random = [0; 8];
        // Without randomness the count alone still tells incarnations apart.
        let _ = getrandom::fill(&mut random);
        let count = self.tags.fetch_add(1, Ordering::Relaxed);
        format!("{count}-{:016x}", u64::from_ne_bytes(random))
    }

    /// A process has started. Answers the one before, if not everything of it is known to be gone.
    pub(super) fn started(&self, process: Incarnation) {
        let mut state = self.lock();
        *state = State {
            process: Some(process),
            ..State::default()
        };
    }

    /// The process was waited for: its pid is nobody's from now on, or somebody else's.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        if let Some(process) = &mut state.process {
            process.pid = None;
        }
        state.phase = Phase::Between;
    }

    /// What may be left of the last process, once.
    pub(super) fn take(&self) -> Option<Incarnation> {
        self.lock().process.take()
    }

    /// The run has got further. Sends the interrupt that was waiting for it.
    pub(super) fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        if phase == Phase::Sent {
            state.interrupted = false;
            // Without a clock everybody is interrupted, as in a terminal.
            state.since = processes::just_now().unwrap_or(0);
        }
        if phase == Phase::Running && state.interrupted {
            state.signal();
        }
    }

    /// Makes room in a process table that is full, for a kernel whose code runs in this process, if not in its own.
    pub(super) async fn make_room(&self, code: Option<i32>) {
        if !crowd::is_full() {
            return;
        }
        let working = {
            let state = self.lock();
            let pid = state.process.as_ref().and_then(|process| process.pid);
            pid.map(|pid| crowd::Working {
                pid: code.unwrap_or(pid.as_raw_nonzero().get()),
                since: state.since,
            })
        };
        let ended = crowd::thin(working).await;
        tracing::warn!(
            ended,
            "the process table was full: what was left in the background is ended"
        );
        self.ended.fetch_add(ended, Ordering::Relaxed);
    }

    /// How many processes were ended to make room since the last call.
    pub(super) fn take_ended(&self) -> u32 {
        self.ended.swap(0, Ordering::Relaxed)
    }

    /// Whether the current or last run was interrupted.
    pub(super) fn is_interrupted(&self) -> bool {
        self.lock().interrupted
    }

    /// Whether the process was told to end, and all that it still says is of no use.
    pub(super) fn is_killed(&self) -> bool {
        self.lock().killed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// To what this run has started of the group: a program that the code waits for stops as well, and one that an
    /// earlier run left in the background goes on.
    ///
    /// Race: bash goes on with its next command if a program dies of a SIGINT that bash has not had itself, or if one of
    /// a pipeline ends by itself before it has had its own, as the reader does when the writer is gone. So all have it
    /// at once, as from a terminal, where nobody is to be left out; and else bash has it first, and readers, which start
    /// after who writes to them, before writers.
    fn signal(&self) {
        let Some(leader) = self.process.as_ref().and_then(|process| process.pid) else {
            return;
        };
        let group = leader.as_raw_nonzero().get();
        let mut others = processes::all();
        others.retain(|process| {
            process.group == group && process.pid != group && process.state == processes::State::Alive
        });
        // Whoever is gone has nothing to be interrupted in.
        if others.iter().all(|process| process.started >= self.since) {
            let _ = kill_process_group(leader, Signal::INT);
            return;
        }
        let _ = kill_process(leader, Signal::INT);
        others.retain(|process| process.started >= self.since);
        others.sort_by_key(|process| Reverse((process.started, process.pid)));
        for pid in others.iter().filter_map(|process| Pid::from_raw(process.pid)) {
            let _ = kill_process(pid, Signal::INT);
        }
    }
}

impl KernelControl for Control {
    fn interrupt(&self) {
        let mut state = self.lock();
        match state.phase {
            Phase::Between => {}
            Phase::Sent => state.interrupted = true,
            Phase::Running => {
                state.interrupted = true;
                state.signal();
            }
        }
    }

    fn kill(&self) {
        let mut state = self.lock();
        state.killed = true;
        let Some(process) = state.process.clone() else {
            return;
        };
        drop(state);
        // The process itself goes with its descent, not before: its children would be orphans that a cleared
        // environment hides.
        let quarters = Arc::clone(&self.quarters);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let root = process.pid.map(|pid| pid.as_raw_nonzero().get());
            drop(runtime.spawn(async move {
                if !descent::end_from(&quarters, &process.tag, root).await {
                    tracing::warn!("something of a kernel that was killed goes on");
                }
            }));
        }
    }
}
