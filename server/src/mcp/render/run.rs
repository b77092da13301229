//! A run as an answer: finished, going on, or listed.

use std::{fmt::Write as _, time::Duration};

use greenroom_protocol::{
    FileChange, FileChangeKind, KernelFate, Language, RunError, RunList, RunOutcome, RunState, RunStatus,
    Stream, limits,
};
use greenroom_tool_schemas::{self as schemas, ErrorMeta, FileMeta, RunMeta, StreamMeta};

use super::{
    super::transcript::{Captured, Display, Stage, Transcript},
    ANSWER_BYTES, Answer, Heading, Image, Session, absolute,
    text::{cut, name, share, size, span},
};
use crate::config::ErrorStyle;

/// Characters of text that hosts show of an answer that is flagged as an error.
const FLAGGED_CHARS: usize = 10_000;

/// Characters that a text has at least for what the code wrote, however long the rest is.
const LEAST_CHARS: usize = 500;

/// How an answer about a run is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunStyle {
    /// Characters of text.
    pub chars: usize,
    /// Whether failures of user code are flagged.
    pub errors: ErrorStyle,
    /// The time limit that the run was started with, where that is known.
    pub timeout: Option<Duration>,
}

/// Bytes of one text in the machine-readable part.
const META_BYTES: usize = 16 << 10;

/// A part of the text that shares the budget.
struct Section {
    label: &'static str,
    content: Captured,
    path: Option<String>,
}

/// Renders a run. An answer that would still be too large, since its characters are long ones, is rendered again
/// with fewer of them.
pub(crate) fn run(heading: &Heading, transcript: &Transcript, mut style: RunStyle) -> Answer {
    loop {
        let answer = render(heading, transcript, style);
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
        Session::New | Session::Existing | Session::Restarted(_) => "A fresh sandbox is ready",
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

fn render(heading: &Heading, transcript: &Transcript, style: RunStyle) -> Answer {
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
    let (images, mut notes) = images(transcript);
    notes.extend(state_notes(transcript, style.timeout));
    let mut text = heading.lines(&status_line(status, transcript));
    text.push_str(&lost_kernel(transcript));
    let tail = tail(transcript.outcome(), &notes);
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
    }
}

/// What comes first of what a run showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Output before errors.
    AsUsual,
    /// Hosts cut the text of an error: what was raised comes before what was printed.
    TracebackFirst,
}

/// What a run showed, as text within a budget.
struct Printed {
    text: String,
    stdout_truncated: bool,
    stderr_truncated: bool,
}

fn printed(transcript: &Transcript, budget: usize, order: Order) -> Printed {
    let mut sections = sections(transcript);
    if order == Order::TracebackFirst {
        sections.sort_by_key(|section| section.label != TRACEBACK);
    }
    let labels: usize = sections.iter().map(|section| section.label.len() + 4).sum();
    let needs: Vec<usize> = sections
        .iter()
        .map(|section| section.content.text.chars().count())
        .collect();
    let shares = share(budget.saturating_sub(labels).max(LEAST_CHARS), &needs);
    let mut printed = Printed {
        text: String::new(),
        stdout_truncated: false,
        stderr_truncated: false,
    };
    for (section, share) in sections.iter().zip(shares) {
        let part = cut(&section.content, share, section.path.as_deref());
        // Writing to a String cannot fail.
        let _ = write!(
            printed.text,
            "\n\n{}:\n{}",
            section.label,
            part.text.trim_end_matches('\n')
        );
        printed.stdout_truncated |= section.label == STDOUT && part.truncated;
        printed.stderr_truncated |= section.label == STDERR && part.truncated;
    }
    printed
}

const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const TRACEBACK: &str = "traceback";

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

/// A kernel that died between runs took its variables along: that stands at the top, like a restart.
fn lost_kernel(transcript: &Transcript) -> String {
    let Some(error) = &transcript.lost else {
        return String::new();
    };
    let language = transcript.language.map_or("kernel", Language::as_str);
    let how = one_line(&traceback(error));
    format!(
        "\n{language} died since its last run ({how}): its earlier variables and imports are gone, files are kept"
    )
}

fn duration(outcome: &RunOutcome) -> Duration {
    // What comes from inside may be negative, infinite or no number.
    Duration::try_from_secs_f64(outcome.duration_ms / 1000.0).unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn sections(transcript: &Transcript) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut add = |label, content: &Captured, path: Option<String>| {
        if !content.text.trim().is_empty() || content.has_gaps() {
            sections.push(Section {
                label,
                content: content.clone(),
                path,
            });
        }
    };
    let text = |text: &str| Captured {
        text: text.to_owned(),
        ..Captured::default()
    };
    let path = |stream| transcript.summary(stream).path.as_deref().map(absolute);
    add(
        "printed since the last run, by what that left behind",
        &transcript.late,
        None,
    );
    add(STDOUT, &transcript.stdout, path(Stream::Stdout));
    let shown: Vec<&str> = transcript.displays.iter().filter_map(words).collect();
    add("display", &text(&shown.join("\n\n")), None);
    if let Some(outcome) = transcript.outcome() {
        add(
            "result",
            &text(outcome.result.as_deref().unwrap_or_default()),
            None,
        );
    }
    add(STDERR, &transcript.stderr, path(Stream::Stderr));
    let outcome = transcript.outcome();
    if let Some(error) =
        outcome.and_then(|outcome| outcome.error.as_ref().filter(|error| says_more(error, outcome)))
    {
        add(TRACEBACK, &text(&traceback(error)), None);
    }
    sections
}

/// Whether an error says more than the exit code in the status line.
fn says_more(error: &RunError, outcome: &RunOutcome) -> bool {
    !error.traceback.is_empty() || outcome.exit_code.is_none_or(|code| code == 0)
}

