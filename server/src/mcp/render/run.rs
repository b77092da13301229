//! A run as an answer: finished, going on, or listed.

use std::{fmt::Write as _, time::Duration};

use greenroom_protocol::{
    FileChange, FileChangeKind, Language, RunList, RunOutcome, RunState, RunStatus, Stream,
};
use greenroom_tool_schemas::{self as schemas, ErrorMeta, FileMeta, RunMeta, StreamMeta};

use super::{
    super::{
        arguments::Form,
        transcript::{Stage, Transcript},
    },
    ANSWER_BYTES, Answer, Heading, Session, absolute,
    azure::azure,
    notes, pictures,
    printed::{LEAST_CHARS, Order, Printed, one_line, printed, traceback},
    text::span,
};
use crate::config::ErrorStyle;

/// Characters of text that hosts show of an answer that is flagged as an error.
const FLAGGED_CHARS: usize = 10_000;

/// How an answer about a run is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunStyle {
    /// Characters of text.
    pub chars: usize,
    /// Whether failures of user code are flagged.
    pub errors: ErrorStyle,
    /// The time limit that the run was started with, where that is known.
    pub timeout: Option<Duration>,
    /// For whom.
    pub form: Form,
}

/// Bytes of one text in the machine-readable part.
const META_BYTES: usize = 16 << 10;

/// Renders a run. An answer that would still be too large, since its characters are long ones, is rendered again
/// with fewer of them.
pub(crate) fn run(heading: &Heading, transcript: &Transcript, mut style: RunStyle) -> Answer {
    loop {
        let answer = match style.form {
            Form::Text => render(heading, transcript, style),
            Form::Azure => azure(heading, transcript, style),
        };
        if style.chars <= LEAST_CHARS || answer.bytes() <= ANSWER_BYTES {
            return answer;
        }
        style.chars /= 2;
    }
}

/// Renders what is known of a run whose sandbox ended under it.
pub(crate) fn lost(heading: &Heading, transcript: &Transcript, style: RunStyle) -> Answer {
    let again = match heading.session {
        Session::None => "The next call gets a fresh sandbox",
        Session::New | Session::Existing | Session::Restarted(..) => "A fresh sandbox is ready",
    };
    let mut text = format!(
        "{}\n\nThe sandbox ended while the code was running. What the code did until then is lost with it, and it was not run \
         again. {again}.",
        heading.lines("failed: lost")
    );
    let seen = printed(transcript, style.chars.min(FLAGGED_CHARS), Order::AsUsual);
    if !seen.text.is_empty() {
        text.push_str("\n\nUntil then it showed:");
        text.push_str(&seen.text);
    }
    let mut meta = heading.meta();
    meta.failure = Some("lost".to_owned());
    Answer {
        text,
        meta,
        is_error: true,
        ..Answer::default()
    }
}

pub(super) fn render(heading: &Heading, transcript: &Transcript, style: RunStyle) -> Answer {
    let status = status(transcript);
    let failed = !matches!(
        status,
        schemas::RunStatus::Ok | schemas::RunStatus::Running | schemas::RunStatus::Queued
    );
    let is_error = failed && style.errors == ErrorStyle::Flag;
    let (budget, order) = if is_error {
        (style.chars.min(FLAGGED_CHARS), Order::TracebackFirst)
    } else {
        (style.chars, Order::AsUsual)
    };
    let (images, mut notes) = pictures::pictures(transcript);
    notes.extend(notes::notes(transcript, style.timeout));
    let mut text = heading.lines(&status_line(status, transcript));
    text.push_str(&lost_kernel(transcript));
    let tail = notes::tail(transcript.outcome(), &notes);
    let around = text.chars().count() + tail.chars().count();
    let printed = printed(transcript, budget.saturating_sub(around), order);
    text.push_str(&printed.text);
    text.push_str(&tail);
    let mut meta = heading.meta();
    meta.run = Some(run_meta(transcript, status, images.len(), &printed));
    meta.files = transcript
        .outcome()
        .map(|outcome| outcome.files.iter().map(file_meta).collect());
    Answer {
        text,
        images,
        meta,
        is_error,
        structured: None,
    }
}

const fn status(transcript: &Transcript) -> schemas::RunStatus {
    match &transcript.stage {
        Stage::Queued { .. } => schemas::RunStatus::Queued,
        Stage::Running => schemas::RunStatus::Running,
        Stage::Finished(outcome) => finished(outcome.status),
    }
}

