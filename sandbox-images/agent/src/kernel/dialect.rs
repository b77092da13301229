//! How a language's process is started and spoken to: the words that differ from one to another.

use std::{collections::BTreeMap, fmt, os::fd::OwnedFd, path::PathBuf, process::Command};

use greenroom_protocol::{Language, RunError};
use serde::Serialize;

use super::KernelError;
use crate::child::Quarters;

/// How a kernel's process is started and spoken to.
pub(super) trait Dialect: fmt::Debug + Send + Sync + 'static {
    /// What it runs.
    fn language(&self) -> Language;

    /// The command that starts the process, with these ends as its descriptors.
    fn command(&self, quarters: &Quarters, ends: Ends) -> Result<Command, KernelError>;

    /// What the process hears first. It answers [`Reply::Ready`] or [`Reply::Failed`].
    fn opening(&self) -> String;

    /// What begins a run. It is answered by [`Reply::Done`], if the process lives.
    fn request(&mut self, run: &Request<'_>) -> String;

    /// What is said on the line, now and then, for a process that can lose a line to an interrupt: while
    /// the code has not begun; and, with another interrupt, since it can miss one too, once it was interrupted.
    fn remind(&self) -> Option<String> {
        None
    }

    /// What the process wants to hear when [`Reply::Shown`] has been placed after the output before it.
    fn shown(&self) -> Option<&'static str> {
        None
    }

    /// What a process answers with [`Reply::Settled`] once no interrupt of an earlier run can reach it any more,
    /// for one that would take it for one of the next run, or lose that to it.
    fn settle(&self) -> Option<String> {
        None
    }

    /// Whose memory counts, if not that of the process itself.
    fn weighed(&self) -> Option<i32> {
        None
    }

    /// Where the process reads what it is told.
    fn hears(&self) -> Hears {
        Hears::Line
    }

    /// Whether the process says [`Reply::Began`].
    fn says_when_it_begins(&self) -> bool;

    /// Understands a line.
    fn reply(&self, line: &str) -> Result<Reply, String>;
}

/// Where a process reads what it is told. What it has to say goes over the line in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hears {
    /// On the line.
    Line,
    /// From a file that it opens by its name.
    Fifo,
}

/// The process's ends of what connects it to the agent.
#[derive(Debug)]
pub(super) struct Ends {
    /// The line.
    pub(super) talk: OwnedFd,
    /// Where [`Hears::Fifo`] is, and nowhere else.
    pub(super) fifo: Option<PathBuf>,
    /// Where ticks arrive.
    pub(super) tick: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// One run, as a dialect puts it into words.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) code: &'a str,
    /// Where images are saved: an absolute path, but for a number and an ending.
    pub(super) figures: &'a str,
    /// Where the whole of a traceback is written that is shown in part: an absolute path.
    pub(super) traceback: &'a str,
}

/// What a kernel's process says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It waits for code; its version for people.
    Ready(String),
    /// It cannot be started, and why.
    Failed(String),
    /// It has answered [`Dialect::settle`].
    Settled,
    /// The code runs.
    Began,
    /// The code shows something.
    Shown(Shown),
    /// The code is over, and its output in the pipes.
    Done(Done),
    /// Nothing that matters now.
    Nothing,
}

/// Something rich.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) data: BTreeMap<String, String>,
    /// What completes [`Request::figures`], if an image was saved there.
    pub(super) image: Option<String>,
}

/// How the code ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) failed: bool,
    pub(super) error: Option<RunError>,
    pub(super) result: Option<String>,
    pub(super) exit_code: Option<i32>,
}

impl Done {
    /// As a process reports it that has no exit code for a run.
    pub(super) const fn reported(error: Option<RunError>, result: Option<String>) -> Self {
        Self {
            failed: error.is_some(),
            error,
            result,
            exit_code: None,
        }
    }
}

/// A message to a process as a line. Its parts are strings and numbers: there is nothing that JSON cannot say.
pub(super) fn line(message: &impl Serialize) -> String {
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}
