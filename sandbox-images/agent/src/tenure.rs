//! The lease as the agent's parts share it: one lock, its changes, and the activities that hold it open.

use std::sync::{Arc, Mutex};

use greenroom_protocol::{EndReason, Standing};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    agent::lock,
    lease::{Lease, LeaseError},
};

/// A shared lease.
#[derive(Debug)]
pub(crate) struct Tenure {
    lease: Mutex<Lease>,
    /// Follows [`Lease::revision`].
    revision: watch::Sender<u64>,
}

impl Tenure {
    pub(crate) fn new(lease: Lease) -> Arc<Self> {
        Arc::new(Self {
            lease: Mutex::new(lease),
            revision: watch::Sender::new(0),
        })
    }

    /// Looks at the lease or changes it, and wakes whoever waits for a change.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Lease, Instant) -> T) -> T {
        let (answer, revision) = {
            let mut lease = lock(&self.lease);
            let answer = act(&mut lease, Instant::now());
            (answer, lease.revision())
        };
        self.revision.send_if_modified(|seen| {
            // Two calls may get here in the other order: a revision never goes back.
            let newer = *seen < revision;
            *seen = revision.max(*seen);
            newer
        });
        answer
    }

    /// Sees each change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the lease has ended by itself or by somebody. It is this wait that lets time decide, so
    /// one task must sit in it for as long as the agent lives. Cancel safe.
    pub(crate) async fn ended(&self) -> EndReason {
        let mut changes = self.changes();
        loop {
            let (ended, check) = self.with(|lease, now| (lease.settle(now), lease.next_check(now)));
            if let Some(reason) = ended {
                return reason;
            }
            let due = async {
                match check {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                // The sender is in `self`, so this cannot be an error.
                _ = changes.changed() => {}
            }
        }
    }

    /// Holds the lease open for a run, tunnel or transfer.
    pub(crate) fn open(self: &Arc<Self>) -> Result<Activity, LeaseError> {
        let standing = self.with(Lease::opened)?;
        Ok(Activity {
            standing,
            tenure: Arc::clone(self),
        })
    }

    /// The image's own program is gone, and the sandbox with it; an end that was decided already stays as it is.
    pub(crate) fn app_over(&self, reason: EndReason) {
        self.with(|lease, now| lease.app_over(reason, now));
    }

    /// Counts a live channel for as long as the answer lives.
    pub(crate) fn channel(self: &Arc<Self>) -> Channel {
        self.with(Lease::channel_opened);
        Channel(Arc::clone(self))
    }
}

/// The idle clock stands still as long as one of these lives.
#[derive(Debug)]
pub(crate) struct Activity {
    /// What its caller must hear.
    pub(crate) standing: Standing,
    tenure: Arc<Tenure>,
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.tenure.with(Lease::closed);
    }
}

/// A channel that a server holds.
#[derive(Debug)]
pub(crate) struct Channel(Arc<Tenure>);

impl Drop for Channel {
    fn drop(&mut self) {
        self.0.with(Lease::channel_closed);
    }
}
