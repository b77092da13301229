//! Requests that go on into a sandbox, to the program of its image: headers by the book, connections kept for a while.
//!
//! ```text
//! http::pools::forward ─▶ headers   what of a request and of an answer passes, purely
//!                       ─▶ wires     HTTP/1.1 over a guest's tunnels, one request at a time on each
//! greenroom forward     ─▶ line      a port of this machine to one inside
//! ```
//! What answers is hostile. It is given an origin of its own by a second listener; on the first one its answers can set
//! nothing for the origin, and their scripts belong to none.

pub(crate) mod headers;
mod line;
pub(crate) mod wires;

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

pub use self::line::{Line, LineError, forward};
use self::wires::Wires;
use crate::{places::Places, sandbox::SandboxId};

/// Ends that were told of while a request was under way: the next request of the same session need not hear of it again.
const HEARD: usize = 1024;

/// What a WebSocket or another upgrade is bounded by, and what every forwarded request takes a place of.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) wires: Wires,
    pub(crate) places: Places,
    heard: Mutex<VecDeque<SandboxId>>,
}

/// Whose origin an answer is served on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Greenroom's own.
    Shared,
    /// One that is for forwarded programs only.
    Own,
}

impl Forward {
    pub(crate) fn new(places: usize) -> Self {
        Self {
            wires: Wires::default(),
            places: Places::new(places),
            heard: Mutex::default(),
        }
    }

    /// Notes that a caller was told of a sandbox's end.
    pub(crate) fn told_of(&self, id: &SandboxId) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() == HEARD {
            heard.pop_front();
        }
        heard.push_back(id.clone());
    }

    pub(crate) fn was_told_of(&self, id: &SandboxId) -> bool {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.contains(id)
    }
}
