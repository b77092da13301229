//! What a caller may read when Greenroom could not do what was asked: a closed set of kinds, and one text.
//!
//! A text says what failed and what to do about it. It holds nothing of the engine, the host or another
//! conversation: those details go to the log, once, at the edge.

use greenroom_protocol::RefusalKind;

use crate::{
    archive::SaveError,
    auth::Denied,
    guest::GuestError,
    pool::{ClaimError, Delay},
    sessions::OpenError,
};

/// The kinds of failure, for programs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureKind {
    /// An argument is missing, of the wrong type, over a limit or otherwise wrong.
    BadArgument,
    /// The caller may not.
    Forbidden,
    /// There is no such file or run.
    NotFound,
    /// Something else is in the way: a folder where a file is meant, a run that is over.
    Conflict,
    /// No sandbox is free, and no more may be made.
    Capacity,
    /// A queue is full, or too many calls are in flight.
    Busy,
    /// The sandbox has no space left.
    DiskFull,
    /// The sandbox cannot run that language.
    NoKernel,
    /// The engine, or everything on it, is out of order.
    Unavailable,
    /// The sandbox was made by another version of Greenroom.
    Generation,
    /// The sandbox ended under the call.
    Lost,
    /// A bug.
    Internal,
}

impl FailureKind {
    /// Every kind, for the metric's labels.
    pub const ALL: [Self; 12] = [
        Self::BadArgument,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Capacity,
        Self::Busy,
        Self::DiskFull,
        Self::NoKernel,
        Self::Unavailable,
        Self::Generation,
        Self::Lost,
        Self::Internal,
    ];

    /// The word for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadArgument => "bad_argument",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Capacity => "capacity",
            Self::Busy => "busy",
            Self::DiskFull => "disk_full",
            Self::NoKernel => "no_kernel",
            Self::Unavailable => "unavailable",
            Self::Generation => "generation",
            Self::Lost => "lost",
            Self::Internal => "internal",
        }
    }
}

/// A failure as a caller reads it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// What failed and what to do.
    pub text: String,
}

impl Failure {
    /// A failure of a kind.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// The caller may not, whatever the arguments.
    #[must_use]
    pub fn forbidden(denied: Denied) -> Self {
        Self::new(
            FailureKind::Forbidden,
            format!("{denied}. Trying again does not help; the operator gives credentials"),
        )
    }

    /// An argument that cannot be.
    #[must_use]
    pub fn bad_argument(text: impl Into<String>) -> Self {
        Self::new(FailureKind::BadArgument, text)
    }
}

impl From<&GuestError> for Failure {
    fn from(error: &GuestError) -> Self {
        match error {
            GuestError::Refused(refusal) => refused(refusal.kind, &refusal.message),
            GuestError::Ended(_) | GuestError::Lost(_) => Self::new(
                FailureKind::Lost,
                "the sandbox ended while it was asked. Try again: the answer will say what became of it",
            ),
            GuestError::Timeout { seconds, .. } => Self::new(
                FailureKind::Unavailable,
                format!(
                    "the sandbox did not answer within {seconds} s. Try again; if that does not help, reset_session"
                ),
            ),
            GuestError::Protocol(_) => Self::new(
                FailureKind::Internal,
                "the sandbox answered what makes no sense. Try again; if that does not help, reset_session",
            ),
            GuestError::Generation { .. } => Self::new(
                FailureKind::Generation,
                "the sandbox was made by another version of Greenroom. Call reset_session for one of this version",
            ),
        }
    }
}

fn refused(kind: RefusalKind, message: &str) -> Failure {
    let kind = match kind {
        RefusalKind::BadRequest | RefusalKind::BadPath | RefusalKind::TooLarge => FailureKind::BadArgument,
        RefusalKind::NotFound => FailureKind::NotFound,
        RefusalKind::Conflict => FailureKind::Conflict,
        RefusalKind::QueueFull => FailureKind::Busy,
        RefusalKind::DiskFull => FailureKind::DiskFull,
        RefusalKind::NoKernel => FailureKind::NoKernel,
        RefusalKind::Internal => FailureKind::Internal,
    };
    Failure::new(kind, message)
}

impl From<&OpenError> for Failure {
    fn from(error: &OpenError) -> Self {
        match error {
            OpenError::NoPool(name) => Self::bad_argument(format!("there is no pool {name}")),
            OpenError::Claim(error) => error.into(),
            OpenError::Guest(error) => error.into(),
            OpenError::Engine(_) => Self::new(
                FailureKind::Unavailable,
                "the container engine does not answer as it should. Try again in a moment; the operator finds the reason \
                 with `greenroom doctor`",
            ),
            // "Not yours" and "does not exist" read the same.
            OpenError::NotOurs => Self::new(FailureKind::NotFound, "there is no such session"),
            OpenError::StillEnding { .. } | OpenError::Unsettled { .. } | OpenError::TimedOut { .. } => {
                Self::new(
                    FailureKind::Unavailable,
                    format!("{error}. Try again in a moment"),
                )
            }
            OpenError::NoArchive => Self::bad_argument(
                "files are not kept here (setting archive): call reset_session without keep_files, and download first what is \
                 needed",
            ),
            OpenError::NotKept(error) => not_kept(error),
            OpenError::Silent => Self::new(
                FailureKind::Unavailable,
                "no sandbox answers: the host is in trouble. Try again in a moment; the operator finds the reason with \
                 `greenroom doctor`",
            ),
            OpenError::Broken => Self::new(
                FailureKind::Unavailable,
                "the server is shutting down. Try again in a moment",
            ),
        }
    }
}

