//! Claims that wait, first come first served.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{census::Hit, claim::Request};

/// The queue. A claim leaves it granted, refused, or because its caller went away.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Request>,
    bound: usize,
}

impl Queue {
    pub(super) const fn new(bound: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bound,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// # Errors
    /// The request, where as many wait as may.
    pub(super) fn push(&mut self, request: Request) -> Result<(), Request> {
        if self.waiting.len() >= self.bound {
            return Err(request);
        }
        self.waiting.push_back(request);
        Ok(())
    }

    /// Who has waited longest.
    pub(super) fn pop(&mut self) -> Option<Request> {
        self.waiting.pop_front()
    }

    /// Those who are left were not served from what was warm.
    pub(super) fn keep_waiting(&mut self) {
        for request in &mut self.waiting {
            request.hit = Hit::Booted;
        }
    }

    /// Removes those whose callers went away, and counts them.
    pub(super) fn prune(&mut self) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|request| !request.reply.is_closed());
        before - self.waiting.len()
    }

    /// Removes those whose time is up.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Request> {
        let (expired, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|request| request.deadline <= now);
        self.waiting = waiting;
        expired.into()
    }

    /// Removes all but the first `served`.
    pub(super) fn beyond(&mut self, served: usize) -> Vec<Request> {
        self.waiting.split_off(served.min(self.waiting.len())).into()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|request| request.deadline).min()
    }
}
