//! Watching one session's sandbox: what happens in it, and when it will end, so that its files are archived in time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use greenroom_protocol::{LeaseState, LeaseView, limits::WAIT_SECS};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Shared,
    plan::{Look, Step, Stirred, plan},
    save::Belief,
};
use crate::{
    conversation::{Owner, SessionName},
    guest::{Guest, Stirrings},
};

/// Calls often come one after the other: the first archive after a change waits for so long.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two looks, whatever an agent answers.
const LEAST: Duration = Duration::from_secs(1);
/// The longest pause before a sandbox that cannot be asked is asked again: its engine may be away for long.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A session that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) name: SessionName,
    pub(super) guest: Guest,
    pub(super) owner: Owner,
    /// What had stirred when its last archive was begun; `None` where that has to be made again.
    seen: Mutex<Option<Stirrings>>,
    /// What had stirred when its files were packed last; `None` where nobody here has seen that, or all since then.
    packed: Mutex<Option<Stirrings>>,
}

impl Watched {
    pub(super) fn new(name: SessionName, guest: Guest, owner: Owner) -> Self {
        let watched = Self::stirred_before(name, guest, owner);
        watched.see();
        watched
    }

    /// As it is where something has stirred that this guest did not see.
    pub(super) fn stirred_before(name: SessionName, guest: Guest, owner: Owner) -> Self {
        Self {
            name,
            guest,
            owner,
            seen: Mutex::default(),
            packed: Mutex::default(),
        }
    }

    /// What has stirred until now.
    pub(super) fn stirrings(&self) -> Stirrings {
        *self.guest.stirrings().borrow()
    }

    /// Its files were packed when so much had stirred.
    pub(super) fn packed(&self, then: Stirrings) {
        *self.last_packed() = Some(then);
    }

    /// Something may have changed since its files were packed that nobody here has counted.
    fn distrust(&self) {
        *self.last_packed() = None;
    }

    /// How far an agent can be believed that nothing has changed.
    pub(super) fn belief(&self) -> Belief {
        if *self.last_packed() == Some(self.stirrings()) {
            Belief::Changes
        } else {
            Belief::None
        }
    }

    fn last_packed(&self) -> MutexGuard<'_, Option<Stirrings>> {
        // Nothing panics while it holds the lock.
        self.packed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether files have changed since its last archive was begun.
    pub(super) fn stirred(&self) -> Stirred {
        self.stirred_by(self.stirrings())
    }

    fn stirred_by(&self, now: Stirrings) -> Stirred {
        match *self.seen() {
            Some(seen) if seen == now => Stirred::No,
            Some(seen) if seen.changes == now.changes => Stirred::Perhaps,
            Some(_) | None => Stirred::Yes,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Option<Stirrings>> {
        // Nothing panics while it holds the lock.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was not archived is tried again when it is due again.
    fn unsee(&self) {
        *self.seen() = None;
    }

    fn see(&self) {
        *self.seen() = Some(self.stirrings());
    }
}

/// The task that watches a session.
pub(super) struct Vigil {
    shared: Arc<Shared>,
    session: Arc<Watched>,
    idle: Duration,
    began: Instant,
    /// When it looked last.
    looked: Instant,
    /// When the last archive was begun, and what it took.
    last: Option<(Instant, Duration)>,
}

impl Vigil {
    pub(super) fn new(shared: Arc<Shared>, session: Arc<Watched>, idle: Duration) -> Self {
        Self {
            shared,
            session,
            idle,
            began: Instant::now(),
            looked: Instant::now(),
            last: None,
        }
    }

    /// Watches until the sandbox is gone, or somebody else's, or another vigil has begun.
    pub(super) async fn keep(mut self) {
        let mut pause = LEAST;
        while self.is_the_one() {
            let not_before = Instant::now() + LEAST;
            match self.session.guest.lease_state().await {
                Ok(LeaseState::Bound(view)) if view.key == self.session.name.digest() => {
                    pause = LEAST;
                    self.step(&view).await;
                }
                Ok(_) => return,
                Err(error) if error.is_over() => return,
                // Its engine says whether it is over as soon as it can be asked. Until then the session may be in use,
                // by calls that open nothing anew and so would not have it watched again.
                Err(_) => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            sleep_until(not_before).await;
        }
    }

    fn is_the_one(&self) -> bool {
        let watched = self.shared.watched();
        watched
            .get(self.session.guest.id())
            .is_some_and(|session| Arc::ptr_eq(session, &self.session))
    }

    async fn step(&mut self, view: &LeaseView) {
        let since_last = std::mem::replace(&mut self.looked, Instant::now()).elapsed();
        if Duration::from_millis(view.idle_ms) < since_last {
            // Something has run, perhaps through another server.
            self.session.distrust();
        }
        let look = Look {
            ends_in: Duration::from_millis(view.ends_in_ms),
            idle: self.idle,
            stirred: self.session.stirred(),
            busy: view.idle_ms == 0,
            watched: self.began.elapsed(),
            last: self.last.map(|(begun, took)| (begun.elapsed(), took)),
        };
        match plan(look) {
            Step::Save => self.save(Belief::Changes).await,
            Step::SaveBeforeEnd => self.save(self.session.belief()).await,
            Step::Wait(wait) => {
                self.wait(wait.min(Duration::from_secs(WAIT_SECS)), look.stirred)
                    .await
            }
        }
        if look.busy {
            // Its end may be seen by nobody here.
            self.session.distrust();
        }
    }

    async fn save(&mut self, belief: Belief) {
        let begun = Instant::now();
        self.session.see();
        let Watched { name, guest, .. } = &*self.session;
        let saved = self.shared.save(name, guest, belief).await;
        // Logged and counted where it is done.
        if saved.is_err_and(|error| error.may_pass()) {
            self.session.unsee();
        }
        self.last = Some((begun, begun.elapsed()));
    }

    /// Until the lease changes, the time is over, or more happens than had happened already.
    async fn wait(&self, wait: Duration, stirred: Stirred) {
        let guest = &self.session.guest;
        let mut stirrings = guest.stirrings();
        let stir = async {
            if stirred == Stirred::Yes {
                return std::future::pending().await;
            }
            // The sender is the guest's, which we hold. Its lock is held over the question, so that must not ask for
            // it again.
            let more = |now: &Stirrings| self.session.stirred_by(*now) > stirred;
            drop(stirrings.wait_for(more).await);
            sleep(SETTLE).await;
        };
        tokio::select! {
            () = stir => {}
            // A failure is met again by the next look, which counts them.
            _ = guest.watch_lease(wait) => {}
        }
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        if self.is_the_one() {
            self.shared.watched().remove(self.session.guest.id());
        }
    }
}
