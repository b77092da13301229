//! `_meta["greenroom/result"]`: what programs read of an answer. The text is complete without it.

use schemars::JsonSchema;
use serde::Serialize;

/// The key in an answer's `_meta`.
pub const RESULT_KEY: &str = "greenroom/result";

/// The machine-readable part of every answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct ResultMeta {
    /// The conversation that was served.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub conversation_id: Option<String>,
    /// How the call found its session.
    pub session: SessionState,
    /// Why an earlier sandbox is gone, where `session` is `restarted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub restart_reason: Option<String>,
    /// Where the earlier sandbox's files are kept: the time, in UTC, since which they are as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub files_kept_as_of: Option<String>,
    /// The kind of failure, where Greenroom could not do what was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub failure: Option<String>,
    /// What `execute_code`, `get_run` and `cancel_run` tell of a run.
    #[serde(flatten)]
    pub run: Option<RunMeta>,
    /// Files: those that a run changed, or those that were listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<FileMeta>")]
    pub files: Option<Vec<FileMeta>>,
}

/// How a call found its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Nothing from earlier exists.
    New,
    /// It goes on.
    Existing,
    /// An earlier sandbox is gone.
    Restarted,
    /// There is no sandbox, and none was made.
    #[default]
    None,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct RunMeta {
    /// Its name, for `get_run` and `cancel_run`.
    pub run_id: String,
    /// Where it stands, or how it ended.
    pub status: RunStatus,
    /// What runs it.
    pub language: String,
    /// Time at work.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub duration_ms: Option<f64>,
    /// Standard output.
    pub stdout: StreamMeta,
    /// Standard error.
    pub stderr: StreamMeta,
    /// What was raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ErrorMeta")]
    pub error: Option<ErrorMeta>,
    /// The last expression as text/plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub result: Option<String>,
    /// Exit code of the last command of a shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64")]
    pub exit_code: Option<i32>,
    /// Image blocks in this answer.
    pub images: usize,
    /// What to pass as `since` to see only what comes later.
    pub next: u64,
}

/// Where a run stands, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It ran to its end.
    Ok,
    /// It raised, or its last command failed.
    Error,
    /// Its time was over.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// Its kernel died under it.
    KernelDied,
    /// It is at work.
    Running,
    /// It waits behind another.
    Queued,
}

impl RunStatus {
    /// The word on the wire and in answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::KernelDied => "kernel_died",
            Self::Running => "running",
            Self::Queued => "queued",
        }
    }
}

/// One output stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct StreamMeta {
    /// Bytes written in all.
    pub bytes: u64,
    /// Whether the text of the answer lacks some of them.
    pub truncated: bool,
    /// Where all of it lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub path: Option<String>,
}

/// What was raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ErrorMeta {
    /// The exception's class, or a word such as `exit` or `killed`.
    pub name: String,
    /// Its message.
    pub message: String,
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FileMeta {
    /// Relative to the work directory.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// What a run did to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub change: Option<String>,
    /// What it is, where it was listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub kind: Option<String>,
    /// Its type, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub mime: Option<String>,
    /// When it was last changed, in UTC, where it was listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub modified: Option<String>,
}
