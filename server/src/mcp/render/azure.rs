//! A run as the tools of Azure's dynamic sessions answer it: JSON, and the same as a text.

use greenroom_protocol::{RunOutcome, RunStatus, Stream};
use serde_json::{Map, Value, json};

use super::{
    super::transcript::{Captured, Transcript},
    Answer, Heading, Session, notes, pictures,
    printed::{LEAST_CHARS, says_more, traceback, whereabouts},
    run::{RunStyle, lost_kernel, render},
    session_words,
    text::{cut, share},
};

/// What a run that did not end by itself exits with: as `timeout(1)` does.
const STOPPED: i32 = 124;

/// An environment that has a name, and nothing else yet.
pub(in crate::mcp) fn launched(id: &str) -> Answer {
    with(Answer::default(), json!({ "environmentId": id }))
}

/// Renders a run. What Azure's contract has no word for, such as state that was lost, is said in further fields.
pub(super) fn azure(heading: &Heading, transcript: &Transcript, style: RunStyle) -> Answer {
    let told = render(heading, transcript, style);
    let mut stderr = transcript.stderr.clone();
    let outcome = transcript.outcome();
    if let Some(error) =
        outcome.and_then(|outcome| outcome.error.as_ref().filter(|error| says_more(error, outcome)))
    {
        if !stderr.text.is_empty() && !stderr.text.ends_with('\n') {
            stderr.text.push('\n');
        }
        stderr.text.push_str(&traceback(error));
    }
    let result = outcome.and_then(|outcome| outcome.result.clone());
    let chars = |text: &str| text.chars().count();
    let needs = [
        chars(&transcript.stdout.text),
        chars(&stderr.text),
        result.as_deref().map_or(0, chars),
    ];
    let shares = share(style.chars.max(LEAST_CHARS), &needs);
    let whole = |stream| whereabouts(&transcript.summary(stream));
    let mut fields = Map::new();
    let mut say = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    say(
        "stdout",
        cut(&transcript.stdout, shares[0], whole(Stream::Stdout).as_deref())
            .text
            .into(),
    );
    say(
        "stderr",
        cut(&stderr, shares[1], whole(Stream::Stderr).as_deref())
            .text
            .into(),
    );
    match outcome {
        Some(outcome) => {
            say("exitCode", exit_code(outcome).into());
            // Whole milliseconds; what comes from inside may be no number, and saturates.
            say("executionTimeInMilliseconds", (outcome.duration_ms as u64).into());
        }
        None => {
            say("status", "running".into());
            say("runId", transcript.id.0.clone().into());
        }
    }
    if let Some(result) = result {
        let whole = Captured {
            text: result,
            ..Captured::default()
        };
        say("result", cut(&whole, shares[2], None).text.into());
    }
    if heading.session != Session::Existing {
        say("session", session_words(heading.session).into());
    }
    let (_, mut notes) = pictures::pictures(transcript);
    notes.extend(notes::notes(transcript, style.timeout));
    let lost = lost_kernel(transcript);
    if !lost.is_empty() {
        notes.insert(0, lost.trim().to_owned());
    }
    if !notes.is_empty() {
        say("notes", notes.into());
    }
    with(told, fields.into())
}

/// The same answer in another form.
fn with(answer: Answer, structured: Value) -> Answer {
    Answer {
        text: structured.to_string(),
        structured: Some(structured),
        ..answer
    }
}

fn exit_code(outcome: &RunOutcome) -> i32 {
    match (outcome.status, outcome.exit_code) {
        (RunStatus::Ok, code) => code.unwrap_or(0),
        (RunStatus::TimedOut | RunStatus::Cancelled, _) => STOPPED,
        (RunStatus::Error | RunStatus::KernelDied, code) => code.filter(|code| *code != 0).unwrap_or(1),
    }
}
