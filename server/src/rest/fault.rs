//! Why a request over REST is not done: a closed set of codes, each with its status, and the envelope around them.

use greenroom_protocol::{Refusal, RefusalKind};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{
    auth::{Denied, Scope},
    error::{Failure, FailureKind},
    guest::GuestError,
    sessions::OpenError,
};

/// Seconds after which a client may try again.
const RETRY_SECS: u64 = 5;

/// The codes, as clients know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// There is nothing to run in the body, or no file.
    PropertiesMissing,
    /// Other bad input.
    ValidationFailed,
    /// A path that cannot be.
    PathInvalid,
    /// An api-version that is none.
    InvalidApiVersion,
    /// There is no such call.
    NotSupported,
    /// No credential, or none that is known.
    Unauthorized,
    /// The caller may not.
    Forbidden,
    /// No such session.
    SessionNotFound,
    /// No such file.
    FileNotFound,
    /// No such execution.
    ExecutionNotFound,
    /// No such pool.
    PoolNotFound,
    /// Something else is in the way.
    Conflict,
    /// A body over its limit.
    TooLarge,
    /// The part of a file that is asked for does not exist.
    RangeNotSatisfiable,
    /// The pool is full.
    SessionsExceeded,
    /// A queue is full, or too many calls are in flight.
    TooManyRequests,
    /// The body did not come in time.
    RequestTimeout,
    /// The sandbox was lost, or answers what it must not.
    SandboxLost,
    /// No sandbox in time.
    SandboxUnavailable,
    /// The sandbox has no space left.
    DiskFull,
    /// A container's program has ended.
    ContainerExited,
    /// A container's program does not listen.
    NotListening,
    /// A container's program broke off, or answered what is no HTTP.
    BadAnswer,
    /// A container's program did not answer in time.
    AnswerTimeout,
}

impl Code {
    /// The word for programs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::PropertiesMissing => "SessionPropertiesMissing",
            Self::ValidationFailed => "SessionRequestValidationFailed",
            Self::PathInvalid => "FilePathInvalid",
            Self::InvalidApiVersion => "InvalidApiVersion",
            Self::NotSupported => "SessionRequestNotSupported",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::SessionNotFound => "SessionWithIdentifierNotFound",
            Self::FileNotFound => "FileNotFound",
            Self::ExecutionNotFound => "ExecutionNotFound",
            Self::PoolNotFound => "PoolNotFound",
            Self::Conflict => "Conflict",
            Self::TooLarge => "RequestBodyTooLarge",
            Self::RangeNotSatisfiable => "RangeNotSatisfiable",
            Self::SessionsExceeded => "SessionsCountExceedsLimit",
            Self::TooManyRequests => "TooManyRequests",
            Self::RequestTimeout => "RequestTimeout",
            Self::SandboxLost | Self::SandboxUnavailable => "SandboxUnavailable",
            Self::DiskFull => "DiskFull",
            Self::ContainerExited => "ContainerExited",
            Self::NotListening => "ContainerNotListening",
            Self::BadAnswer => "ContainerBadAnswer",
            Self::AnswerTimeout => "ContainerTimeout",
        }
    }

    /// The HTTP status.
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::PropertiesMissing
            | Self::ValidationFailed
            | Self::PathInvalid
            | Self::InvalidApiVersion
            | Self::NotSupported => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::SessionNotFound | Self::FileNotFound | Self::ExecutionNotFound | Self::PoolNotFound => 404,
            Self::RequestTimeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::RangeNotSatisfiable => 416,
            Self::SessionsExceeded | Self::TooManyRequests => 429,
            Self::SandboxLost | Self::ContainerExited | Self::NotListening | Self::BadAnswer => 502,
            Self::SandboxUnavailable => 503,
            Self::AnswerTimeout => 504,
            Self::DiskFull => 507,
        }
    }

    /// Seconds after which trying again may help. Clients heed it, and need it with a 429.
    pub(crate) const fn retry_after(self) -> Option<u64> {
        match self.status() {
            429 | 502 | 503 | 504 => Some(RETRY_SECS),
            _ => None,
        }
    }
}

