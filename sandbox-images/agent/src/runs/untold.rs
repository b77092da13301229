//! A loss of a kernel's variables that no caller has heard of yet: each run says so, until an answer has arrived.

use std::sync::Mutex;

use greenroom_protocol::{RunError, RunId, limits::KEPT_RUNS};

use crate::agent::lock;

/// The last loss of one kernel, for as long as nobody is known to have heard of it.
#[derive(Debug, Default)]
pub(super) struct Untold(Mutex<Option<Loss>>);

#[derive(Debug)]
struct Loss {
    error: RunError,
    /// Runs whose events tell of it. What is too old to be followed is not kept.
    said_by: Vec<RunId>,
}

impl Untold {
    /// Variables were lost between runs.
    pub(super) fn lost(&self, error: RunError) {
        let said_by = Vec::new();
        *lock(&self.0) = Some(Loss { error, said_by });
    }

    /// They went with a run, whose own outcome says so. Whoever hears that has heard of any loss before it too.
    pub(super) fn lost_with(&self, run: &RunId, error: RunError) {
        let said_by = vec![run.clone()];
        *lock(&self.0) = Some(Loss { error, said_by });
    }

    /// What a run that begins has to say.
    pub(super) fn said_by(&self, run: &RunId) -> Option<RunError> {
        let mut untold = lock(&self.0);
        let loss = untold.as_mut()?;
        if loss.said_by.len() >= KEPT_RUNS {
            loss.said_by.remove(0);
        }
        loss.said_by.push(run.clone());
        Some(loss.error.clone())
    }

    /// An answer with what this run says has arrived.
    pub(super) fn told(&self, run: &RunId) {
        lock(&self.0).take_if(|loss| loss.said_by.contains(run));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str) -> RunError {
        RunError {
            name: name.into(),
            message: String::new(),
            traceback: String::new(),
        }
    }

    fn run(id: &str) -> RunId {
        RunId(id.into())
    }

    fn said(untold: &Untold, id: &str) -> Option<String> {
        untold.said_by(&run(id)).map(|error| error.name)
    }

    #[test]
    fn a_loss_is_said_until_it_was_heard() {
        let untold = Untold::default();
        assert_eq!(said(&untold, "a"), None);
        untold.lost(error("died"));
        assert_eq!(said(&untold, "b").as_deref(), Some("died"));
        assert_eq!(
            said(&untold, "c").as_deref(),
            Some("died"),
            "the answer of b never arrived"
        );
        untold.told(&run("a"));
        assert_eq!(said(&untold, "d").as_deref(), Some("died"), "a did not say it");
        untold.told(&run("b"));
        assert_eq!(said(&untold, "e"), None);
    }

    #[test]
    fn a_runs_own_outcome_says_what_it_took_along() {
        let untold = Untold::default();
        untold.lost(error("died"));
        assert_eq!(said(&untold, "a").as_deref(), Some("died"));
        untold.lost_with(&run("b"), error("timed out"));
        untold.told(&run("a"));
        assert_eq!(
            said(&untold, "c").as_deref(),
            Some("timed out"),
            "a later loss is news"
        );
        untold.told(&run("b"));
        assert_eq!(said(&untold, "d"), None);
    }

    #[test]
    fn those_who_said_it_are_few() {
        let untold = Untold::default();
        untold.lost(error("died"));
        for n in 0..=KEPT_RUNS {
            untold.said_by(&run(&n.to_string()));
        }
        untold.told(&run("0"));
        assert!(untold.said_by(&run("x")).is_some(), "forgotten with its events");
    }
}
