//! What the keeper makes of news: of its own tasks, and of sandboxes that were out of its hands.

use std::time::Duration;

use tokio::{task::JoinError, time::Instant};

use super::{ChannelWatch, Image, Keeper, Phase, Report, Tried, Warm};
use crate::{
    engine::{EngineError, Listed},
    pool::{
        boot::{BootError, Failed, Ready, reopen},
        census::{PoolEvent, Why},
        claim::{Custody, Returned},
        ledger::{Boot, Shown, Step},
        room::{self, Room},
        sentence::Created,
    },
    sandbox::SandboxId,
};

/// A warm sandbox that grew this old proves its kind to be sound; one that died sooner counts as a failure.
const SOUND_AFTER: Duration = Duration::from_secs(120);

impl Keeper {
    pub(super) fn heed(&mut self, report: Result<Report, JoinError>, now: Instant) {
        match report {
            Ok(Report::Prepared(outcome)) => self.prepared(outcome, now),
            Ok(Report::Booted(id, boot, Ok(ready))) => self.booted(&id, boot, ready, now),
            Ok(Report::Booted(id, boot, Err(failed))) => self.boot_failed(&id, boot, *failed, now),
            Ok(Report::Settled(id, created)) => self.ledger.settled(&id, created, now),
            Ok(Report::ChannelBroke(id)) => self.begin_reopen(id, now),
            Ok(Report::Destroyed(id, Ok(()))) => self.ledger.destroyed(&id, now),
            Ok(Report::Destroyed(id, Err(error))) => {
                tracing::warn!(pool = %self.spec.name(), sandbox = %id, %error, "not destroyed, to be tried again");
                self.last_destroy_error = Some(error.to_string());
                self.ledger.not_destroyed(&id, now, rand::random());
            }
            Ok(Report::Looked {
                asked,
                outcome: Ok(listed),
            }) => self.looked(&listed, asked, now),
            Ok(Report::Looked {
                outcome: Err(error), ..
            }) => {
                self.looks.failed(error.to_string(), now, rand::random());
            }
            // A watch that was ended with its warm sandbox.
            Err(error) if error.is_cancelled() => {}
            Err(error) => self.broke_off(&error, now),
        }
    }

    /// A task panicked. A boot's custody has told already; the rest may safely be done again.
    fn broke_off(&mut self, error: &JoinError, now: Instant) {
        tracing::error!(pool = %self.spec.name(), %error, "a task of the pool broke off");
        self.ledger.destroy_again(now);
        self.looks.failed(error.to_string(), now, rand::random());
        if matches!(self.image, Image::Preparing(_)) {
            self.pace.boot_failed(&BootError::Broken, now, rand::random());
            self.image = Image::Wanted(Tried::InVain);
        }
    }

    fn prepared(&mut self, outcome: Result<String, EngineError>, now: Instant) {
        self.image = match outcome {
            Ok(image) => {
                // A boot's failure is another matter: only a boot that succeeds makes good for it.
                if matches!(self.image, Image::Preparing(Tried::InVain)) {
                    self.pace.booted();
                }
                self.installs.done();
                Image::Prepared(image)
            }
            Err(error) => {
                tracing::warn!(pool = %self.spec.name(), %error, "the image cannot be prepared");
                let installing = self.spec.install.is_some();
                if installing && matches!(error, EngineError::Install { .. } | EngineError::BadImage { .. }) {
                    self.installs.failed(error.to_string(), now, rand::random());
                    self.refuse_uninstalled(now);
                }
                self.pace
                    .boot_failed(&BootError::Engine(error), now, rand::random());
                Image::Wanted(Tried::InVain)
            }
        };
    }

    fn booted(&mut self, id: &SandboxId, boot: Boot, ready: Ready, now: Instant) {
        if boot != Boot::Reopen {
            self.pace.booted();
        }
        if self.phase == Phase::Closing {
            self.condemn(id, Why::Closing, Created::Done, now);
            return ready.custody.discharge();
        }
        tracing::debug!(pool = %self.spec.name(), sandbox = %id, "warm");
        self.warm(ready, Step::Warm, now);
    }

    fn warm(&mut self, ready: Ready, step: fn(Warm) -> Step<Warm>, now: Instant) {
        let (id, guest) = (ready.custody.id().clone(), ready.guest.clone());
        let broke = Report::ChannelBroke(id.clone());
        let watch = self.tasks.spawn(async move {
            guest.closed().await;
            broke
        });
        let warm = Warm {
            ready,
            _watch: ChannelWatch(watch),
        };
        // Refused, it is dropped, which condemns it.
        drop(self.ledger.step(&id, step(warm), now));
    }