/// A request that is not done. Its text holds nothing of the host, and never the identifier, which is a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// The file or member that it is about.
    pub(crate) target: Option<String>,
    /// Bytes of the file of which a part was asked for that does not exist.
    pub(crate) size: Option<u64>,
    /// The scope that the credential lacks.
    pub(crate) lacks: Option<Scope>,
}

impl Fault {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            target: None,
            size: None,
            lacks: None,
        }
    }

    /// Bad input.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(Code::ValidationFailed, message)
    }

    /// About a file or a member.
    pub(crate) fn of(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// There is no such file.
    pub(crate) fn no_file(path: &str) -> Self {
        Self::new(Code::FileNotFound, "there is no such file in this session").of(path)
    }

    /// What became of a call to a sandbox that was about a file.
    pub(crate) fn about_file(path: &str, error: &GuestError) -> Self {
        let fault = match error {
            GuestError::Refused(Refusal { kind, message }) => match kind {
                RefusalKind::NotFound => Self::no_file(path),
                RefusalKind::BadPath | RefusalKind::Conflict => Self::new(Code::PathInvalid, message.clone()),
                RefusalKind::BadRequest
                | RefusalKind::TooLarge
                | RefusalKind::QueueFull
                | RefusalKind::DiskFull
                | RefusalKind::NoKernel
                | RefusalKind::Internal => Self::from(error),
            },
            GuestError::Ended(_)
            | GuestError::Lost(_)
            | GuestError::Timeout { .. }
            | GuestError::Protocol(_)
            | GuestError::Generation { .. } => Self::from(error),
        };
        fault.of(path)
    }

    /// The body of the answer. Azure's is flat where a pool is full, and its clients read that: ours is both.
    pub(crate) fn envelope(&self, trace: &str) -> Value {
        let code = self.code.as_str();
        let is_flat = self.code == Code::SessionsExceeded;
        let envelope = Envelope {
            code: is_flat.then_some(code),
            message: is_flat.then(|| self.message.clone()),
            error: Problem {
                code,
                message: self.message.clone(),
                target: self.target.clone(),
                trace_id: trace.to_owned(),
            },
        };
        // There is nothing in it that cannot be written.
        serde_json::to_value(&envelope).unwrap_or_default()
    }
}

/// An error's body.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct Envelope {
    /// Beside `error` too, where a pool is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    error: Problem,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Problem {
    code: &'static str,
    message: String,
    /// The member, parameter or file that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Stands in the server's log, too.
    trace_id: String,
}

impl From<Denied> for Fault {
    fn from(denied: Denied) -> Self {
        let lacks = match denied {
            Denied::Scope(scope) => Some(scope),
            Denied::Pool => None,
        };
        Self {
            lacks,
            ..Self::new(Code::Forbidden, denied.to_string())
        }
    }
}

impl From<&GuestError> for Fault {
    fn from(error: &GuestError) -> Self {
        match error {
            GuestError::Refused(Refusal { kind, message }) => Self::new(
                match kind {
                    RefusalKind::BadRequest => Code::ValidationFailed,
                    RefusalKind::BadPath => Code::PathInvalid,
                    RefusalKind::NotFound => Code::ExecutionNotFound,
                    RefusalKind::Conflict => Code::Conflict,
                    RefusalKind::TooLarge => Code::TooLarge,
                    RefusalKind::QueueFull => Code::TooManyRequests,
                    RefusalKind::DiskFull => Code::DiskFull,
                    RefusalKind::NoKernel => Code::NotSupported,
                    RefusalKind::Internal => Code::SandboxLost,
                },
                message.clone(),
            ),
            GuestError::Ended(_) | GuestError::Lost(_) => Self::new(
                Code::SandboxLost,
                "the sandbox ended while it was asked; the next request gets a fresh one and says what became of this one",
            ),
            GuestError::Timeout { seconds, .. } => Self::new(
                Code::SandboxUnavailable,
                format!(
                    "the sandbox did not answer within {seconds} s; if that goes on, DELETE session ends it"
                ),
            ),
            GuestError::Protocol(_) => Self::new(
                Code::SandboxLost,
                "the sandbox answered what makes no sense; if that goes on, DELETE session ends it",
            ),
            GuestError::Generation { .. } => Self::new(
                Code::Conflict,
                "the sandbox was made by another version of Greenroom: DELETE session ends it, and the next request gets one of \
                 this version",
            ),
        }
    }
}

