//! What a sandbox is told once, before anything of its guest's starts: its environment, and the image's own program.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::EndReason;

/// What an agent does at its start, before any server has spoken to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// Starts its kernels.
    #[default]
    AtOnce,
    /// Waits for `POST /boot`, since its kernels need an environment that only the channel may carry.
    Told,
    /// The same, and the request brings a program that has to be up before the sandbox counts as ready.
    WithApp,
}

/// `POST /boot`: once. The same again, or another one, changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootRequest {
    /// Variables of every process of the guest's, over those of the image.
    #[serde(default)]
    pub env: BTreeMap<String, Masked>,
    /// The image's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<App>,
}

/// A value that may be a secret: it travels, and is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Masked(String);

impl Masked {
    /// Masks a value.
    #[must_use]
    pub const fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself: for the process that is to have it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// The image's own program, as a container engine would start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Program and arguments; the program is looked for on the image's PATH.
    pub argv: Vec<String>,
    /// Where it starts; the root where the image names no place.
    pub work_dir: String,
    /// It counts as up once this has succeeded; without one, once it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// It is ended where this fails too often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

/// A question that is asked of a program again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// From one question to the next.
    pub period_ms: u64,
    /// How long an answer may take.
    pub timeout_ms: u64,
    /// Failures in a row that are one too many.
    pub failures: u32,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// `GET` of this path; a status from 200 to 399 is a success.
    Http {
        /// On 127.0.0.1.
        port: u16,
        /// Begins with a slash.
        path: String,
    },
    /// A connection that is accepted.
    Tcp {
        /// On 127.0.0.1.
        port: u16,
    },
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppEnd {
    /// By itself, with this code.
    Code(i32),
    /// By a signal.
    Signal(i32),
    /// It could not be started at all.
    NotStarted,
}

impl fmt::Display for AppEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotStarted => f.write_str("it could not be started"),
        }
    }
}

/// `GET /log`: what a program has written to its standard output and error, within [`crate::limits::LOG_HEAD`]
/// and [`crate::limits::LOG_TAIL`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppLog {
    /// Its first bytes.
    pub head: String,
    /// Bytes between the two that are gone.
    pub omitted: u64,
    /// Its last bytes.
    pub tail: String,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<AppEnd>,
}

/// What PID 1 writes as the last line of its standard output, for whoever looks at an ended sandbox. A claim, as
/// everything from inside is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// Why the sandbox ended.
    pub reason: EndReason,
    /// More about it, such as what a probe met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How its program ended, where that came first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<AppEnd>,
    /// The last of what its program has written: at most [`crate::limits::LAST_WORDS`] bytes.
    pub output: String,
}

impl LastWords {
    /// Begins the line, before the JSON.
    pub const MARK: &str = "greenroom-last-words ";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_masked_travels_and_is_not_shown() {
        let boot = BootRequest {
            env: BTreeMap::from([("KEY".to_owned(), Masked::new("s3cret".to_owned()))]),
            app: None,
        };
        assert!(!format!("{boot:?}").contains("s3cret"));
        let wire = serde_json::to_string(&boot).unwrap();
        assert_eq!(wire, r#"{"env":{"KEY":"s3cret"}}"#);
        assert_eq!(serde_json::from_str::<BootRequest>(&wire).unwrap(), boot);
    }
}
