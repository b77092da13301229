//! One case: what is called, what its answer has to be, and what the state is afterwards.

use std::time::Duration;

/// A case without a word about time takes at most this long, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Cases of one conversation, in order.
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) cases: Vec<Case>,
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// `execute_code`.
    Run {
        language: &'static str,
        code: &'static str,
    },
    /// The same in the background; its run is remembered under the case's name.
    Background {
        language: &'static str,
        code: &'static str,
    },
    /// `get_run` of a case's run.
    Poll(&'static str),
    /// `get_run` without a name.
    List,
    /// `cancel_run` of a case's run.
    Cancel(&'static str),
}

/// What the state is afterwards: an expression of Python, or a command of bash, and what it gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Then {
    pub(crate) language: &'static str,
    pub(crate) code: &'static str,
    pub(crate) gives: &'static str,
}

/// A case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) act: Act,
    /// One of these, by `|`.
    pub(crate) status: &'static str,
    pub(crate) result: Option<&'static str>,
    pub(crate) says: Vec<&'static str>,
    pub(crate) never: Vec<&'static str>,
    pub(crate) images: Option<usize>,
    pub(crate) timeout: Option<u64>,
    pub(crate) chars: Option<usize>,
    pub(crate) within: Duration,
    pub(crate) then: Vec<Then>,
}

/// A case of Python.
pub(crate) fn python(name: &'static str, code: &'static str) -> Case {
    Case::new(
        name,
        Act::Run {
            language: "python",
            code,
        },
    )
}

/// A case of bash.
pub(crate) fn bash(name: &'static str, code: &'static str) -> Case {
    Case::new(
        name,
        Act::Run {
            language: "bash",
            code,
        },
    )
}

impl Case {
    pub(crate) fn new(name: &'static str, act: Act) -> Self {
        Self {
            name,
            act,
            status: "ok",
            result: None,
            says: Vec::new(),
            never: Vec::new(),
            images: None,
            timeout: None,
            chars: None,
            within: PATIENCE,
            then: Vec::new(),
        }
    }

    /// It ends like this, or in one of several ways between `|`.
    pub(crate) const fn ends(mut self, status: &'static str) -> Self {
        self.status = status;
        self
    }

    /// The last expression.
    pub(crate) const fn gives(mut self, result: &'static str) -> Self {
        self.result = Some(result);
        self
    }

    /// The text has this.
    pub(crate) fn says(mut self, text: &'static str) -> Self {
        self.says.push(text);
        self
    }

    /// The text does not have this.
    pub(crate) fn never(mut self, text: &'static str) -> Self {
        self.never.push(text);
        self
    }

    /// So many image blocks come with it.
    pub(crate) const fn shows(mut self, images: usize) -> Self {
        self.images = Some(images);
        self
    }

    /// It is given so many seconds.
    pub(crate) const fn limited(mut self, seconds: u64) -> Self {
        self.timeout = Some(seconds);
        self
    }

    /// It is given so many characters.
    pub(crate) const fn chars(mut self, chars: usize) -> Self {
        self.chars = Some(chars);
        self
    }

    /// The answer takes no longer than so many seconds.
    pub(crate) const fn within(mut self, seconds: u64) -> Self {
        self.within = Duration::from_secs(seconds);
        self
    }

    /// Afterwards this expression of Python gives that.
    pub(crate) fn then(mut self, code: &'static str, gives: &'static str) -> Self {
        self.then.push(Then {
            language: "python",
            code,
            gives,
        });
        self
    }

    /// Afterwards this command of bash prints that.
    pub(crate) fn then_bash(mut self, code: &'static str, gives: &'static str) -> Self {
        self.then.push(Then {
            language: "bash",
            code,
            gives,
        });
        self
    }
}
