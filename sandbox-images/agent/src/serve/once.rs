//! Marks that are good for one upload: servers sign links, and it is here that all of them meet.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use greenroom_protocol::{Refusal, RefusalKind};

use crate::agent::lock;

/// Marks that are remembered. They expire outside, an hour after they were made at the latest.
const REMEMBERED: usize = 1024;
/// Bytes of a mark.
const MARK_BYTES: usize = 64;

/// The marks that were used, or are being used.
#[derive(Debug, Default)]
pub(crate) struct Once(Mutex<VecDeque<(String, Stage)>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    InUse,
    Used,
}

/// An upload under a mark. Dropped before it is [done](Self::done) it leaves the mark as it was: whoever's
/// upload broke off may try again.
#[derive(Debug)]
pub(crate) struct Use {
    once: Arc<Once>,
    mark: String,
}

impl Once {
    /// Begins to use a mark.
    ///
    /// # Errors
    /// `Conflict`: it is used up or in use; `BadRequest`: it is none.
    pub(crate) fn begin(self: &Arc<Self>, mark: &str) -> Result<Use, Refusal> {
        let refuse = |kind, message: &str| Refusal {
            kind,
            message: message.to_owned(),
        };
        if !(1..=MARK_BYTES).contains(&mark.len()) || !mark.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(refuse(
                RefusalKind::BadRequest,
                "once must be hexadecimal digits, 64 at most",
            ));
        }
        let mut marks = lock(&self.0);
        if let Some((_, stage)) = marks.iter().find(|(known, _)| known == mark) {
            return Err(refuse(
                RefusalKind::Conflict,
                match stage {
                    Stage::InUse => "an upload by this link is under way",
                    Stage::Used => "this link was used already: it is good for one upload",
                },
            ));
        }
        if marks.len() == REMEMBERED {
            marks.pop_front();
        }
        marks.push_back((mark.to_owned(), Stage::InUse));
        drop(marks);
        Ok(Use {
            once: Arc::clone(self),
            mark: mark.to_owned(),
        })
    }
}

impl Use {
    /// The upload is there: the mark is used up.
    pub(crate) fn done(self) {
        let mut marks = lock(&self.once.0);
        if let Some((_, stage)) = marks.iter_mut().find(|(known, _)| *known == self.mark) {
            *stage = Stage::Used;
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let in_use = (std::mem::take(&mut self.mark), Stage::InUse);
        lock(&self.once.0).retain(|mark| *mark != in_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_good_for_one_upload_that_succeeds() {
        let once = Arc::new(Once::default());
        let broke_off = once.begin("ab").unwrap();
        assert_eq!(once.begin("ab").unwrap_err().kind, RefusalKind::Conflict);
        once.begin("cd").unwrap().done();
        drop(broke_off);
        once.begin("ab").unwrap().done();
        for used in ["ab", "cd"] {
            assert!(once.begin(used).unwrap_err().message.contains("used already"));
        }
        for none in ["", "xyz", &"a".repeat(65)] {
            assert_eq!(once.begin(none).unwrap_err().kind, RefusalKind::BadRequest);
        }
    }

    #[test]
    fn marks_do_not_add_up() {
        let once = Arc::new(Once::default());
        for n in 0..REMEMBERED + 10 {
            once.begin(&format!("{n:x}")).unwrap().done();
        }
        assert_eq!(lock(&once.0).len(), REMEMBERED);
    }
}
