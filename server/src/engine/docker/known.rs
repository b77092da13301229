//! What this process has learned about containers and cannot change: saves asking the engine again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use crate::sandbox::{Fate, SandboxId};

/// A hint for each sandbox that was met. Docker's ids never change and are never used again, a start time
/// and a fate are final: what is known is true, or its sandbox is gone and the engine will say so.
#[derive(Debug, Default)]
pub(super) struct Known {
    sandboxes: Mutex<HashMap<SandboxId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    container: String,
    started_at: Option<SystemTime>,
    fate: Option<Fate>,
}

impl Known {
    /// The container of a sandbox.
    pub(super) fn container(&self, id: &SandboxId) -> Option<String> {
        self.lock().get(id).map(|entry| entry.container.clone())
    }

    /// When it was started.
    pub(super) fn started_at(&self, id: &SandboxId) -> Option<SystemTime> {
        self.lock().get(id)?.started_at
    }

    /// How it ended.
    pub(super) fn fate(&self, id: &SandboxId) -> Option<Fate> {
        self.lock().get(id)?.fate
    }

    /// Notes which container a sandbox is.
    pub(super) fn meet(&self, id: &SandboxId, container: &str) {
        self.lock().entry(id.clone()).or_insert_with(|| Entry {
            container: container.to_owned(),
            started_at: None,
            fate: None,
        });
    }

    /// Notes when one was started, which is how often a running one is looked into.
    pub(super) fn started(&self, id: &SandboxId, at: SystemTime) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.started_at = Some(at);
        }
    }

    /// Notes how one ended.
    pub(super) fn ended(&self, id: &SandboxId, fate: Fate) {
        if let Some(entry) = self.lock().get_mut(id) {
            entry.fate = Some(fate);
        }
    }

    /// Forgets one that is gone.
    pub(super) fn forget(&self, id: &SandboxId) {
        self.lock().remove(id);
    }

    /// Forgets all but these: a list of everything was just read.
    pub(super) fn keep_only(&self, there: &HashSet<&SandboxId>) {
        self.lock().retain(|id, _| there.contains(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Entry>> {
        // Each change is one insertion or assignment, so a panic elsewhere leaves the map whole.
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