impl From<&OpenError> for Fault {
    fn from(error: &OpenError) -> Self {
        if let OpenError::Guest(error) = error {
            return error.into();
        }
        let Failure { kind, text } = Failure::from(error);
        let code = match (kind, error) {
            (_, OpenError::NoPool(_)) => Code::PoolNotFound,
            (FailureKind::Capacity, _) => Code::SessionsExceeded,
            (FailureKind::Busy, _) => Code::TooManyRequests,
            (FailureKind::Forbidden, _) => Code::Forbidden,
            // "Not yours" and "does not exist" read the same.
            (FailureKind::NotFound, _) => Code::SessionNotFound,
            (FailureKind::BadArgument, _) => Code::ValidationFailed,
            (FailureKind::Conflict | FailureKind::Generation, _) => Code::Conflict,
            (FailureKind::DiskFull, _) => Code::DiskFull,
            (FailureKind::NoKernel, _) => Code::NotSupported,
            (FailureKind::Unavailable | FailureKind::Lost | FailureKind::Internal, _) => {
                Code::SandboxUnavailable
            }
        };
        Self::new(code, text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(kind: RefusalKind) -> GuestError {
        GuestError::Refused(Refusal {
            kind,
            message: "why".into(),
        })
    }

    #[test]
    fn refusals_have_the_codes_that_clients_know() {
        for (kind, of_a_file, of_a_run) in [
            (
                RefusalKind::NotFound,
                (404, "FileNotFound"),
                (404, "ExecutionNotFound"),
            ),
            (
                RefusalKind::BadPath,
                (400, "FilePathInvalid"),
                (400, "FilePathInvalid"),
            ),
            (RefusalKind::Conflict, (400, "FilePathInvalid"), (409, "Conflict")),
            (
                RefusalKind::TooLarge,
                (413, "RequestBodyTooLarge"),
                (413, "RequestBodyTooLarge"),
            ),
            (
                RefusalKind::QueueFull,
                (429, "TooManyRequests"),
                (429, "TooManyRequests"),
            ),
            (RefusalKind::DiskFull, (507, "DiskFull"), (507, "DiskFull")),
            (
                RefusalKind::NoKernel,
                (400, "SessionRequestNotSupported"),
                (400, "SessionRequestNotSupported"),
            ),
        ] {
            let shown = |fault: Fault| (fault.code.status(), fault.code.as_str());
            assert_eq!(
                shown(Fault::about_file("a", &refused(kind))),
                of_a_file,
                "{kind:?}"
            );
            assert_eq!(shown(Fault::from(&refused(kind))), of_a_run, "{kind:?}");
        }
    }

    #[test]
    fn sessions_that_cannot_be_opened_say_when_to_try_again() {
        for (error, status, code, retry) in [
            (OpenError::Silent, 503, "SandboxUnavailable", Some(5)),
            (OpenError::NotOurs, 404, "SessionWithIdentifierNotFound", None),
            (
                OpenError::TimedOut { seconds: 90 },
                503,
                "SandboxUnavailable",
                Some(5),
            ),
            (
                OpenError::Guest(GuestError::Ended(greenroom_protocol::EndReason::Idle)),
                502,
                "SandboxUnavailable",
                Some(5),
            ),
        ] {
            let fault = Fault::from(&error);
            let shown = (fault.code.status(), fault.code.as_str(), fault.code.retry_after());
            assert_eq!(shown, (status, code, retry), "{error}");
        }
    }

    #[test]
    fn the_envelope_is_azures_and_flat_too_where_a_pool_is_full() {
        assert_eq!(
            Fault::no_file("a.txt").envelope("t"),
            json!({ "error": { "code": "FileNotFound", "message": "there is no such file in this session", "target": "a.txt",
                "traceId": "t" } })
        );
        let full = Fault::new(Code::SessionsExceeded, "full").envelope("t");
        assert_eq!(
            (&full["code"], &full["error"]["code"]),
            (&json!("SessionsCountExceedsLimit"), &full["code"])
        );
        assert_eq!(full["error"]["message"], full["message"]);
    }
}
