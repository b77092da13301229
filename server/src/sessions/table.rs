//! What this server remembers of sessions: open channels, and openings under way.
//!
//! Hints, never the truth: that is the engine's. Locked for look-ups only, never across an await.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::{BoxFuture, Shared};
use greenroom_protocol::{RestartReason, Standing};
use tokio::sync::watch;

use super::OpenError;
use crate::{conversation::SessionName, guest::Guest, sandbox::SandboxId};

/// Sessions that are remembered: several times the sandboxes that one machine carries.
const SESSIONS: usize = 4096;

/// An opening that callers of the same session share.
pub(super) type Flight = Shared<BoxFuture<'static, Result<Bond, OpenError>>>;

/// A session's sandbox as this server holds it.
#[derive(Clone, Debug)]
pub(super) struct Bond {
    pub(super) guest: Guest,
    /// What the last lease said.
    pub(super) standing: Standing,
    /// The idle time that this server asked for last; `None` where it only looked.
    pub(super) idle: Option<Duration>,
}

impl Bond {
    /// Whether a call may use it as it is: its agent can be reached, has nothing to tell, and keeps the time.
    fn serves(&self, idle: Duration) -> bool {
        self.standing == Standing::Existing && self.idle == Some(idle) && self.guest.is_open()
    }
}

/// What is remembered of the sandbox that this server last saw bound to a session.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) id: SandboxId,
    /// How it ended, where that was learned and no tombstone may say it.
    pub(super) fate: Option<RestartReason>,
    pub(super) bond: Option<Bond>,
}

#[derive(Debug)]
struct Entry {
    memory: Memory,
    /// The look-up that used it last.
    used: u64,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<SessionName, Entry>,
    flights: HashMap<SessionName, Flight>,
    tellings: HashMap<SessionName, watch::Receiver<()>>,
    look_ups: u64,
}

/// The memory of one server.
#[derive(Default)]
pub(super) struct Table {
    inner: Mutex<Inner>,
}

impl Table {
    /// The sandbox that a call may use as it is.
    pub(super) fn serving(&self, name: &SessionName, idle: Duration) -> Option<Bond> {
        self.memory(name)?.bond.filter(|bond| bond.serves(idle))
    }

    pub(super) fn memory(&self, name: &SessionName) -> Option<Memory> {
        let mut inner = self.lock();
        inner.look_ups += 1;
        let used = inner.look_ups;
        let entry = inner.entries.get_mut(name)?;
        entry.used = used;
        Some(entry.memory.clone())
    }

    /// The guest of a session, if it is this sandbox's.
    pub(super) fn guest(&self, name: &SessionName, id: &SandboxId) -> Option<Guest> {
        let guest = self.memory(name)?.bond?.guest;
        (guest.id() == id).then_some(guest)
    }

    /// The guest of a sandbox, whosever it is, if its channel is open.
    pub(super) fn guest_of(&self, id: &SandboxId) -> Option<Guest> {
        let inner = self.lock();
        let mut guests = inner.entries.values().filter_map(|entry| {
            let guest = &entry.memory.bond.as_ref()?.guest;
            (guest.id() == id && guest.is_open()).then_some(guest)
        });
        guests.next().cloned()
    }

    /// Any guest with an open channel but that of one sandbox.
    pub(super) fn another(&self, id: &SandboxId) -> Option<Guest> {
        let inner = self.lock();
        let mut guests = inner.entries.values().filter_map(|entry| {
            let guest = &entry.memory.bond.as_ref()?.guest;
            (guest.id() != id && guest.is_open()).then_some(guest)
        });
        guests.next().cloned()
    }

    pub(super) fn remember(&self, name: &SessionName, memory: Memory) {
        let mut inner = self.lock();
        if inner.entries.len() >= SESSIONS && !inner.entries.contains_key(name) {
            inner.make_room();
        }
        inner.look_ups += 1;
        let used = inner.look_ups;
        inner.entries.insert(name.clone(), Entry { memory, used });
    }

    /// The session's news was told.
    pub(super) fn told(&self, name: &SessionName, id: &SandboxId) {
        if let Some(entry) = self.lock().entries.get_mut(name)
            && let Some(bond) = &mut entry.memory.bond
            && bond.guest.id() == id
        {
            bond.standing = Standing::Existing;
        }
    }

    /// An answer with news of the session is on its way. It has arrived, or never will, once the sender is gone.
    pub(super) fn telling(&self, name: &SessionName) -> watch::Sender<()> {
        let (under_way, done) = watch::channel(());
        let mut inner = self.lock();
        inner.tellings.retain(|_, telling| telling.has_changed().is_ok());
        inner.tellings.insert(name.clone(), done);
        under_way
    }

    /// The answer with news of the session that is on its way.
    pub(super) fn told_soon(&self, name: &SessionName) -> Option<watch::Receiver<()>> {
        let telling = self.lock().tellings.get(name).cloned();
        // One that has arrived stays in the table until the next: no call needs a clock for it.
        telling.filter(|telling| telling.has_changed().is_ok())
    }

    /// The opening that is under way, or the one that `start` makes.
    pub(super) fn flight(&self, name: &SessionName, start: impl FnOnce() -> Flight) -> Flight {
        self.lock()
            .flights
            .entry(name.clone())
            .or_insert_with(start)
            .clone()
    }

    /// An opening is over, whatever came of it.
    pub(super) fn landed(&self, name: &SessionName) {
        self.lock().flights.remove(name);
    }

    /// Nothing panics while it holds the lock; if it did, a table of hints is still one.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Forgets an eighth, so that a full table is not searched for every new session: first what is not
    /// open, then what was not used for the longest time.
    fn make_room(&mut self) {
        let mut order: Vec<_> = self
            .entries
            .iter()
            .map(|(name, entry)| {
                let open = entry
                    .memory
                    .bond
                    .as_ref()
                    .is_some_and(|bond| bond.guest.is_open());
                (open, entry.used, name.clone())
            })
            .collect();
        order.sort_unstable();
        for (_, _, name) in order.into_iter().take(SESSIONS / 8) {
            self.entries.remove(&name);
        }
    }
}
