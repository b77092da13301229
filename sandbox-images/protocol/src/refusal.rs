//! How the agent says no.

use serde::{Deserialize, Serialize};

/// Body of every answer that is not a success, but 410, which carries [`crate::Ended`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For the program.
    pub kind: RefusalKind,
    /// For a person: lower case, no full stop, bounded, names the limit where one was met.
    pub message: String,
}

/// Kinds of refusal, each with its HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request is malformed.
    BadRequest,
    /// A path that is not allowed: outside the work directory, `..`, NUL, too long, a symlink out.
    BadPath,
    /// No such file, run or route.
    NotFound,
    /// Something of another kind is in the way: a folder where a file is meant, another key's lease, a
    /// finished run.
    Conflict,
    /// A body or a value over its limit.
    TooLarge,
    /// The run queue of that kernel is full.
    QueueFull,
    /// No space left in the sandbox.
    DiskFull,
    /// The image has no such kernel, or it does not start.
    NoKernel,
    /// The agent failed.
    Internal,
}

impl RefusalKind {
    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::BadPath => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::NoKernel => 422,
            Self::QueueFull => 429,
            Self::Internal => 500,
            Self::DiskFull => 507,
        }
    }
}
