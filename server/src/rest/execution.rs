//! What came of an execution, in the shape of each dialect.

use std::{collections::BTreeMap, time::Duration};

use greenroom_protocol::{KernelFate, RunError, RunOutcome, RunStatus};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{address::Dialect, ask::Mode, news::News};
use crate::transcript::{Display, Stage, Transcript};

/// Levels of a result that is sent as JSON: parsers of clients have limits, and what is deeper is sent as a string.
const DEPTH: usize = 64;

/// An execution as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Execution<'a> {
    pub(crate) identifier: &'a str,
    pub(crate) mode: Mode,
    pub(crate) kind: Kind,
    pub(crate) transcript: &'a Transcript,
    pub(crate) stdout: &'a Printed,
    pub(crate) stderr: &'a Printed,
    /// What it was limited to, where that is known.
    pub(crate) timeout: Option<Duration>,
    pub(crate) outputs: Outputs,
    pub(crate) news: &'a News,
    /// Why there is no outcome and none will come.
    pub(crate) lost: Option<&'a str>,
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Code,
    Shell,
}

/// Which of what the code showed stands in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outputs {
    /// The last, as the execution's result.
    Last,
    /// That, and all of it in a member of its own.
    All,
}

/// A stream as it is answered: its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Printed {
    pub(crate) text: String,
    /// Bytes that are not in the text.
    pub(crate) dropped: u64,
}

impl Printed {
    /// At most so many bytes of a text, in whole characters.
    pub(crate) fn cut(text: &str, bytes: u64, most: usize) -> Self {
        let mut end = most.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            text: text[..end].to_owned(),
            dropped: bytes.saturating_sub(end as u64),
        }
    }

    /// The beginning of a stream of so many bytes. A character that was cut in two is left out.
    pub(crate) fn of_bytes(beginning: &[u8], bytes: u64) -> Self {
        let whole = match std::str::from_utf8(beginning) {
            Err(error) if error.error_len().is_none() => &beginning[..error.valid_up_to()],
            Ok(_) | Err(_) => beginning,
        };
        Self {
            text: String::from_utf8_lossy(whole).into_owned(),
            dropped: bytes.saturating_sub(whole.len() as u64),
        }
    }
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Truncated {
    stdout: u64,
    stderr: u64,
    /// Outputs that were shown beyond those that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<usize>,
}

/// One thing that code showed, in every form that it has.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecutionShown")]
struct Rich<'a> {
    r#type: RichKind,
    /// MIME type → value, images in base64.
    data: BTreeMap<&'a str, &'a str>,
    /// Where it was saved in the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

/// As Jupyter tells them apart.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ExecutionShownKind")]
enum RichKind {
    /// Shown by the code.
    DisplayData,
    /// The last expression.
    ExecuteResult,
}

/// A result's value.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ExecutionResult")]
enum Shown {
    Json(#[schemars(with = "serde_json::Value")] Box<RawValue>),
    Text(String),
    Image {
        r#type: &'static str,
        format: &'static str,
        base64_data: String,
    },
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ExecutionA0")]
pub(crate) struct Old<'a> {
    #[serde(rename = "$id")]
    id: &'a str,
    status: &'static str,
    stdout: &'a str,
    stderr: &'a str,
    result: &'a Shown,
    execution_result: &'a Shown,
    execution_time_in_milliseconds: u64,
    /// On request.
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<Vec<Rich<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<Truncated>,
    #[serde(skip_serializing_if = "News::is_none")]
    greenroom: &'a News,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecutionA")]
pub(crate) struct Wrapped<'a> {
    #[serde(rename = "$id")]
    id: &'static str,
    properties: Old<'a>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Execution")]
pub(crate) struct Modern<'a> {
    id: &'a str,
    identifier: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
    execution_type: &'static str,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Nested>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Output<'a>>,
    #[serde(skip_serializing_if = "News::is_none")]
    greenroom: &'a News,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecutionError")]
struct Nested {
    error: Error,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ExecutionProblem")]
struct Error {
    code: &'static str,
    message: String,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ExecutionOutput")]
struct Output<'a> {
    stdout: &'a str,
    stderr: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    execution_result: Option<Shown>,
    execution_time_in_milliseconds: u64,
    /// On request.
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<Vec<Rich<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<Truncated>,
}

impl Execution<'_> {
    /// The answer's body.
    pub(crate) fn render(&self, dialect: Dialect) -> Vec<u8> {
        let stderr = self.stderr();
        let body = match dialect {
            Dialect::A0 => serde_json::to_vec(&self.old(&stderr, &self.shown())),
            Dialect::A => serde_json::to_vec(&Wrapped {
                id: "1",
                properties: self.old(&stderr, &self.shown()),
            }),
            Dialect::B => serde_json::to_vec(&self.modern(&stderr)),
        };
        // Strings and numbers: there is nothing in it that cannot be written.
        body.unwrap_or_default()
    }

    fn old<'b>(&'b self, stderr: &'b str, shown: &'b Shown) -> Old<'b> {
        Old {
            id: &self.transcript.id.0,
            status: if self.status() == Some(RunStatus::Ok) {
                "Success"
            } else {
                "Failure"
            },
            stdout: &self.stdout.text,
            stderr,
            result: shown,
            execution_result: shown,
            execution_time_in_milliseconds: self.millis(),
            outputs: self.outputs(),
            truncated: self.truncated(),
            greenroom: self.news,
        }
    }

