//! Which runs are still known: all that are not finished, and the latest finished ones within bounds.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use greenroom_protocol::{
    RunId,
    limits::{KEPT_BYTES, KEPT_RUNS},
};

use super::Run;

/// Ids of forgotten runs that are remembered, so that a late retry does not run its code a second time.
const FORGOTTEN: usize = 1024;

/// The runs of a sandbox by id.
#[derive(Debug, Default)]
pub(super) struct Known {
    runs: HashMap<RunId, Arc<Run>>,
    /// In the order in which they were accepted.
    order: Vec<RunId>,
    /// Oldest first, each with its bytes.
    finished: VecDeque<(RunId, usize)>,
    finished_bytes: usize,
    forgotten: VecDeque<RunId>,
}

/// What a run's id stands for.
#[derive(Debug)]
pub(super) enum Lookup {
    /// Nothing yet.
    Unknown,
    /// This run.
    Known(Arc<Run>),
    /// One that finished and is no longer kept.
    Forgotten,
}

impl Known {
    pub(super) fn look(&self, id: &RunId) -> Lookup {
        match self.runs.get(id) {
            Some(run) => Lookup::Known(Arc::clone(run)),
            None if self.forgotten.contains(id) => Lookup::Forgotten,
            None => Lookup::Unknown,
        }
    }

    pub(super) fn insert(&mut self, run: &Arc<Run>) {
        self.runs.insert(run.id.clone(), Arc::clone(run));
        self.order.push(run.id.clone());
    }

    /// Newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.order.iter().rev().filter_map(|id| self.runs.get(id))
    }

    /// A run is over and holds this many bytes: the oldest finished ones go until the rest fits.
    pub(super) fn finished(&mut self, id: &RunId, bytes: usize) {
        self.finished.push_back((id.clone(), bytes));
        self.finished_bytes += bytes;
        while self.finished.len() > KEPT_RUNS || self.finished_bytes > KEPT_BYTES && self.finished.len() > 1 {
            let Some((oldest, bytes)) = self.finished.pop_front() else {
                return;
            };
            self.finished_bytes -= bytes;
            self.runs.remove(&oldest);
            self.order.retain(|id| *id != oldest);
            self.forgotten.push_back(oldest);
            if self.forgotten.len() > FORGOTTEN {
                self.forgotten.pop_front();
            }
        }
    }
}
