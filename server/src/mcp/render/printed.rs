//! What a run printed, showed and raised, as text that shares a budget of characters.

use std::fmt::Write as _;

use greenroom_protocol::{RunError, RunOutcome, Stream, StreamSummary};

use super::{
    super::transcript::{Captured, Display, Transcript},
    absolute,
    pictures::image_of,
    text::{cut, share, size, tidy},
};

/// Characters that a text has at least for what the code wrote, however long the rest is.
pub(super) const LEAST_CHARS: usize = 500;

/// A part of the text that shares the budget.
struct Section {
    label: &'static str,
    content: Captured,
    whereabouts: Option<String>,
}

/// What comes first of what a run showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Output before errors.
    AsUsual,
    /// Hosts cut the text of an error: what was raised comes before what was printed.
    TracebackFirst,
}

/// What a run showed, as text within a budget.
pub(super) struct Printed {
    pub(super) text: String,
    pub(super) stdout_truncated: bool,
    pub(super) stderr_truncated: bool,
}

pub(super) fn printed(transcript: &Transcript, budget: usize, order: Order) -> Printed {
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
        let part = cut(&section.content, share, section.whereabouts.as_deref());
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

fn sections(transcript: &Transcript) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut add = |label, content: &Captured, whereabouts: Option<String>| {
        let content = tidy(content);
        if !content.text.trim().is_empty() || content.has_gaps() {
            sections.push(Section {
                label,
                content,
                whereabouts,
            });
        }
    };
    let text = |text: &str| Captured {
        text: text.to_owned(),
        ..Captured::default()
    };
    let whole = |stream| whereabouts(&transcript.summary(stream));
    add(
        "printed since the last run, by what that left behind",
        &transcript.late,
        None,
    );
    add(STDOUT, &transcript.stdout, whole(Stream::Stdout));
    let shown: Vec<&str> = transcript.displays.iter().filter_map(words).collect();
    add("display", &text(&shown.join("\n\n")), None);
    if let Some(outcome) = transcript.outcome() {
        add(
            "result",
            &text(outcome.result.as_deref().unwrap_or_default()),
            None,
        );
    }
    let outcome = transcript.outcome();
    if transcript.stderr.has_gaps() {
        add(STDERR, &transcript.stderr, whole(Stream::Stderr));
    } else {
        add(
            STDERR,
            &text(&without_noise(&transcript.stderr.text)),
            whole(Stream::Stderr),
        );
    }
    if let Some(error) =
        outcome.and_then(|outcome| outcome.error.as_ref().filter(|error| says_more(error, outcome)))
    {
        add(TRACEBACK, &text(&traceback(error)), None);
    }
    sections
}

/// Where a stream lies that is not all shown, if it was saved.
pub(super) fn whereabouts(stream: &StreamSummary) -> Option<String> {
    let path = absolute(stream.path.as_deref()?);
    Some(match stream.spilled {
        None => format!("all of it is in {path}"),
        Some(first) => format!("its first {} are in {path}", size(first)),
    })
}

/// What kernels say that helps nobody: a Python that crashes names the frames around the code and all compiled modules,
/// and a bash without a terminal misses it when a child dies of a signal.
fn without_noise(stderr: &str) -> String {
    const BEGIN: [&str; 3] = [
        "Extension modules: ",
        "  File \"<greenroom>\", line ",
        "  File \"<string>\", line 1 in <module>",
    ];
    let is_noise = |line: &str| {
        BEGIN.iter().any(|noise| line.starts_with(noise))
            || (line.starts_with("bash: [") && line.contains("] tcsetattr: Inappropriate ioctl for device"))
    };
    stderr
        .split_inclusive('\n')
        .filter(|line| !is_noise(line))
        .collect()
}

/// Whether an error says more than the exit code in the status line.
pub(super) fn says_more(error: &RunError, outcome: &RunOutcome) -> bool {
    !error.traceback.is_empty() || outcome.exit_code.is_none_or(|code| code == 0)
}

/// The traceback, or name and message where there is none.
pub(super) fn traceback(error: &RunError) -> String {
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
    [
        "image/svg+xml",
        "text/markdown",
        "text/plain",
        "text/latex",
        "application/json",
    ]
    .into_iter()
    .find_map(|mime| display.data.get(mime).map(String::as_str))
}

/// A text of a run on one line, as a status line takes it.
pub(super) fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}