    fn modern<'b>(&'b self, stderr: &'b str) -> Modern<'b> {
        let is_over = self.status().is_some() || self.lost.is_some();
        let exit_code = (self.kind == Kind::Shell && is_over).then(|| self.exit_code());
        Modern {
            id: &self.transcript.id.0,
            identifier: self.identifier,
            session_id: (self.kind == Kind::Code).then_some(self.identifier),
            execution_type: self.mode.as_str(),
            status: exit_code.map_or_else(|| self.word().to_owned(), |code| code.to_string()),
            exit_code,
            error: self.error(),
            result: is_over.then(|| Output {
                stdout: &self.stdout.text,
                stderr,
                execution_result: (self.kind == Kind::Code).then(|| self.shown()),
                execution_time_in_milliseconds: self.millis(),
                outputs: self.outputs(),
                truncated: self.truncated(),
            }),
            greenroom: self.news,
        }
    }

    fn outcome(&self) -> Option<&RunOutcome> {
        self.transcript.outcome()
    }

    fn status(&self) -> Option<RunStatus> {
        self.outcome().map(|outcome| outcome.status)
    }

    /// Dialect B's word.
    fn word(&self) -> &'static str {
        match (self.status(), &self.transcript.stage) {
            (Some(RunStatus::Ok), _) => "Succeeded",
            (Some(RunStatus::Cancelled), _) => "Canceled",
            (Some(RunStatus::Error | RunStatus::TimedOut | RunStatus::KernelDied), _) => "Failed",
            (None, _) if self.lost.is_some() => "Failed",
            (None, Stage::Queued { .. }) => "NotStarted",
            (None, Stage::Running | Stage::Finished(_)) => "Running",
        }
    }

    /// Of a command: -1 where it did not end by itself.
    fn exit_code(&self) -> i32 {
        match self.outcome() {
            Some(outcome) => match (outcome.status, outcome.exit_code) {
                (RunStatus::Ok, code) => code.unwrap_or(0),
                (RunStatus::Error, code) => code.unwrap_or(1),
                (RunStatus::TimedOut | RunStatus::Cancelled | RunStatus::KernelDied, _) => -1,
            },
            None => -1,
        }
    }

    fn error(&self) -> Option<Nested> {
        if self.kind == Kind::Shell {
            return None;
        }
        let message = match (self.outcome(), self.lost) {
            (Some(outcome), _) if outcome.status == RunStatus::Ok => return None,
            (Some(outcome), _) => match (&outcome.error, self.note()) {
                (Some(error), _) => one_line(error),
                (None, Some(note)) => note,
                (None, None) => "the code failed".to_owned(),
            },
            (None, Some(lost)) => lost.to_owned(),
            (None, None) => return None,
        };
        let code = "ExecutionFailed";
        Some(Nested {
            error: Error { code, message },
        })
    }

    /// What the program wrote, the traceback after it, and what else has to be said.
    fn stderr(&self) -> String {
        let mut text = self.stderr.text.clone();
        let mut add = |more: &str| {
            if more.is_empty() {
                return;
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(more);
            text.push('\n');
        };
        let error = self.outcome().and_then(|outcome| {
            let says = |error: &&RunError| !error.traceback.trim().is_empty() || outcome.exit_code.is_none();
            outcome.error.as_ref().filter(says)
        });
        if let Some(error) = error {
            let traceback = error.traceback.trim_end();
            add(if traceback.is_empty() { "" } else { traceback });
            if traceback.is_empty() {
                add(&one_line(error));
            }
        }
        add(&self.note().unwrap_or_default());
        add(self.lost.unwrap_or_default());
        text
    }

    /// A sentence on how it ended and on what was lost.
    fn note(&self) -> Option<String> {
        let outcome = self.outcome()?;
        let how = match outcome.status {
            RunStatus::Ok | RunStatus::Error => String::new(),
            RunStatus::TimedOut => match self.timeout {
                Some(limit) => format!("the execution was stopped at its limit of {} s", limit.as_secs()),
                None => "the execution was stopped at its time limit".to_owned(),
            },
            RunStatus::Cancelled => "the execution was cancelled".to_owned(),
            RunStatus::KernelDied => "the execution was aborted: its process died".to_owned(),
        };
        let lost = match outcome.kernel {
            KernelFate::Kept => "",
            KernelFate::Restarted if self.kind == Kind::Shell || outcome.language.is_shell() => {
                "the session's shell was restarted; files are kept"
            }
            KernelFate::Restarted => "variables and imports are lost, files are kept",
        };
        let before = match &self.transcript.lost {
            Some(error) => format!("variables of earlier executions were lost: {}", one_line(error)),
            None => String::new(),
        };
        let parts: Vec<&str> = [before.as_str(), how.as_str(), lost]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        (!parts.is_empty()).then(|| format!("greenroom: {}", parts.join("; ")))
    }

    fn millis(&self) -> u64 {
        // What comes from inside may be no number, and saturates.
        self.outcome().map_or(0, |outcome| outcome.duration_ms as u64)
    }

    fn truncated(&self) -> Option<Truncated> {
        let (stdout, stderr) = (self.stdout.dropped, self.stderr.dropped);
        let dropped = self.transcript.displays_dropped;
        let outputs = (self.outputs == Outputs::All && dropped > 0).then_some(dropped);
        (stdout > 0 || stderr > 0 || outputs.is_some()).then_some(Truncated {
            stdout,
            stderr,
            outputs,
        })
    }

    /// All that was shown, in order, and what the last expression was.
    fn outputs(&self) -> Option<Vec<Rich<'_>>> {
        if self.outputs == Outputs::Last || self.kind == Kind::Shell {
            return None;
        }
        let shown = self.transcript.displays.iter().map(|display| Rich {
            r#type: RichKind::DisplayData,
            data: display
                .data
                .iter()
                .map(|(kind, value)| (&**kind, &**value))
                .collect(),
            path: display.path.as_deref(),
        });
        let result = self.outcome().and_then(|outcome| outcome.result.as_deref());
        let result = result.map(|text| Rich {
            r#type: RichKind::ExecuteResult,
            data: BTreeMap::from([("text/plain", text)]),
            path: None,
        });
        Some(shown.chain(result).collect())
    }

    /// The last that was shown. Figures that are left open are shown at the end, after the last expression's value.
    fn shown(&self) -> Shown {
        let last = self.transcript.displays.last();
        if let Some(image) = last.and_then(image) {
            return image;
        }
        let result = self.outcome().and_then(|outcome| outcome.result.as_deref());
        let text = result.or_else(|| last?.data.get("text/plain").map(String::as_str));
        value(text.unwrap_or_default())
    }
}

fn image(display: &Display) -> Option<Shown> {
    [("image/png", "png"), ("image/jpeg", "jpeg")]
        .into_iter()
        .find_map(|(mime, format)| {
            let data = display.data.get(mime)?;
            Some(Shown::Image {
                r#type: "image",
                format,
                base64_data: data.replace('\n', ""),
            })
        })
}

/// What is strict JSON is sent as that, digit for digit; anything else as the string that it is.
fn value(text: &str) -> Shown {
    let mut depth = 0_usize;
    let deepest = text.bytes().map(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth
    });
    let text = text.to_owned();
    if deepest.max().unwrap_or(0) > DEPTH || text.trim() == "null" {
        return Shown::Text(text);
    }
    match RawValue::from_string(text.trim().to_owned()) {
        Ok(raw) => Shown::Json(raw),
        Err(_) => Shown::Text(text),
    }
}

fn one_line(error: &RunError) -> String {
    match (error.name.as_str(), error.message.as_str()) {
        (name, "") => name.to_owned(),
        (name, message) => format!("{name}: {message}"),
    }
}

#[cfg(test)]
mod tests;
