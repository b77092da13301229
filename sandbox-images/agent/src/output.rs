//! What is kept of an output stream: its head, its tail and how much lay between, within fixed memory.

mod capture;
mod overwrite;
mod spill;
mod text;

use std::collections::VecDeque;

pub(crate) use capture::Capture;
pub(crate) use spill::{Spill, errand as spill_errand};
pub(crate) use text::{After, plain};

/// The first and the last bytes of a stream, and the count of all.
#[derive(Debug)]
pub(crate) struct HeadTail {
    head: Vec<u8>,
    head_limit: usize,
    tail: VecDeque<u8>,
    tail_limit: usize,
    total: u64,
}

impl HeadTail {
    pub(crate) fn new(head_limit: usize, tail_limit: usize) -> Self {
        Self {
            head: Vec::new(),
            head_limit,
            tail: VecDeque::new(),
            tail_limit,
            total: 0,
        }
    }

    /// Takes the next bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_limit - self.head.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.tail_limit)..];
        let surplus = (self.tail.len() + rest.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..surplus);
        self.tail.extend(rest);
    }

    /// All bytes that were pushed.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes between head and tail that are gone.
    pub(crate) fn omitted(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }

    /// Bytes that can still come before one is gone.
    pub(crate) fn room(&self) -> usize {
        (self.head_limit - self.head.len()) + (self.tail_limit - self.tail.len())
    }

    /// The head as it is so far.
    pub(crate) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The tail as it is now, in one piece.
    pub(crate) fn tail(&mut self) -> &[u8] {
        self.tail.make_contiguous()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn head_and_tail_are_those_of_the_whole(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..12),
            head in 0usize..30,
            tail in 0usize..30,
        ) {
            let mut kept = HeadTail::new(head, tail);
            let mut whole = Vec::new();
            for chunk in &chunks {
                let fits = chunk.len() <= kept.room();
                let omitted = kept.omitted();
                kept.push(chunk);
                whole.extend_from_slice(chunk);
                prop_assert_eq!(kept.omitted() == omitted, fits || chunk.is_empty());
            }
            let end = whole.len().min(head);
            prop_assert_eq!(kept.head(), &whole[..end]);
            let start = end.max(whole.len().saturating_sub(tail));
            prop_assert_eq!(kept.tail(), &whole[start..]);
            prop_assert_eq!(kept.omitted(), (start - end) as u64);
            prop_assert_eq!(kept.total(), whole.len() as u64);
        }
    }
}
