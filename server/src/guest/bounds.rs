//! What an agent may say: every list, text and number of an answer is held against the protocol's limits.
//!
//! Bytes are bounded where they are read; here it is the meaning. What is for people is escaped and cut,
//! what breaks a limit is refused.

use greenroom_protocol::{
    AppLog, FileList, Hello, KeyDigest, LeaseGrant, LeaseState, Packages, RunEventKind, RunId, RunList,
    limits,
};

use super::error::{GuestError, shown};

/// Characters of an id or a boot's name.
const NAME: usize = 128;
/// MIME types of one result.
const FEW: usize = 16;
/// A path as it is shown: each byte may have become `\xNN`.
const SHOWN_PATH: usize = limits::PATH_BYTES * 4;

/// Holds an answer against the limits, and makes its texts safe to show.
pub(super) trait Bounded: Sized {
    /// # Errors
    /// [`GuestError::Protocol`] names what broke a limit.
    fn bounded(self) -> Result<Self, GuestError>;
}

/// A byte of a log may have become `\\xNN`.
impl Bounded for AppLog {
    fn bounded(self) -> Result<Self, GuestError> {
        at_most(
            "bytes of a log's head",
            self.head.len(),
            4 * (limits::LOG_HEAD + limits::LOG_TAIL),
        )?;
        at_most("bytes of a log's tail", self.tail.len(), 4 * limits::LOG_TAIL)?;
        Ok(Self {
            head: lines(&self.head),
            tail: lines(&self.tail),
            ..self
        })
    }
}

/// The same text, where what does not print but breaks lines is escaped.
pub(crate) fn lines(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && !matches!(character, '\n' | '\t') {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

fn at_most(what: &str, count: usize, limit: usize) -> Result<(), GuestError> {
    if count > limit {
        Err(GuestError::protocol(format!(
            "{count} {what}, the limit is {limit}"
        )))
    } else {
        Ok(())
    }
}

fn name(what: &str, text: &str) -> Result<(), GuestError> {
    at_most(&format!("characters of {what}"), text.len(), NAME)?;
    if text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(())
    } else {
        Err(GuestError::protocol(format!("{what} {text:?} is no name")))
    }
}

fn path(text: &str) -> Result<(), GuestError> {
    at_most("bytes of a path", text.len(), SHOWN_PATH)
}

fn run_id(id: &RunId) -> Result<(), GuestError> {
    if id.is_valid() {
        Ok(())
    } else {
        Err(GuestError::protocol(format!("{:?} is no run's id", id.0)))
    }
}

fn key(digest: &KeyDigest) -> Result<(), GuestError> {
    name("a session's key", &digest.0)
}

impl Bounded for Hello {
    fn bounded(mut self) -> Result<Self, GuestError> {
        name("a boot's name", &self.boot)?;
        at_most("kernels", self.kernels.len(), limits::KERNELS)?;
        self.version = shown(&self.version);
        self.failed = self.failed.as_deref().map(shown);
        self.platform.kernel = shown(&self.platform.kernel);
        for kernel in &mut self.kernels {
            kernel.version = kernel.version.as_deref().map(shown);
        }
        self.lease = self.lease.bounded()?;
        Ok(self)
    }
}

impl Bounded for LeaseGrant {
    fn bounded(self) -> Result<Self, GuestError> {
        name("a boot's name", &self.boot)?;
        Ok(self)
    }
}

impl Bounded for LeaseState {
    fn bounded(self) -> Result<Self, GuestError> {
        match &self {
            Self::Bound(view) => key(&view.key)?,
            Self::Unbound | Self::Ending(_) => {}
        }
        Ok(self)
    }
}

impl Bounded for RunList {
    fn bounded(mut self) -> Result<Self, GuestError> {
        // The kept ones, and for each kernel one at work and a full queue.
        let most = limits::KEPT_RUNS + limits::KERNELS * (limits::QUEUED_RUNS + 1);
        at_most("runs", self.runs.len(), most)?;
        for run in &mut self.runs {
            run_id(&run.id)?;
            run.title = shown(&run.title);
        }
        Ok(self)
    }
}

impl Bounded for Packages {
    fn bounded(mut self) -> Result<Self, GuestError> {
        at_most("packages", self.packages.len(), limits::PACKAGES)?;
        for package in &mut self.packages {
            for text in [&mut package.kind, &mut package.name, &mut package.version] {
                *text = shown(text);
            }
        }
        Ok(self)
    }
}

impl Bounded for FileList {
    fn bounded(self) -> Result<Self, GuestError> {
        at_most("entries", self.entries.len(), limits::LIST_ENTRIES)?;
        self.entries.iter().try_for_each(|entry| path(&entry.path))?;
        Ok(self)
    }
}

impl Bounded for RunEventKind {
    /// A line is bounded as a whole, so the texts in it are; what is counted here is what a caller would
    /// make an answer's part of each.
    fn bounded(self) -> Result<Self, GuestError> {
        match &self {
            Self::Accepted { .. } | Self::Started { .. } | Self::Output { .. } => {}
            Self::Queued { behind, .. } => run_id(behind)?,
            Self::Display { data, path: saved } => {
                at_most("MIME types of a result", data.len(), FEW)?;
                data.keys()
                    .try_for_each(|mime| at_most("characters of a MIME type", mime.len(), NAME))?;
                saved.as_deref().map_or(Ok(()), path)?;
            }
            Self::Finished(outcome) => {
                at_most("changed files", outcome.files.len(), limits::CHANGED_FILES)?;
                outcome.files.iter().try_for_each(|file| path(&file.path))?;
                for stream in [&outcome.stdout, &outcome.stderr] {
                    stream.path.as_deref().map_or(Ok(()), path)?;
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use greenroom_protocol::{FileEntry, FileKind, Language, RunState, RunSummary};

    use super::*;

    #[test]
    fn lists_over_their_limit_are_refused() {
        let entry = |path: String| FileEntry {
            path,
            kind: FileKind::File,
            size: u64::MAX,
            modified_ms: 0,
        };
        let list = |entries| FileList { entries, omitted: 0 };
        let full = vec![entry("a".into()); limits::LIST_ENTRIES];
        assert!(list(full.clone()).bounded().is_ok());
        let mut over = full;
        over.push(entry("a".into()));
        assert!(list(over).bounded().is_err());
        assert!(list(vec![entry("x".repeat(SHOWN_PATH + 1))]).bounded().is_err());
    }

    #[test]
    fn ids_from_inside_are_names() {
        for (id, fits) in [
            ("run-1".to_owned(), true),
            ("a\nb".to_owned(), false),
            ("x".repeat(limits::RUN_ID_BYTES + 1), false),
        ] {
            let runs = vec![RunSummary {
                id: RunId(id),
                language: Language::Bash,
                state: RunState::Queued,
                title: "\u{1b}c".into(),
                age_ms: 0,
                next: 0,
            }];
            match (RunList { runs }.bounded(), fits) {
                (Ok(list), true) => assert_eq!(list.runs[0].title, "\\u{1b}c"),
                (Err(_), false) => {}
                (other, _) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_display_has_few_types() {
        let display = |types: usize| RunEventKind::Display {
            data: (0..types)
                .map(|n| (format!("x/{n}"), String::new()))
                .collect::<BTreeMap<_, _>>(),
            path: None,
        };
        assert!(display(FEW).bounded().is_ok());
        assert!(display(FEW + 1).bounded().is_err());
    }
}