const fn finished(status: RunStatus) -> schemas::RunStatus {
    match status {
        RunStatus::Ok => schemas::RunStatus::Ok,
        RunStatus::Error => schemas::RunStatus::Error,
        RunStatus::TimedOut => schemas::RunStatus::TimedOut,
        RunStatus::Cancelled => schemas::RunStatus::Cancelled,
        RunStatus::KernelDied => schemas::RunStatus::KernelDied,
    }
}

fn status_line(status: schemas::RunStatus, transcript: &Transcript) -> String {
    let mut line = format!("status: {}", status.as_str());
    if let Some(outcome) = transcript.outcome() {
        let what = match (outcome.status, &outcome.error, outcome.exit_code) {
            // That it was interrupted says nothing new.
            (RunStatus::TimedOut | RunStatus::Cancelled, ..) => None,
            (_, _, Some(code)) if code != 0 => Some(format!("exit code {code}")),
            (_, Some(error), _) => Some(one_line(&error.name)),
            (_, None, _) => None,
        };
        if let Some(what) = what {
            let _ = write!(line, " ({what})");
        }
        let _ = write!(line, " · {}", span(duration(outcome)));
    } else {
        let _ = write!(
            line,
            " · run_id: {} · {} so far",
            transcript.id.0,
            span(Duration::from_millis(transcript.at_ms))
        );
    }
    line
}

/// A kernel that died, and no answer has said so yet, took its variables along: that stands at the top, like a
/// restart of the sandbox.
pub(super) fn lost_kernel(transcript: &Transcript) -> String {
    let Some(error) = &transcript.lost else {
        return String::new();
    };
    let language = transcript.language.as_ref().map_or("kernel", Language::as_str);
    let how = one_line(&traceback(error));
    format!("\n{language} was restarted ({how}): its earlier variables and imports are gone, files are kept")
}

fn duration(outcome: &RunOutcome) -> Duration {
    // What comes from inside may be negative, infinite or no number.
    Duration::try_from_secs_f64(outcome.duration_ms / 1000.0).unwrap_or_default()
}

fn run_meta(
    transcript: &Transcript,
    status: schemas::RunStatus,
    images: usize,
    printed: &Printed,
) -> RunMeta {
    let outcome = transcript.outcome();
    let stream = |which, truncated| {
        let summary = transcript.summary(which);
        StreamMeta {
            bytes: summary.bytes,
            truncated,
            path: summary.path.as_deref().map(absolute),
        }
    };
    RunMeta {
        run_id: transcript.id.0.clone(),
        status,
        language: transcript
            .language
            .map_or_else(String::new, |language| language.to_string()),
        duration_ms: outcome
            .map(|outcome| outcome.duration_ms)
            .filter(|ms| ms.is_finite()),
        stdout: stream(Stream::Stdout, printed.stdout_truncated),
        stderr: stream(Stream::Stderr, printed.stderr_truncated),
        error: outcome
            .and_then(|outcome| outcome.error.as_ref())
            .map(|error| ErrorMeta {
                name: bounded(&error.name),
                message: error.message.clone(),
            }),
        result: outcome.and_then(|outcome| outcome.result.clone()),
        exit_code: outcome.and_then(|outcome| outcome.exit_code),
        images,
        next: transcript.next,
    }
}

/// What programs get of a long text; they have the files for the rest.
fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(META_BYTES)].to_owned()
}

fn file_meta(file: &FileChange) -> FileMeta {
    let change = match file.change {
        FileChangeKind::Created => "created",
        FileChangeKind::Modified => "modified",
        FileChangeKind::Deleted => "deleted",
    };
    FileMeta {
        path: file.path.clone(),
        size: file.size,
        change: Some(change.to_owned()),
        ..FileMeta::default()
    }
}

/// Renders the list of runs.
pub(crate) fn runs(heading: &Heading, list: &RunList) -> Answer {
    let mut text = heading.lines(&format!("{} run(s)", list.runs.len()));
    for run in &list.runs {
        let state = match run.state {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Finished(status) => status.as_str(),
        };
        let age = span(Duration::from_millis(run.age_ms));
        let _ = write!(
            text,
            "\n{} · {state} · {} · started {age} ago · {}",
            run.id.0, run.language, run.title
        );
    }
    Answer {
        text,
        meta: heading.meta(),
        ..Answer::default()
    }
}
