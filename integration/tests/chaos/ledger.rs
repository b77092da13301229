//! What one conversation has been told so far, and whether what it sees next is true to that.

use anyhow::{Result, bail, ensure};
use greenroom_integration::Answer;

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The code ran: the mark that it found, how often it had run, what was said of the state, the mark that a file
    /// had left, and what was said of files.
    Count {
        mark: String,
        count: usize,
        said: Said,
        left: Option<String>,
        files: Files,
    },
    /// An answer, but none of the code's.
    Failed { said: Said, text: String },
    /// No answer: whoever was asked is gone.
    Nothing(String),
}

/// Whether an answer says that earlier state is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Existing,
    New,
    Lost,
}

/// What an answer says of the files of an earlier sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    Kept,
    Gone,
    Nothing,
}

impl Seen {
    pub(crate) fn of(answer: &Answer) -> Self {
        let lost = answer.session() == "restarted"
            || answer.status() == "kernel_died"
            || answer.field("failure") == "lost"
            || answer.text.contains("python was restarted (");
        let said = match answer.session() {
            _ if lost => Said::Lost,
            "new" => Said::New,
            _ => Said::Existing,
        };
        let says = |words: &str| answer.text.contains(words);
        let files = match says("variables are lost, files are kept as of") {
            true => Files::Kept,
            false if says("gone, with its variables and files") => Files::Gone,
            false => Files::Nothing,
        };
        match parse(answer.result()) {
            Some((mark, count, left)) => Self::Count {
                mark,
                count,
                said,
                left,
                files,
            },
            None => Self::Failed {
                said,
                text: answer.text.clone(),
            },
        }
    }
}

/// `('c1-7', 3, '')`, as Python shows it.
fn parse(shown: &str) -> Option<(String, usize, Option<String>)> {
    let (mark, rest) = shown.strip_prefix("('")?.strip_suffix("')")?.split_once("', ")?;
    let (count, left) = rest.split_once(", '")?;
    let left = (!left.is_empty()).then(|| left.to_owned());
    Some((mark.to_owned(), count.parse().ok()?, left))
}

/// One conversation's knowledge.
#[derive(Debug)]
pub(crate) struct Ledger {
    prefix: String,
    /// The mark and the count that it saw last.
    last: Option<(String, usize)>,
    /// Calls since then that may have run, or not.
    unsure: usize,
    /// An answer since then has said that state is lost.
    said: bool,
    /// The record of its sandbox may have been taken away, too.
    unrecorded: bool,
    /// State that was lost, and said to be.
    pub(crate) losses: usize,
    /// Files that outlived it.
    pub(crate) kept: usize,
}

impl Ledger {
    pub(crate) fn new(conversation: usize) -> Self {
        Self {
            prefix: format!("c{conversation}-"),
            last: None,
            unsure: 0,
            said: false,
            unrecorded: false,
            losses: 0,
            kept: 0,
        }
    }

    /// Somebody removed a sandbox with its record.
    pub(crate) fn may_lose_its_record(&mut self) {
        self.unrecorded = true;
    }

    /// Takes what a call saw.
    ///
    /// # Errors
    /// It cannot be true.
    pub(crate) fn saw(&mut self, seen: &Seen) -> Result<()> {
        match seen {
            Seen::Nothing(_) => self.unsure += 1,
            Seen::Failed { said, .. } => {
                self.unsure += 1;
                self.said |= *said == Said::Lost;
            }
            Seen::Count {
                mark,
                count,
                said,
                left,
                files,
            } => {
                self.found(mark, left.as_deref(), *files)?;
                self.counted(mark, *count, *said)?;
            }
        }
        Ok(())
    }

    /// Files that are there, against what was said of them. A call that was not answered may have run first, and may
    /// have written its own; and news may be told again, after the variables are new ones.
    fn found(&mut self, mark: &str, left: Option<&str>, files: Files) -> Result<()> {
        if let Some(mark) = left {
            ensure!(
                mark.starts_with(&self.prefix),
                "has a file of {mark}, which is another conversation's"
            );
        }
        let again = self.last.as_ref().is_some_and(|(known, _)| known == mark);
        match (files, left) {
            _ if again => {}
            (Files::Kept, None) if self.unsure == 0 => bail!("is told that files are kept, and has none"),
            (Files::Gone, Some(mark)) if self.unsure == 0 => {
                bail!("is told that files are gone, and has that of {mark}")
            }
            (Files::Kept, _) => self.kept += 1,
            (Files::Gone | Files::Nothing, _) => {}
        }
        Ok(())
    }

