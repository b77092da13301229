//! Runs of code: what is asked, what happens meanwhile, how it ends.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{Language, RestartReason, Standing, limits::RUN_ID_BYTES};

/// Names a run; chosen by the caller, so that asking twice starts it once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

impl RunId {
    /// Whether an agent takes it: 1 to [`RUN_ID_BYTES`] letters, digits, `-` and `_`.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        (1..=RUN_ID_BYTES).contains(&self.0.len())
            && self
                .0
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `POST /runs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The run's name.
    pub id: RunId,
    /// What runs it.
    pub language: Language,
    /// The code, at most [`crate::limits::CODE_BYTES`].
    pub code: String,
    /// The run is interrupted after this long; time in the queue does not count.
    pub timeout_ms: u64,
}

/// One line of a run's event stream. `seq` counts from 0 without gaps, so a follower knows what it missed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEvent {
    /// Its place in the stream.
    pub seq: u64,
    /// Milliseconds since the run was accepted.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: RunEventKind,
}

/// What happened in a run. The first event is `accepted`, the last is `finished`.
#[expect(
    clippy::large_enum_variant,
    reason = "events are made and read one at a time; the last of a run is the large one"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum RunEventKind {
    /// The run is in the queue or running. `standing` is what its caller must hear.
    Accepted {
        /// How the run found its session, as the agent knows it.
        #[serde(flatten)]
        standing: Standing,
    },
    /// Another run of the same kernel is before it.
    Queued {
        /// The run that is running.
        behind: RunId,
        /// For how long that one has been running.
        running_ms: u64,
    },
    /// The kernel has begun.
    Started {
        /// What it took to start the kernel, where it had to be started for this run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kernel_boot_ms: Option<u64>,
        /// How the kernel before this one died, where that happened since the last run: its variables
        /// are gone, and no outcome has said so yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lost: Option<RunError>,
    },
    /// Text that the code wrote; invalid UTF-8 is shown as `\xNN`. Only the head and the tail of a
    /// stream are sent; the outcome counts what lies between.
    Output {
        /// Where it wrote it.
        stream: Stream,
        /// What it wrote.
        text: String,
        /// True for bytes that arrived between runs, from a thread or a process left behind.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        late: bool,
        /// Bytes of this stream that were left out directly before this text.
        #[serde(default, skip_serializing_if = "is_zero")]
        omitted: u64,
    },
    /// A rich result: a MIME bundle. Images are base64, already within the bounds.
    Display {
        /// MIME type → value.
        data: BTreeMap<String, String>,
        /// Where it was saved as well, relative to the work directory.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// The run is over.
    Finished(RunOutcome),
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// An output stream of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOutcome {
    /// In one word.
    pub status: RunStatus,
    /// What it ran in.
    pub language: Language,
    /// Time at work, without the queue.
    pub duration_ms: f64,
    /// All of descriptor 1.
    pub stdout: StreamSummary,
    /// All of descriptor 2.
    pub stderr: StreamSummary,
    /// What was raised, or why the kernel died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<RunError>,
    /// The last expression as text/plain, bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Exit code of the last command, for shells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether variables survived.
    pub kernel: KernelFate,
    /// Files in the work directory that changed meanwhile, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FileChange>,
    /// Images made beyond the bound: saved, not sent.
    #[serde(default)]
    pub images_omitted: u32,
    /// Processes in the background that were ended, since the sandbox had no room for another.
    #[serde(default)]
    pub background_ended: u32,
    /// When and how variables were lost, where the code missed a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Loss>,
    /// What the session's caller must hear; the same as in `accepted`.
    #[serde(flatten)]
    pub standing: Standing,
}

/// How a run ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
}

impl RunStatus {
    /// The word on the wire and for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::KernelDied => "kernel_died",
        }
    }
}

/// What was raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// The exception's class, or a short word such as `exit`, `killed`, `out_of_memory`.
    pub name: String,
    /// Its message, bounded.
    pub message: String,
    /// The traceback as plain text, bounded; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub traceback: String,
}

/// An earlier loss of a kernel's variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// How it came about.
    pub cause: LossCause,
    /// How long ago, in milliseconds.
    pub ago_ms: u64,
}

/// How variables were lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "lowercase")]
pub enum LossCause {
    /// With the kernel, in a run.
    Run {
        /// Which.
        run: RunId,
        /// How it ended.
        status: RunStatus,
    },
    /// With the kernel, between runs.
    Between,
    /// With the whole sandbox.
    Sandbox {
        /// Why.
        reason: RestartReason,
    },
}

/// Whether the kernel's state survived a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelFate {
    /// Variables are there.
    Kept,
    /// A new kernel: variables are gone, files and the other kernels are not.
    Restarted,
}

/// One output stream of a finished run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSummary {
    /// Bytes written in all.
    pub bytes: u64,
    /// Bytes that no event carried.
    pub omitted: u64,
    /// Where it was spilled, relative to the work directory, if anything was omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How many of its first bytes lie there, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spilled: Option<u64>,
}

/// A file in the work directory that a run changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Relative to the work directory.
    pub path: String,
    /// Its size now, in bytes.
    pub size: u64,
    /// What happened to it.
    pub change: FileChangeKind,
}

/// What a run did to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileChangeKind {
    /// It was not there before.
    Created,
    /// It was, and is another now.
    Modified,
    /// It is gone.
    Deleted,
}

/// `GET /runs`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunList {
    /// Runs that are still known.
    pub runs: Vec<RunSummary>,
}

/// A run as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Its name.
    pub id: RunId,
    /// What runs it.
    pub language: Language,
    /// Where it stands.
    pub state: RunState,
    /// The first line of its code, bounded.
    pub title: String,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
    /// The next event's number: what to pass as `from` to see only news.
    pub next: u64,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "status", rename_all = "lowercase")]
pub enum RunState {
    /// Behind another run.
    Queued,
    /// At work.
    Running,
    /// Over.
    Finished(RunStatus),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FilesFate;

    #[test]
    fn run_ids_are_file_names() {
        let longest = "x".repeat(RUN_ID_BYTES);
        for (id, valid) in [
            ("a-B_9", true),
            (longest.as_str(), true),
            (&format!("{longest}x"), false),
            ("", false),
            ("..", false),
            ("a/b", false),
            ("ä", false),
        ] {
            assert_eq!(RunId(id.into()).is_valid(), valid, "{id}");
        }
    }

    #[test]
    fn events_survive_the_wire() {
        let outcome = RunOutcome {
            status: RunStatus::Ok,
            language: Language::Python,
            duration_ms: 0.5,
            stdout: StreamSummary::default(),
            stderr: StreamSummary {
                bytes: 9,
                omitted: 3,
                path: Some(".greenroom/runs/x".into()),
                spilled: Some(6),
            },
            error: None,
            result: Some("2".into()),
            exit_code: None,
            kernel: KernelFate::Kept,
            files: vec![FileChange {
                path: "a".into(),
                size: 1,
                change: FileChangeKind::Created,
            }],
            images_omitted: 0,
            background_ended: 2,
            lost: Some(Loss {
                cause: LossCause::Run {
                    run: RunId("r".into()),
                    status: RunStatus::TimedOut,
                },
                ago_ms: 7,
            }),
            standing: Standing::Restarted {
                reason: RestartReason::Idle,
                files: FilesFate::Kept {
                    as_of_ms: 7,
                    left_out: 1,
                },
            },
        };
        let kinds = [
            RunEventKind::Accepted {
                standing: Standing::Existing,
            },
            RunEventKind::Started {
                kernel_boot_ms: None,
                lost: Some(RunError {
                    name: "killed".into(),
                    message: "signal 9".into(),
                    traceback: String::new(),
                }),
            },
            RunEventKind::Output {
                stream: Stream::Stderr,
                text: "x".into(),
                late: true,
                omitted: 7,
            },
            RunEventKind::Finished(outcome),
        ];
        for (seq, kind) in kinds.into_iter().enumerate() {
            let event = RunEvent {
                seq: seq as u64,
                at_ms: 1,
                kind,
            };
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<RunEvent>(&text).unwrap(), event, "{text}");
        }
    }
}
