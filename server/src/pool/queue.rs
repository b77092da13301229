//! Claims that wait. Principals take turns: whoever asks for a hundred sandboxes is in nobody's way who asks for one.
//!
//! Start-time fair queueing: a claim's turn is the one after its principal's last that waits, and no earlier than the
//! turn that is being served. Those of one turn are served in the order in which they came.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{census::Hit, claim::Request};

/// The queue. A claim leaves it granted, refused, or because its caller went away.
#[derive(Debug)]
pub(super) struct Queue {
    /// By their turns.
    waiting: VecDeque<(u64, Request)>,
    bound: usize,
    /// The turn that was served last.
    turn: u64,
}

impl Queue {
    pub(super) const fn new(bound: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            bound,
            turn: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// # Errors
    /// Where as many wait as may, the one whose turn is last: this one, or one of a principal with more of them.
    pub(super) fn push(&mut self, request: Request) -> Result<(), Request> {
        let own = self
            .waiting
            .iter()
            .filter(|(_, other)| other.whose == request.whose);
        let turn = own.map(|(turn, _)| turn + 1).max().unwrap_or(0).max(self.turn);
        let place = self.waiting.partition_point(|(other, _)| *other <= turn);
        self.waiting.insert(place, (turn, request));
        if self.waiting.len() <= self.bound {
            return Ok(());
        }
        self.waiting.pop_back().map_or(Ok(()), |(_, last)| Err(last))
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<Request> {
        let (turn, request) = self.waiting.pop_front()?;
        self.turn = turn;
        Some(request)
    }

    /// Those who are left were not served from what was warm.
    pub(super) fn keep_waiting(&mut self) {
        for (_, request) in &mut self.waiting {
            request.hit = Hit::Booted;
        }
    }

    /// Removes those whose callers went away, and counts them.
    pub(super) fn prune(&mut self) -> usize {
        let before = self.waiting.len();
        self.waiting.retain(|(_, request)| !request.reply.is_closed());
        before - self.waiting.len()
    }

    /// Removes those whose time is up.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Request> {
        let (expired, waiting): (VecDeque<_>, _) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, request)| request.deadline <= now);
        self.waiting = waiting;
        expired.into_iter().map(|(_, request)| request).collect()
    }

    /// Removes all but those who are served next.
    pub(super) fn beyond(&mut self, served: usize) -> Vec<Request> {
        let beyond = self.waiting.split_off(served.min(self.waiting.len()));
        beyond.into_iter().map(|(_, request)| request).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|(_, request)| request.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;
    use crate::conversation::Principal;

    /// A claim of this principal, told by the number of its deadline.
    fn claim(whose: &str, number: u64) -> Request {
        let asked = Instant::now();
        Request {
            reply: oneshot::channel().0,
            whose: Principal::Key(whose.to_owned()),
            asked,
            deadline: asked + std::time::Duration::from_secs(number),
            hit: Hit::Warm,
        }
    }

    fn order(queue: &mut Queue) -> String {
        std::iter::from_fn(|| queue.pop())
            .map(|request| letter(&request))
            .collect()
    }

    fn letter(request: &Request) -> String {
        let Principal::Key(letter) = &request.whose else {
            panic!("{}", request.whose);
        };
        letter.clone()
    }

    fn queue_of(bound: usize, claims: &str) -> (Queue, String) {
        let mut queue = Queue::new(bound);
        let refused = claims
            .chars()
            .filter_map(|whose| queue.push(claim(&whose.to_string(), 0)).err())
            .map(|refused| letter(&refused))
            .collect();
        (queue, refused)
    }

    #[test]
    fn principals_take_turns() {
        for (came, served) in [
            ("", ""),
            ("aaa", "aaa"),
            ("aaab", "abaa"),
            ("aaaabbcb", "abcababa"),
            ("abcabc", "abcabc"),
        ] {
            let (mut queue, refused) = queue_of(9, came);
            assert_eq!((order(&mut queue).as_str(), refused.as_str()), (served, ""));
        }
    }

    #[test]
    fn whoever_was_served_does_not_begin_before_those_who_waited() {
        let (mut queue, _) = queue_of(99, "aaaaa");
        for _ in 0..3 {
            queue.pop();
        }
        // b comes late and has no credit for the time when it asked for nothing.
        for _ in 0..3 {
            assert!(queue.push(claim("b", 0)).is_ok());
        }
        assert_eq!(order(&mut queue), "babab");
    }

    #[test]
    fn a_full_queue_refuses_who_has_most_in_it() {
        let (mut queue, refused) = queue_of(4, "aaaab");
        assert_eq!(refused, "a");
        assert_eq!(order(&mut queue), "abaa");
        let (_, refused) = queue_of(4, "aaabbb");
        assert_eq!(refused, "ab", "each has two");
    }

    #[test]
    fn what_nothing_is_booting_for_is_refused_by_turns_too() {
        let (mut queue, _) = queue_of(9, "aaaab");
        let refused = queue.beyond(2);
        assert!(refused.iter().all(|request| letter(request) == "a"));
        assert_eq!(order(&mut queue), "ab");
    }

    proptest! {
        /// Of two principals that both have claims waiting, neither is served twice more than the other.
        #[test]
        fn nobody_is_served_far_ahead_of_others(came in "[abc]{0,40}") {
            let (mut queue, _) = queue_of(99, &came);
            let mut left: std::collections::BTreeMap<char, usize> = std::collections::BTreeMap::new();
            for whose in came.chars() {
                *left.entry(whose).or_default() += 1;
            }
            let mut served: std::collections::BTreeMap<char, usize> = left.keys().map(|&whose| (whose, 0)).collect();
            for whose in order(&mut queue).chars() {
                *served.get_mut(&whose).unwrap() += 1;
                *left.get_mut(&whose).unwrap() -= 1;
                let waiting = served.iter().filter(|(other, _)| left[other] > 0);
                let least = waiting.map(|(_, count)| *count).min().unwrap_or(usize::MAX);
                prop_assert!(served[&whose] <= least.saturating_add(1), "{came}: {served:?}");
            }
            prop_assert!(left.values().all(|&count| count == 0));
        }
    }
}
