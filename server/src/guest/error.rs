//! How a call to an agent can fail, and how text from inside is made safe to show.

use std::{fmt::Write as _, sync::Arc};

use greenroom_protocol::{EndReason, Refusal};

use crate::engine::EngineError;

/// Longest text from inside that an error carries, in bytes, escapes included.
const TEXT_BYTES: usize = 400;

/// Why a sandbox's agent did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GuestError {
    /// The agent said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The sandbox has decided to end and grants nothing any more.
    #[error("the sandbox is ending: {}", .0.as_str())]
    Ended(EndReason),
    /// Its agent cannot be reached.
    #[error("the sandbox cannot be reached: {0}")]
    Lost(#[source] Lost),
    /// It can be reached, and does not answer.
    #[error("the sandbox did not answer {what} within {seconds} s")]
    Timeout {
        /// The call.
        what: &'static str,
        /// Its deadline.
        seconds: u64,
    },
    /// It answered something that an agent of ours would not.
    #[error("the sandbox answered what it must not: {0}")]
    Protocol(String),
    /// It speaks another generation of the protocol: a sandbox that outlived an upgrade.
    #[error(
        "the sandbox was made by another version of Greenroom: its agent is {theirs} (protocol {generation}), \
         this server is {ours} (protocol {expected})"
    )]
    Generation {
        /// The agent's protocol.
        generation: u32,
        /// The agent's version.
        theirs: String,
        /// This server's protocol.
        expected: u32,
        /// This server's version.
        ours: &'static str,
    },
}

/// Why an agent cannot be reached.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Lost {
    /// The engine would not open a channel.
    #[error("{0}")]
    Engine(#[source] Arc<EngineError>),
    /// The engine opened a channel, and no relay came up in it.
    #[error("its relay did not connect within {seconds} s")]
    NoRelay {
        /// The deadline.
        seconds: u64,
    },
    /// The channel broke.
    #[error("its channel broke: {0}")]
    Broke(String),
}

impl Lost {
    pub(super) fn broke(error: impl std::fmt::Display) -> Self {
        Self::Broke(shown(&error.to_string()))
    }
}

impl From<EngineError> for GuestError {
    fn from(error: EngineError) -> Self {
        Self::Lost(Lost::Engine(Arc::new(error)))
    }
}

impl GuestError {
    /// Whether the sandbox may be over: where the session's sandbox is now is a question to the engine. One
    /// that the engine has running, and that cannot be reached or does not answer, is not.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        match self {
            Self::Ended(_) | Self::Lost(Lost::Engine(_) | Lost::Broke(_)) => true,
            Self::Lost(Lost::NoRelay { .. })
            | Self::Refused(_)
            | Self::Timeout { .. }
            | Self::Protocol(_)
            | Self::Generation { .. } => false,
        }
    }

    /// Whether the sandbox may hang: the engine has it, and no channel into it comes up, or nobody answers there.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Lost(Lost::NoRelay { .. }) => true,
            Self::Lost(Lost::Engine(error)) => matches!(**error, EngineError::Timeout { .. }),
            Self::Lost(Lost::Broke(_))
            | Self::Ended(_)
            | Self::Refused(_)
            | Self::Protocol(_)
            | Self::Generation { .. } => false,
        }
    }

    /// Whether the sandbox is over for certain.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self {
            Self::Ended(_) => true,
            Self::Lost(Lost::Engine(error)) => matches!(**error, EngineError::NoSandbox(_)),
            Self::Lost(Lost::Broke(_) | Lost::NoRelay { .. })
            | Self::Refused(_)
            | Self::Timeout { .. }
            | Self::Protocol(_)
            | Self::Generation { .. } => false,
        }
    }

    /// Whether trying again is idle: all but a channel that broke and an engine that may come back.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Lost(Lost::Engine(error)) => !matches!(
                **error,
                EngineError::Unreachable(_) | EngineError::Timeout { .. } | EngineError::Refused { .. }
            ),
            Self::Lost(Lost::Broke(_)) => false,
            Self::Lost(Lost::NoRelay { .. })
            | Self::Refused(_)
            | Self::Ended(_)
            | Self::Timeout { .. }
            | Self::Protocol(_)
            | Self::Generation { .. } => true,
        }
    }

    pub(super) fn protocol(what: impl AsRef<str>) -> Self {
        Self::Protocol(shown(what.as_ref()))
    }
}

/// Text from inside as it may reach a log, a terminal or an answer: what does not print is escaped, and
/// what is too long is cut.
pub(super) fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(TEXT_BYTES));
    for c in text.chars() {
        let end = safe.len();
        if matches!(c, '"' | '\'' | '\\') {
            safe.push(c);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(safe, "{}", c.escape_debug());
        }
        if safe.len() > TEXT_BYTES {
            safe.truncate(end);
            safe.push('…');
            break;
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_inside_neither_drives_a_terminal_nor_fills_a_log() {
        for (text, safe) in [
            ("no such file \"ä\"", "no such file \"ä\""),
            ("\x1b[31mred\r\n", "\\u{1b}[31mred\\r\\n"),
            ("\u{202e}desrever\u{0}", "\\u{202e}desrever\\0"),
        ] {
            assert_eq!(shown(text), safe);
        }
        let long = shown(&"\u{1b}".repeat(10_000));
        assert!(long.len() <= TEXT_BYTES + '…'.len_utf8(), "{}", long.len());
        assert!(long.ends_with("\\u{1b}…"), "{long}");
    }
}