    fn counted(&mut self, mark: &str, count: usize, said: Said) -> Result<()> {
        ensure!(
            mark.starts_with(&self.prefix),
            "sees {mark}, which is another conversation's"
        );
        let told = self.said || said == Said::Lost;
        match &self.last {
            Some((known, before)) if known == mark => {
                let most = before + 1 + self.unsure;
                ensure!(
                    *before < count && count <= most,
                    "counts {count} after {before} of {known}"
                );
                ensure!(
                    said != Said::New,
                    "is told that it is new with its state in place: {mark}, {count}"
                );
            }
            Some((known, before)) => {
                let excused = said == Said::New && self.unrecorded;
                if !(told || excused) {
                    bail!("lost {known}, {before}, has {mark}, {count}, and nobody said so ({said:?})");
                }
                self.losses += 1;
                self.unrecorded &= !excused;
            }
            None => ensure!(count <= 1 + self.unsure, "starts with {count}"),
        }
        self.last = Some((mark.to_owned(), count));
        (self.unsure, self.said) = (0, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(mark: &str, count: usize, said: Said) -> Seen {
        filed(mark, count, said, None, Files::Nothing)
    }

    fn filed(mark: &str, count: usize, said: Said, left: Option<&str>, files: Files) -> Seen {
        Seen::Count {
            mark: mark.to_owned(),
            count,
            said,
            left: left.map(str::to_owned),
            files,
        }
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(parse("('c1-7', 3, '')"), Some(("c1-7".to_owned(), 3, None)));
        assert_eq!(
            parse("('c1-9', 1, 'c1-7')"),
            Some(("c1-9".to_owned(), 1, Some("c1-7".to_owned())))
        );
        assert_eq!(parse("7"), None);
    }

    /// The suite's own judge has to be able to say no.
    #[test]
    fn what_cannot_be_true_is_refused() {
        let after = |next: &[Seen]| {
            let mut ledger = Ledger::new(1);
            ledger.saw(&count("c1-1", 1, Said::New)).unwrap();
            next.iter().try_for_each(|seen| ledger.saw(seen))
        };
        let failed = |said| Seen::Failed {
            said,
            text: String::new(),
        };
        assert!(after(&[count("c1-1", 2, Said::Existing)]).is_ok());
        assert!(after(&[count("c1-2", 1, Said::Lost)]).is_ok());
        assert!(after(&[failed(Said::Lost), count("c1-2", 1, Said::Existing)]).is_ok());
        assert!(after(&[failed(Said::Existing), count("c1-1", 3, Said::Existing)]).is_ok());
        assert!(after(&[count("c1-1", 1, Said::Existing)]).is_err(), "went back");
        assert!(after(&[count("c1-1", 3, Said::Existing)]).is_err(), "ran twice");
        assert!(
            after(&[count("c1-2", 1, Said::Existing)]).is_err(),
            "lost in silence"
        );
        assert!(
            after(&[count("c1-2", 1, Said::New)]).is_err(),
            "new is not a loss"
        );
        assert!(after(&[count("c2-2", 1, Said::Lost)]).is_err(), "another's");
        assert!(after(&[count("c1-1", 2, Said::New)]).is_err(), "not new");
        let lost = |left, files| filed("c1-2", 1, Said::Lost, left, files);
        assert!(after(&[lost(Some("c1-1"), Files::Kept)]).is_ok());
        assert!(after(&[lost(None, Files::Gone)]).is_ok());
        assert!(after(&[failed(Said::Lost), lost(None, Files::Kept)]).is_ok());
        assert!(
            after(&[lost(Some("c2-1"), Files::Kept)]).is_err(),
            "another's file"
        );
        assert!(after(&[lost(None, Files::Kept)]).is_err(), "not kept");
        assert!(after(&[lost(Some("c1-1"), Files::Gone)]).is_err(), "not gone");
    }
}