    fn boot_failed(&mut self, id: &SandboxId, boot: Boot, failed: Failed, now: Instant) {
        let Failed {
            error,
            custody,
            created,
            creating,
        } = failed;
        custody.discharge();
        let young = self.ledger.age(id, now).is_some_and(|age| age < SOUND_AFTER);
        let why = match (&error, boot) {
            (BootError::Cancelled, _) => Why::Closing,
            (BootError::NoRoom(_) | BootError::NoMemory { .. }, _) => Why::NoRoom,
            (_, Boot::Reopen) => Why::Died,
            (_, Boot::Claim | Boot::Reserve) => Why::BootFailed,
        };
        self.condemn(id, why, created, now);
        if let Some(creating) = creating {
            let id = id.clone();
            self.tasks
                .spawn(async move { Report::Settled(id, creating.settle().await) });
        }
        if boot != Boot::Reopen {
            self.observer.observe(PoolEvent::BootFailed(error.fault()));
        }
        match why {
            Why::NoRoom => self.found_no_room(boot, &error, now),
            Why::Died => self.died(id, young, &error.to_string(), now),
            Why::BootFailed => self.note_failure(id, &error, now),
            Why::Aged | Why::Yielded | Why::Surplus | Why::Dropped | Why::Closing => {}
        }
    }

    fn found_no_room(&mut self, boot: Boot, error: &BootError, now: Instant) {
        let hopeless = if let BootError::NoRoom(room) = error {
            self.pace.no_room(boot, *room, now, rand::random());
            room.spare == 0
        } else {
            tracing::warn!(pool = %self.spec.name(), %error, "no boot");
            self.pace.no_memory(boot, now, rand::random());
            // Memory comes back when a conversation ends, which rarely happens while a call waits.
            true
        };
        if boot == Boot::Claim && hopeless {
            self.refuse_beyond(now);
        }
    }

    fn note_failure(&mut self, id: &SandboxId, error: &BootError, now: Instant) {
        tracing::warn!(pool = %self.spec.name(), sandbox = %id, %error, "a boot failed");
        self.pace.boot_failed(error, now, rand::random());
        if let BootError::Engine(EngineError::NoImage { .. } | EngineError::BadImage { .. }) = error {
            self.image = Image::Wanted(Tried::No);
        }
    }

    /// A warm sandbox died. One that dies young says that the next may as well.
    fn died(&mut self, id: &SandboxId, young: bool, reason: &str, now: Instant) {
        tracing::warn!(pool = %self.spec.name(), sandbox = %id, reason, "a warm sandbox died");
        if young {
            let reason = format!("a warm sandbox died soon after its boot: {reason}");
            self.pace.died_young(reason, now, rand::random());
        }
    }

    fn begin_reopen(&mut self, id: SandboxId, now: Instant) {
        // Race: it may have been claimed or condemned while the news was on its way.
        if let Ok(Some(Warm { ready, .. })) = self.ledger.step(&id, Step::Reopen, now) {
            let stop = self.stop.clone();
            self.tasks
                .spawn(async move { Report::Booted(id, Boot::Reopen, reopen(ready, stop).await) });
        }
    }

    /// The engine was looked at.
    fn looked(&mut self, listed: &[Listed], asked: Instant, now: Instant) {
        let (any, running) = room::ids(listed);
        for id in self.ledger.looked(&Shown { any, running }, asked, now) {
            let young = self.ledger.age(&id, now).is_some_and(|age| age < SOUND_AFTER);
            self.condemn(&id, Why::Died, Created::Done, now);
            self.died(&id, young, "the engine no longer has it running", now);
        }
        if !self.ledger.warm_beyond(SOUND_AFTER, now).is_empty() {
            self.pace.proved_sound();
        }
        let room = Room::of(listed, self.spec.name(), None);
        self.pace.looked(room, now);
        let full = self.looks.told(self.pace.is_full(self.spec.max), now);
        if self.queue.len() > 0 {
            return;
        }
        // Only claims fill a pool, so a conversation somewhere is about to find no room.
        if full && let Some(id) = self.ledger.oldest_warm() {
            self.condemn(&id, Why::Yielded, Created::Done, now);
        }
        self.trim(now);
    }

    /// Claims that were given up leave more warm than are kept. They often come back at once, so this waits
    /// for a look.
    fn trim(&mut self, now: Instant) {
        let counts = self.ledger.counts();
        if counts.booting == 0 {
            for _ in self.target(now)..counts.warm {
                if let Some(id) = self.ledger.oldest_warm() {
                    self.condemn(&id, Why::Surplus, Created::Done, now);
                }
            }
        }
    }

    /// A sandbox that was out of the ledger's hands is accounted for.
    pub(super) fn take_back(&mut self, returned: Returned, now: Instant) {
        match returned {
            // Race: news of a sandbox that was condemned meanwhile changes nothing.
            Returned::Dropped(id) if self.ledger.is_booting(&id) => {
                let by = now + 2 * self.spec.boot_deadline;
                self.condemn(&id, Why::BootFailed, Created::Lost { by }, now);
                self.pace.boot_failed(&BootError::Broken, now, rand::random());
            }
            Returned::Dropped(id) => self.condemn(&id, Why::Dropped, Created::Done, now),
            Returned::Unused(id, guest) => match Custody::of(id.clone(), &self.way_back) {
                Some(custody) if self.phase == Phase::Open => {
                    self.warm(Ready { custody, guest }, Step::PutBack, now);
                }
                custody => {
                    if let Some(custody) = custody {
                        custody.discharge();
                    }
                    self.condemn(&id, Why::Dropped, Created::Done, now);
                }
            },
            Returned::Adopted(id) => {
                drop(self.ledger.step(&id, Step::Adopt, now));
                self.pace.proved_sound();
            }
            Returned::LetGo(id) => drop(self.ledger.step(&id, Step::LetGo, now)),
        }
    }
}
