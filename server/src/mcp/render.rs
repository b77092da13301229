//! Answers: the one place that shapes what callers read. Nothing here knows the protocol that carries them.
//!
//! A text begins with a status line, so that a client which cuts shows what matters: then standard output, the
//! result, standard error or a traceback, changed files, notes. Text is complete without the machine-readable
//! part, which repeats it for programs.

mod azure;
mod files;
mod hints;
mod links;
mod notes;
mod pictures;
mod printed;
mod run;
mod text;

#[cfg(test)]
mod tests;

use chrono::{DateTime, SecondsFormat};
use greenroom_protocol::{ArchiveFault, FilesFate, RestartReason, Standing, WORK_DIR};
use greenroom_tool_schemas::{ResultMeta, SessionState};
use serde_json::Value;

use crate::{conversation::ConversationId, error::Failure};

pub(super) use self::{
    azure::launched,
    files::{Content, Text, deleted, downloaded, listed, uploaded},
    links::{Reach, download_link, saved, upload_link},
    run::{RunStyle, lost, run, runs},
    text::span,
};

/// Bytes of a whole answer, base64 included: hosts cut at 1 MiB, and the envelope needs some.
const ANSWER_BYTES: usize = 900_000;

/// What one call answers, before any protocol wraps it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// All text.
    pub text: String,
    /// Images after it.
    pub images: Vec<Image>,
    /// For programs.
    pub meta: ResultMeta,
    /// For programs that know another contract: the text says the same.
    pub structured: Option<Value>,
    /// Whether Greenroom could not do what was asked.
    pub is_error: bool,
}

/// An image block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Base64.
    pub data: String,
    /// `image/png` or `image/jpeg`.
    pub mime: &'static str,
}

/// Which conversation an answer is for, and how its call found the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Heading {
    /// The conversation, as the caller knows it.
    pub conversation: ConversationId,
    /// Whether the text has to tell it.
    pub tell: Tell,
    /// How the session was found.
    pub session: Session,
}

/// Whether a text has to tell the conversation's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// Without it the conversation would be lost.
    Yes,
    /// The caller knows it.
    No,
}

/// How a call found its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// Nothing from earlier exists.
    New,
    /// It goes on.
    Existing,
    /// An earlier sandbox is gone.
    Restarted(RestartReason, FilesFate),
    /// There is none, and none was made.
    None,
}

impl From<&Standing> for Session {
    fn from(standing: &Standing) -> Self {
        match standing {
            Standing::New => Self::New,
            Standing::Existing => Self::Existing,
            Standing::Restarted { reason, files } => Self::Restarted(*reason, *files),
        }
    }
}

impl Session {
    /// The word for programs.
    pub(super) const fn state(self) -> SessionState {
        match self {
            Self::New => SessionState::New,
            Self::Existing => SessionState::Existing,
            Self::Restarted(..) => SessionState::Restarted,
            Self::None => SessionState::None,
        }
    }
}

impl Heading {
    /// The first lines of a text: what came of the call, how it found its session, and which one that is.
    fn lines(&self, status: &str) -> String {
        let mut lines = format!("{status} · session: {}", session_words(self.session));
        if self.tell == Tell::Yes && self.session != Session::None {
            lines.push_str("\nconversation_id: ");
            lines.push_str(self.conversation.as_str());
            lines.push_str(" (pass it on in every later call)");
        }
        lines
    }

    fn meta(&self) -> ResultMeta {
        let (reason, kept) = match self.session {
            Session::Restarted(reason, files) => (Some(reason.as_str().to_owned()), as_of(files)),
            Session::New | Session::Existing | Session::None => (None, None),
        };
        ResultMeta {
            conversation_id: Some(self.conversation.as_str().to_owned()),
            session: self.session.state(),
            restart_reason: reason,
            files_kept_as_of: kept,
            ..ResultMeta::default()
        }
    }

    /// An answer of one sentence.
    pub(super) fn sentence(&self, status: &str, rest: &str) -> Answer {
        Answer {
            text: format!("{}\n\n{rest}", self.lines(status)),
            meta: self.meta(),
            ..Answer::default()
        }
    }
}