/// Nothing was reset. The guest's own words name the limit that was met.
fn not_kept(error: &SaveError) -> Failure {
    let (kind, why) = match error {
        SaveError::Guest(GuestError::Refused(refusal)) => {
            let failure = refused(refusal.kind, &refusal.message);
            (failure.kind, failure.text)
        }
        SaveError::Guest(_) | SaveError::Dawdles => (
            FailureKind::Unavailable,
            "the sandbox did not give them".to_owned(),
        ),
        SaveError::Forgotten => (
            FailureKind::Busy,
            "another call resets the session without them at this moment".to_owned(),
        ),
        SaveError::Store(_) | SaveError::Slow(_) => (
            FailureKind::Unavailable,
            "the store of archives failed".to_owned(),
        ),
    };
    Failure::new(
        kind,
        format!(
            "nothing was reset, because the files could not be kept: {why}. Delete what is not needed, or call reset_session \
             without keep_files"
        ),
    )
}

impl From<&ClaimError> for Failure {
    fn from(error: &ClaimError) -> Self {
        match error {
            // Its text names the limit and says when to try again.
            ClaimError::Capacity { .. } | ClaimError::Memory { .. } => {
                Self::new(FailureKind::Capacity, error.to_string())
            }
            ClaimError::QueueFull { .. } => {
                Self::new(FailureKind::Busy, format!("{error}. Try again in a moment"))
            }
            ClaimError::TimedOut { pool, waited, delay } => {
                let waited = waited.as_secs();
                let text = match delay {
                    Delay::Booting { booting, waiting } => format!(
                        "no sandbox of pool {pool} was ready within {waited} s: {booting} are booting, and {waiting} calls wait \
                         for one. Try again"
                    ),
                    Delay::Installing => format!(
                        "no sandbox of pool {pool} was ready within {waited} s: its packages are still being installed, which is \
                         done once and may take minutes. Try again then"
                    ),
                    Delay::Preparing => format!(
                        "no sandbox of pool {pool} was ready within {waited} s: its image is still being prepared. Try again"
                    ),
                    // The reasons are the operator's, and stand in /readyz and the log.
                    Delay::Failing { .. } | Delay::EngineUnreachable { .. } => format!(
                        "no sandbox of pool {pool} could be made within {waited} s. Try again in a minute; the operator finds the \
                         reason with `greenroom doctor`"
                    ),
                };
                Self::new(FailureKind::Unavailable, text)
            }
            // An installer's words are the operator's to read.
            ClaimError::NotInstalled { pool, .. } => Self::new(
                FailureKind::Unavailable,
                format!(
                    "pool {pool} has no sandboxes: the packages that it adds to its image could not be installed. The server \
                     tries again by and by; the operator finds the reason with `greenroom doctor`"
                ),
            ),
            ClaimError::Closed => Self::new(
                FailureKind::Unavailable,
                "the server is shutting down. Try again in a moment",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use greenroom_protocol::{EndReason, Refusal};

    use super::*;
    use crate::{conversation::PoolName, engine::EngineError, guest::Lost};

    fn pool() -> PoolName {
        PoolName::parse("python").unwrap()
    }

    fn timed_out(delay: Delay) -> OpenError {
        OpenError::Claim(ClaimError::TimedOut {
            pool: pool(),
            waited: Duration::from_secs(10),
            delay,
        })
    }

    fn not_kept(error: SaveError) -> OpenError {
        OpenError::NotKept(Arc::new(error))
    }

    fn refusal(kind: RefusalKind) -> OpenError {
        OpenError::Guest(GuestError::Refused(Refusal {
            kind,
            message: "no such file".into(),
        }))
    }

    #[test]
    fn every_failure_has_a_kind_and_says_what_to_do() {
        let secret = || "/var/run/docker.sock: permission denied".to_owned();
        let unreachable = || EngineError::Unreachable(secret());
        let cases = [
            (OpenError::NoArchive, FailureKind::BadArgument, "setting archive"),
            (
                not_kept(SaveError::Guest(GuestError::Refused(Refusal {
                    kind: RefusalKind::TooLarge,
                    message: "the files come to more than 7 bytes".into(),
                }))),
                FailureKind::BadArgument,
                "nothing was reset, because the files could not be kept: the files come to more than 7 bytes",
            ),
            (
                not_kept(SaveError::Guest(GuestError::Ended(EndReason::Idle))),
                FailureKind::Unavailable,
                "the sandbox did not give them",
            ),
            (
                not_kept(SaveError::Store(secret())),
                FailureKind::Unavailable,
                "the store of archives failed",
            ),
            (
                not_kept(SaveError::Slow(9)),
                FailureKind::Unavailable,
                "the store of archives failed",
            ),
            (
                OpenError::NoPool(pool()),
                FailureKind::BadArgument,
                "no pool python",
            ),
            (
                OpenError::Claim(ClaimError::Capacity {
                    pool: pool(),
                    limit: "max",
                    max: 32,
                    retry_after: Duration::from_secs(5),
                }),
                FailureKind::Capacity,
                "(limit max = 32): try again in 5 s",
            ),
            (
                OpenError::Claim(ClaimError::Memory {
                    pool: pool(),
                    retry_after: Duration::from_secs(5),
                }),
                FailureKind::Capacity,
                "(limit memory): try again in 5 s",
            ),
            (
                OpenError::Claim(ClaimError::QueueFull {
                    pool: pool(),
                    limit: "claims_waiting",
                    bound: 256,
                }),
                FailureKind::Busy,
                "256",
            ),
            (
                timed_out(Delay::Booting {
                    booting: 2,
                    waiting: 9,
                }),
                FailureKind::Unavailable,
                "2 are booting",
            ),
            (
                timed_out(Delay::Preparing),
                FailureKind::Unavailable,
                "being prepared",
            ),
            (
                timed_out(Delay::Installing),
                FailureKind::Unavailable,
                "being installed",
            ),
            (
                OpenError::Claim(ClaimError::NotInstalled {
                    pool: pool(),
                    reason: secret(),
                }),
                FailureKind::Unavailable,
                "could not be installed",
            ),
            (
                timed_out(Delay::Failing {
                    failures: 3,
                    reason: secret(),
                }),
                FailureKind::Unavailable,
                "doctor",
            ),
            (
                timed_out(Delay::EngineUnreachable { reason: secret() }),
                FailureKind::Unavailable,
                "doctor",
            ),
            (
                OpenError::Claim(ClaimError::Closed),
                FailureKind::Unavailable,
                "shutting down",
            ),
            (
                OpenError::Engine(Arc::new(unreachable())),
                FailureKind::Unavailable,
                "doctor",
            ),
            (
                OpenError::Guest(unreachable().into()),
                FailureKind::Lost,
                "Try again",
            ),
            (
                OpenError::Guest(GuestError::Lost(Lost::NoRelay { seconds: 5 })),
                FailureKind::Lost,
                "Try again",
            ),
            (
                OpenError::Guest(GuestError::Ended(EndReason::Idle)),
                FailureKind::Lost,
                "Try again",
            ),
            (
                OpenError::Guest(GuestError::Timeout {
                    what: "hello",
                    seconds: 10,
                }),
                FailureKind::Unavailable,
                "10 s",
            ),
            (
                OpenError::Guest(GuestError::Protocol(secret())),
                FailureKind::Internal,
                "reset_session",
            ),
            (
                OpenError::Guest(GuestError::Generation {
                    generation: 2,
                    theirs: secret(),
                    expected: 1,
                    ours: "0",
                }),
                FailureKind::Generation,
                "reset_session",
            ),
            (
                refusal(RefusalKind::BadPath),
                FailureKind::BadArgument,
                "no such file",
            ),
            (
                refusal(RefusalKind::BadRequest),
                FailureKind::BadArgument,
                "no such file",
            ),
            (
                refusal(RefusalKind::TooLarge),
                FailureKind::BadArgument,
                "no such file",
            ),
            (
                refusal(RefusalKind::NotFound),
                FailureKind::NotFound,
                "no such file",
            ),
            (
                refusal(RefusalKind::Conflict),
                FailureKind::Conflict,
                "no such file",
            ),
            (refusal(RefusalKind::QueueFull), FailureKind::Busy, "no such file"),
            (
                refusal(RefusalKind::DiskFull),
                FailureKind::DiskFull,
                "no such file",
            ),
            (
                refusal(RefusalKind::NoKernel),
                FailureKind::NoKernel,
                "no such file",
            ),
            (
                refusal(RefusalKind::Internal),
                FailureKind::Internal,
                "no such file",
            ),
            (OpenError::NotOurs, FailureKind::NotFound, "no such session"),
            (
                OpenError::StillEnding { seconds: 5 },
                FailureKind::Unavailable,
                "Try again",
            ),
            (
                OpenError::Unsettled { looks: 9 },
                FailureKind::Unavailable,
                "Try again",
            ),
            (
                OpenError::TimedOut { seconds: 90 },
                FailureKind::Unavailable,
                "90 s. Try again",
            ),
            (OpenError::Silent, FailureKind::Unavailable, "doctor"),
            (OpenError::Broken, FailureKind::Unavailable, "shutting down"),
        ];
        for (error, kind, says) in cases {
            let failure = Failure::from(&error);
            assert_eq!(failure.kind, kind, "{error:?}");
            assert!(failure.text.contains(says), "{error:?}: {failure}");
            assert!(
                !failure.text.contains("docker.sock"),
                "nothing of the host: {failure}"
            );
        }
    }
}