/// The traceback, or name and message where there is none.
fn traceback(error: &RunError) -> String {
    if !error.traceback.trim().is_empty() {
        return error.traceback.clone();
    }
    match (error.name.as_str(), error.message.as_str()) {
        (name, "") => name.to_owned(),
        (name, message) => format!("{name}: {message}"),
    }
}

/// The text of a rich result that is no image.
fn words(display: &Display) -> Option<&str> {
    if image_of(display).is_some() {
        return None;
    }
    ["text/markdown", "text/plain", "text/latex", "application/json"]
        .into_iter()
        .find_map(|mime| display.data.get(mime).map(String::as_str))
}

fn image_of(display: &Display) -> Option<(&'static str, &String)> {
    ["image/png", "image/jpeg"]
        .into_iter()
        .find_map(|mime| display.data.get(mime).map(|data| (mime, data)))
}

/// Image blocks as far as they fit, and what to say of them.
fn images(transcript: &Transcript) -> (Vec<Image>, Vec<String>) {
    let (mut blocks, mut notes, mut bytes, mut unsent) = (Vec::new(), Vec::new(), 0, 0);
    for (number, display) in transcript.displays.iter().enumerate() {
        let Some((mime, data)) = image_of(display) else {
            continue;
        };
        // Base64 as the agent writes it has no line ends; anything else is not an image.
        let sound = !data.is_empty()
            && data
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        let fits = bytes + data.len() <= ANSWER_BYTES - 300_000
            && data.len() <= limits::IMAGE_BYTES.div_ceil(3) * 4
            && blocks.len() < limits::IMAGES;
        if sound && fits {
            bytes += data.len();
            blocks.push(Image {
                data: data.clone(),
                mime,
            });
            if let Some(path) = &display.path {
                notes.push(format!("image {}: saved as {}", blocks.len(), absolute(path)));
            }
        } else {
            unsent += 1;
            if let Some(path) = &display.path {
                notes.push(format!(
                    "display {}: an image that did not fit, saved as {}",
                    number + 1,
                    absolute(path)
                ));
            }
        }
    }
    let unsent = unsent
        + transcript
            .outcome()
            .map_or(0, |outcome| outcome.images_omitted as usize);
    if unsent > 0 {
        notes.push(format!(
            "{unsent} more image(s) are not shown: an answer has at most {}",
            limits::IMAGES
        ));
    }
    if transcript.displays_dropped > 0 {
        notes.push(format!(
            "{} more displays are not shown",
            transcript.displays_dropped
        ));
    }
    (blocks, notes)
}

/// What is left of the state, and what to do next.
fn state_notes(transcript: &Transcript, timeout: Option<Duration>) -> Vec<String> {
    let language = transcript.language.map_or("kernel", Language::as_str);
    let Some(outcome) = transcript.outcome() else {
        return vec![going_on(transcript)];
    };
    let what = match outcome.status {
        RunStatus::Ok | RunStatus::Error => None,
        RunStatus::TimedOut => Some(match timeout {
            Some(limit) => format!("the run was stopped at its limit of {}", span(limit)),
            None => "the run was stopped at its time limit".to_owned(),
        }),
        RunStatus::Cancelled => Some("the run was cancelled".to_owned()),
        RunStatus::KernelDied => Some(format!("{language} died during the run")),
    };
    let left = match (outcome.kernel, &what) {
        (KernelFate::Kept, None) => return Vec::new(),
        (KernelFate::Kept, Some(_)) => "Variables and files are kept".to_owned(),
        (KernelFate::Restarted, _) => {
            format!("{language} was restarted: its variables and imports are gone, files are kept")
        }
    };
    vec![what.map_or_else(|| left.clone(), |what| format!("{what}. {left}"))]
}

fn going_on(transcript: &Transcript) -> String {
    let (id, next) = (&transcript.id.0, transcript.next);
    let what = match &transcript.stage {
        Stage::Queued { behind: Some(behind) } => format!("the run waits behind run {}", behind.0),
        Stage::Queued { behind: None } => "the run is about to start".to_owned(),
        Stage::Running | Stage::Finished(_) => "the run goes on in the background".to_owned(),
    };
    format!(
        "{what}. For the rest call get_run with run_id {id:?}, since {next} and wait_seconds 50; cancel_run stops it"
    )
}

/// Changed files and notes.
fn tail(outcome: Option<&RunOutcome>, notes: &[String]) -> String {
    let mut tail = String::new();
    let files = outcome
        .map(|outcome| outcome.files.as_slice())
        .unwrap_or_default();
    if !files.is_empty() {
        tail.push_str("\n\nfiles:");
        for file in files {
            let _ = match file.change {
                FileChangeKind::Deleted => write!(tail, "\n  deleted {}", name(&file.path)),
                FileChangeKind::Created => {
                    write!(tail, "\n  created {} ({})", name(&file.path), size(file.size))
                }
                FileChangeKind::Modified => {
                    write!(tail, "\n  changed {} ({})", name(&file.path), size(file.size))
                }
            };
        }
        if files.len() >= limits::CHANGED_FILES {
            tail.push_str("\n  … and perhaps more: list_files shows all");
        }
    }
    if !notes.is_empty() {
        tail.push('\n');
    }
    for note in notes {
        let _ = write!(tail, "\nnote: {note}.");
    }
    tail
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
        kind: None,
    }
}

/// Renders the list of runs.
pub(crate) fn runs(heading: &Heading, list: &RunList) -> Answer {
    let mut text = heading.lines(&format!("{} run(s)", list.runs.len()));
    for run in &list.runs {
        let state = match run.state {
            RunState::Queued => "queued",
            RunState::Running => "running",
            RunState::Finished(status) => finished(status).as_str(),
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