impl Answer {
    /// Bytes on the wire, near enough: text and data as JSON, base64 as it is.
    fn bytes(&self) -> usize {
        let images: usize = self.images.iter().map(|image| image.data.len()).sum();
        let json = |length: Result<String, serde_json::Error>| length.map_or(0, |json| json.len());
        images + json(serde_json::to_string(&self.text)) + json(serde_json::to_string(&self.meta))
    }

    /// A failure of a call that has no conversation yet.
    pub(super) fn failed(failure: &Failure) -> Self {
        let status = format!("failed: {} · session: none", failure.kind.as_str());
        Self {
            text: format!("{status}\n\n{}", sentence(&failure.text)),
            meta: ResultMeta {
                failure: Some(failure.kind.as_str().to_owned()),
                ..ResultMeta::default()
            },
            is_error: true,
            ..Self::default()
        }
    }
}

impl Heading {
    /// A failure.
    pub(super) fn failed(&self, failure: &Failure) -> Answer {
        let mut answer = self.sentence(
            &format!("failed: {}", failure.kind.as_str()),
            &sentence(&failure.text),
        );
        answer.meta.failure = Some(failure.kind.as_str().to_owned());
        answer.is_error = true;
        answer
    }
}

/// An error's fragment as a sentence.
fn sentence(text: &str) -> String {
    let text = text::plain(text);
    if text.ends_with(['.', '!', '?']) {
        text.into_owned()
    } else {
        format!("{text}.")
    }
}

fn session_words(session: Session) -> String {
    match session {
        Session::New => "new (nothing from earlier exists)".to_owned(),
        Session::Existing => "existing".to_owned(),
        Session::None => "none".to_owned(),
        Session::Restarted(reason, files) => restarted_words(reason_words(reason), files),
    }
}

/// What is lost and what is not: variables always are.
fn restarted_words(reason: &str, files: FilesFate) -> String {
    let fault = match files {
        FilesFate::Kept { left_out, .. } => {
            let but = match left_out {
                0 => String::new(),
                n => format!(", but for {n} that could not be read"),
            };
            let as_of = as_of(files).unwrap_or_else(|| "an unknown time".to_owned());
            return format!(
                "restarted (the earlier sandbox is gone: {reason}; variables are lost, files are kept as of {as_of}{but})"
            );
        }
        FilesFate::Gone => {
            return format!(
                "restarted (the earlier sandbox is gone, with its variables and files: {reason}; this one is fresh)"
            );
        }
        FilesFate::Refused { fault } => match fault {
            ArchiveFault::Corrupt => "is damaged",
            ArchiveFault::TooLarge => "is larger than is allowed",
            ArchiveFault::Unreadable => "could not be read",
            ArchiveFault::NotUnpacked => "could not be unpacked",
        },
    };
    format!(
        "restarted (the earlier sandbox is gone, with its variables and files: {reason}; the archive of its files {fault}, so \
         none of it is used; this one is fresh)"
    )
}

/// The time of kept files, in seconds of UTC. What an agent says may be no time at all.
fn as_of(files: FilesFate) -> Option<String> {
    let FilesFate::Kept { as_of_ms, .. } = files else {
        return None;
    };
    let time = DateTime::from_timestamp_millis(i64::try_from(as_of_ms).ok()?)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// Why an earlier sandbox is gone, for a model.
const fn reason_words(reason: RestartReason) -> &'static str {
    match reason {
        RestartReason::Idle => "it was idle for too long",
        RestartReason::Lifetime => "its lifetime was over",
        RestartReason::Reset => "it was reset on request",
        RestartReason::Evicted => "it made room for another conversation",
        RestartReason::OutOfMemory => "it ran out of memory",
        RestartReason::EndedInside => "something that ran in it ended it",
        RestartReason::Removed => "it was removed from outside, or its host restarted",
        RestartReason::Unresponsive => "it stopped answering",
        RestartReason::Exited => "the program of its image ended",
        RestartReason::Unhealthy => "the program of its image stopped answering its liveness probe",
        RestartReason::NoLongerOnRecord => "no record says any more how it ended",
    }
}

/// A path as callers see it. The agent sends paths relative to the work directory.
fn absolute(path: &str) -> String {
    format!("{WORK_DIR}/{}", text::name(path))
}
