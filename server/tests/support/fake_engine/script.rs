//! What is to go wrong, call by call.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Prepare,
    Derive,
    Create,
    Start,
    Open,
    Adopt,
    PutBack,
    Strays,
    Find,
    SetAside,
    End,
    Destroy,
    List,
    Memory,
    Usage,
    Sweep,
}

impl Op {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare an image",
            Self::Derive => "derive an image",
            Self::Create => "create a sandbox",
            Self::Start => "start a sandbox",
            Self::Open => "open a channel",
            Self::Adopt => "adopt a sandbox",
            Self::PutBack => "put a sandbox back",
            Self::Strays => "list what was renamed",
            Self::Find => "find a sandbox",
            Self::SetAside => "set a sandbox aside",
            Self::End => "end a sandbox",
            Self::Destroy => "remove a sandbox",
            Self::List => "list its sandboxes",
            Self::Memory => "say what memory there is",
            Self::Usage => "say what a sandbox uses",
            Self::Sweep => "sweep",
        }
    }
}

/// How one call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not: for scripts whose first calls go well.
    None,
    /// It is refused and has no effect.
    Refused,
    /// It panics: a bug of the engine's.
    Panics,
    /// It is refused: there is no such image any more.
    NoImage,
    /// It is refused: packages cannot be installed.
    NotInstalled,
    /// It has no effect, and ends at its deadline.
    Hangs,
    /// It ends at its deadline, and takes effect after this long, even if the call has been dropped by then.
    HappensLate(Duration),
    /// It takes effect at once, and ends at its deadline: nobody hears of it.
    HappensUnheard,
    /// Only for [`Op::Start`]: it goes well, and the sandbox ends after this long with this exit code.
    DiesAfter(Duration, i64),
}

/// The faults that are still to come, and how often each call was made.
#[derive(Debug, Default)]
pub(super) struct Script {
    faults: BTreeMap<Op, VecDeque<Fault>>,
    calls: BTreeMap<Op, usize>,
}

impl Script {
    pub(super) fn add(&mut self, op: Op, faults: impl IntoIterator<Item = Fault>) {
        self.faults.entry(op).or_default().extend(faults);
    }

    /// Takes the fault of this call.
    pub(super) fn next(&mut self, op: Op) -> Fault {
        *self.calls.entry(op).or_default() += 1;
        self.faults
            .get_mut(&op)
            .and_then(VecDeque::pop_front)
            .unwrap_or(Fault::None)
    }

    /// The death that the next start is to die, if any. Does not take it.
    pub(super) fn death(&self) -> Option<(Duration, i64)> {
        let Fault::DiesAfter(after, exit_code) = self.faults.get(&Op::Start)?.front()? else {
            return None;
        };
        Some((*after, *exit_code))
    }

    pub(super) fn calls(&self, op: Op) -> usize {
        self.calls.get(&op).copied().unwrap_or(0)
    }

    /// What was scripted and never met.
    pub(super) fn unused(&self) -> Vec<(Op, Fault)> {
        self.faults
            .iter()
            .flat_map(|(op, faults)| faults.iter().map(|fault| (*op, *fault)))
            .filter(|(_, fault)| *fault != Fault::None)
            .collect()
    }
}
