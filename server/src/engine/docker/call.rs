//! One call to the Docker engine: its deadline, and what became of it.

use std::{error::Error as _, future::Future, time::Duration};

use bollard::errors::Error;

use crate::engine::EngineError;

/// A kind of call: how errors name it and how long it may take. The engine answers all of these in
/// milliseconds on a quiet machine; the deadlines are for one that is swamped, and end with one that hangs.
#[derive(Debug)]
pub(super) struct Call {
    what: &'static str,
    seconds: u64,
}

pub(super) const ASK: Call = Call::new("say what it is", 10);
pub(super) const LIST: Call = Call::new("list its sandboxes", 10);
pub(super) const INSPECT: Call = Call::new("show a sandbox", 10);
pub(super) const STATS: Call = Call::new("say what a sandbox uses", 10);
pub(super) const IMAGE: Call = Call::new("show an image", 10);
pub(super) const CREATE: Call = Call::new("create a sandbox", 30);
pub(super) const START: Call = Call::new("start a sandbox", 30);
pub(super) const EXEC: Call = Call::new("open a channel", 20);
pub(super) const RENAME: Call = Call::new("rename a sandbox", 10);
pub(super) const UNPAUSE: Call = Call::new("unpause a sandbox", 10);
/// The engine waits for the process to be gone.
pub(super) const KILL: Call = Call::new("end a sandbox", 15);
/// Removing kills first, for which the engine allows itself 10 s.
pub(super) const REMOVE: Call = Call::new("remove a sandbox", 30);
/// Unpacking and committing write to the disk as much as the agent is large.
pub(super) const PREPARE: Call = Call::new("prepare an image", 120);
/// Everything that was installed goes to the engine, onto its disk, and through a checksum: some gigabytes at most.
pub(super) const LAYER: Call = Call::new("keep what was installed", 600);

impl Call {
    const fn new(what: &'static str, seconds: u64) -> Self {
        Self { what, seconds }
    }

    /// How errors name it.
    pub(super) const fn what(&self) -> &'static str {
        self.what
    }

    /// How long it may take.
    pub(super) const fn deadline(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Makes the call.
    pub(super) async fn run<T>(
        &'static self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Failure> {
        let cause = match tokio::time::timeout(self.deadline(), call).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Cause::of(error),
            Err(_) => Cause::Late,
        };
        Err(Failure { call: self, cause })
    }

    /// The error of having taken too long.
    pub(super) const fn timed_out(&self) -> EngineError {
        EngineError::Timeout {
            what: self.what,
            seconds: self.seconds,
        }
    }
}

/// A call that failed. Callers look at [`Failure::status`] for what they expect and pass the rest on.
#[derive(Debug)]
pub(super) struct Failure {
    call: &'static Call,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    /// The engine said no.
    Status(u16, String),
    /// It could not be reached, or the connection broke: the call may have taken effect.
    Lost(String),
    /// The deadline passed: the call may have taken effect.
    Late,
    /// Its answer made no sense.
    Garbled(String),
}

impl Failure {
    /// The HTTP status, where the engine answered.
    pub(super) const fn status(&self) -> Option<u16> {
        match self.cause {
            Cause::Status(status, _) => Some(status),
            Cause::Lost(_) | Cause::Late | Cause::Garbled(_) => None,
        }
    }

    /// The engine's words, bounded and escaped; empty where it said nothing.
    pub(super) fn message(&self) -> &str {
        match &self.cause {
            Cause::Status(_, text) | Cause::Lost(text) | Cause::Garbled(text) => text,
            Cause::Late => "",
        }
    }
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        match failure.cause {
            Cause::Lost(reason) => Self::Unreachable(reason),
            Cause::Late => failure.call.timed_out(),
            Cause::Status(_, reason) | Cause::Garbled(reason) => Self::Refused {
                what: failure.call.what,
                reason,
            },
        }
    }
}

impl Cause {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the client's list of errors is long, open, and of no interest beyond these"
    )]
    fn of(error: Error) -> Self {
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                Self::Status(status_code, bounded(&message))
            }
            Error::RequestTimeoutError => Self::Late,
            Error::IOError { .. }
            | Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_) => Self::Lost(bounded(&chain(&error))),
            other => Self::Garbled(bounded(&chain(&other))),
        }
    }
}

/// An error with its sources: the outermost alone says "client error".
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Text of the engine's as a log or a caller may see it: one line of printable ASCII, 300 characters.
pub(super) fn bounded(text: &str) -> String {
    const CHARACTERS: usize = 300;
    let mut shown: String = text
        .trim()
        .chars()
        .flat_map(|c| match c {
            ' '..='~' => c.to_string().chars().collect::<Vec<_>>(),
            _ => c.escape_default().collect(),
        })
        .take(CHARACTERS + 1)
        .collect();
    if shown.len() > CHARACTERS {
        shown.truncate(CHARACTERS);
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError {
            status_code,
            message: message.to_owned(),
        }
    }

    #[tokio::test]
    async fn what_the_engine_refuses_is_told_in_its_words() {
        let failure = LIST.run(async { Err::<(), _>(refused(409, "no\nway")) }).await;
        let failure = failure.unwrap_err();
        assert_eq!(failure.status(), Some(409));
        assert_eq!(
            EngineError::from(failure).to_string(),
            r"the engine refused to list its sandboxes: no\nway"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_ends_at_its_deadline() {
        let failure = START.run(std::future::pending::<Result<(), Error>>()).await;
        let error = EngineError::from(failure.unwrap_err());
        assert_eq!(
            error.to_string(),
            "the engine did not start a sandbox within 30 s"
        );
    }

    #[tokio::test]
    async fn a_broken_connection_is_told_apart_from_a_refusal() {
        let broken = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "nobody there");
        let failure = LIST.run(async { Err::<(), _>(Error::from(broken)) }).await;
        let error = EngineError::from(failure.unwrap_err());
        assert_eq!(error.to_string(), "the engine cannot be reached: nobody there");
        let garbled = LIST
            .run(async { Err::<(), _>(Error::APIVersionParseError {}) })
            .await;
        assert!(matches!(
            EngineError::from(garbled.unwrap_err()),
            EngineError::Refused { .. }
        ));
    }

    #[test]
    fn engine_text_is_short_and_printable() {
        assert_eq!(bounded(" a\x1b[31mb\u{202e} "), r"a\u{1b}[31mb\u{202e}");
        let long = bounded(&"x".repeat(1000));
        assert_eq!(long.len(), 303);
        assert!(long.ends_with("..."));
        assert!(bounded(&"\n".repeat(1 << 20)).len() <= 303);
    }
}
