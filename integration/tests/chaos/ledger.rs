//! What one conversation has been told so far, and whether what it sees next is true to that.

use anyhow::{Result, bail, ensure};
use greenroom_integration::Answer;

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The code ran: the mark that it found, how often it had run, and what was said of the state.
    Count { mark: String, count: usize, said: Said },
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
        match parse(answer.result()) {
            Some((mark, count)) => Self::Count { mark, count, said },
            None => Self::Failed {
                said,
                text: answer.text.clone(),
            },
        }
    }
}

/// `('c1-7', 3)`, as Python shows it.
fn parse(shown: &str) -> Option<(String, usize)> {
    let (mark, count) = shown.strip_prefix("('")?.strip_suffix(')')?.split_once("', ")?;
    Some((mark.to_owned(), count.parse().ok()?))
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
            Seen::Count { mark, count, said } => self.counted(mark, *count, *said)?,
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
        let mark = mark.to_owned();
        Seen::Count { mark, count, said }
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
    }
}
