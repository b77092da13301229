//! What a run printed, showed and raised, as text that shares a budget of characters.

use std::fmt::Write as _;

use greenroom_protocol::{RunError, RunOutcome, Stream};

use super::{
    super::transcript::{Captured, Display, Transcript},
    absolute,
    pictures::image_of,
    text::{cut, share, tidy},
};

/// Characters that a text has at least for what the code wrote, however long the rest is.
pub(super) const LEAST_CHARS: usize = 500;

/// A part of the text that shares the budget.
struct Section {
    label: &'static str,
    content: Captured,
    path: Option<String>,
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

fn sections(transcript: &Transcript) -> Vec<Section> {
    let mut sections = Vec::new();
    let mut add = |label, content: &Captured, path: Option<String>| {
        let content = tidy(content);
        if !content.text.trim().is_empty() || content.has_gaps() {
            sections.push(Section { label, content, path });
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
