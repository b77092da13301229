//! The keeper's queue: who is granted what, and who hears no.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Image, Keeper, Phase, Warm};
use crate::pool::{
    census::PoolEvent,
    claim::{Claim, ClaimError, Delay, Offer, Request},
};

/// When trying again is worthwhile at capacity: a conversation rarely ends sooner.
const CAPACITY_RETRY: Duration = Duration::from_secs(30);

impl Keeper {
    pub(super) fn enqueue(&mut self, request: Request, now: Instant) {
        if self.phase == Phase::Closing {
            return self.refuse(request, ClaimError::Closed, now);
        }
        if let Some(error) = self.not_installed() {
            return self.refuse(request, error, now);
        }
        self.appetite.claimed(now);
        if let Err(request) = self.queue.push(request) {
            let error = ClaimError::QueueFull {
                pool: self.spec.name().clone(),
                limit: "claims_waiting",
                bound: self.spec.claims_waiting,
            };
            self.refuse(request, error, now);
        }
    }

    /// Grants what is warm to those whose turn it is, and sees off those whose time is up.
    pub(super) fn tend_queue(&mut self, now: Instant) {
        for _ in 0..self.queue.prune() {
            self.observer.observe(PoolEvent::Abandoned);
        }
        while self.queue.len() > 0
            && let Some((_, warm)) = self.ledger.claim_oldest(now)
        {
            self.grant(warm, now);
        }
        for request in self.queue.expired(now) {
            let error = self.too_late(&request, now);
            self.refuse(request, error, now);
        }
        self.queue.keep_waiting();
    }

    fn grant(&mut self, warm: Warm, now: Instant) {
        let Warm { ready, .. } = warm;
        let offer = Offer::new(Claim::new(ready.guest, ready.custody, Arc::clone(&self.engine)));
        // Without a taker the offer is dropped here, and the sandbox comes back warm.
        let Some(Request {
            reply, asked, hit, ..
        }) = self.queue.pop()
        else {
            return;
        };
        let event = match reply.send(Ok(offer)) {
            Ok(()) => PoolEvent::Granted {
                hit,
                waited: now - asked,
            },
            Err(_) => PoolEvent::Abandoned,
        };
        self.observer.observe(event);
    }

    /// A claim's boot found no room, and no waiting helps: those for whom nothing is booting any more hear it at once.
    pub(super) fn refuse_beyond(&mut self, now: Instant) {
        for request in self.queue.beyond(self.ledger.counts().booting) {
            let error = self.at_capacity();
            self.refuse(request, error, now);
        }
    }

    /// Nothing that is waited for now comes soon enough for anybody.
    pub(super) fn refuse_uninstalled(&mut self, now: Instant) {
        for request in self.queue.beyond(0) {
            if let Some(error) = self.not_installed() {
                self.refuse(request, error, now);
            }
        }
    }

    /// Where packages could not be installed there are no sandboxes, unless some are left of an image that was removed.
    fn not_installed(&self) -> Option<ClaimError> {
        let reason = self
            .installs
            .reason()
            .filter(|_| self.ledger.counts().warm == 0)?;
        Some(ClaimError::NotInstalled {
            pool: self.spec.name().clone(),
            reason: reason.to_owned(),
        })
    }

    pub(super) fn refuse_all(&mut self, now: Instant) {
        for request in self.queue.beyond(0) {
            self.refuse(request, ClaimError::Closed, now);
        }
    }

    fn refuse(&self, request: Request, error: ClaimError, now: Instant) {
        let event = match request.reply.send(Err(error)) {
            Ok(()) => PoolEvent::Refused {
                waited: now - request.asked,
            },
            Err(_) => PoolEvent::Abandoned,
        };
        self.observer.observe(event);
    }

    fn at_capacity(&self) -> ClaimError {
        if self.pace.is_short_of_memory() {
            return ClaimError::Memory {
                pool: self.spec.name().clone(),
                retry_after: CAPACITY_RETRY,
            };
        }
        ClaimError::Capacity {
            pool: self.spec.name().clone(),
            limit: "max",
            max: self.spec.max,
            retry_after: CAPACITY_RETRY,
        }
    }

    fn too_late(&self, request: &Request, now: Instant) -> ClaimError {
        let counts = self.ledger.counts();
        let delay = if let Some(delay) = self.pace.delay() {
            delay
        } else if counts.booting == 0 && (self.pace.is_full(self.spec.max) || self.pace.is_short_of_memory())
        {
            return self.at_capacity();
        } else if matches!(self.image, Image::Preparing(_)) {
            if self.spec.install.is_some() {
                Delay::Installing
            } else {
                Delay::Preparing
            }
        } else {
            Delay::Booting {
                booting: counts.booting,
                waiting: self.queue.len() + 1,
            }
        };
        ClaimError::TimedOut {
            pool: self.spec.name().clone(),
            waited: now - request.asked,
            delay,
        }
    }
}
