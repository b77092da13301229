//! The ledger: where each sandbox that the pool answers for stands. Pure: no I/O, no clock, no chance.
//!
//! ```text
//!             begin            warm            claim            adopt
//!   (absent) ───────▶ Booting ───────▶ Warm ───────▶ Claimed ───────▶ adopted
//!                      │  ▲    reopen   │ ▲  put back  │  │
//!                      │  └─────────────┤ └────────────┤  └──────────▶ let go
//!                      └────────────────┴──────────────┴──▶ Condemned ─▶ gone
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    census::{Counts, PoolEvent, Why},
    sentence::{Created, Sentence, Verdict},
};
use crate::sandbox::SandboxId;

/// Every sandbox that the pool answers for. `H` is what a warm one holds: its custody and its open guest.
#[derive(Debug)]
pub(super) struct Ledger<H> {
    entries: BTreeMap<SandboxId, Entry<H>>,
    counts: Counts,
    events: Vec<PoolEvent>,
}

#[derive(Debug)]
struct Entry<H> {
    /// When its first boot began: its age.
    begun: Instant,
    /// When it entered this stage.
    since: Instant,
    stage: Stage<H>,
}

/// What a sandbox is in; what it has to hold exists in that stage only.
#[derive(Debug)]
enum Stage<H> {
    Booting(Boot),
    Warm(H),
    Claimed,
    Condemned(Sentence),
}

/// What a boot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Boot {
    /// A waiting claim: it may take the engine's last slot.
    Claim,
    /// The reserve: it leaves one slot free.
    Reserve,
    /// A warm one whose channel broke.
    Reopen,
}

/// A step from one stage to the next.
#[derive(Debug)]
pub(super) enum Step<H> {
    Begin(Boot),
    Warm(H),
    Reopen,
    Claim,
    PutBack(H),
    Adopt,
    LetGo,
    Condemn(Why, Created),
    Forget,
}

impl<H> Ledger<H> {
    pub(super) const fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            counts: Counts::ZERO,
            events: Vec::new(),
        }
    }

    /// Takes a step: the one place where stages, counts and events change, so that they cannot drift apart.
    /// Answers what a warm sandbox held when it stops being warm.
    ///
    /// # Errors
    /// The step is given back where the stage does not allow it: the news came too late.
    pub(super) fn step(&mut self, id: &SandboxId, step: Step<H>, now: Instant) -> Result<Option<H>, Step<H>> {
        let entry = self.entries.remove(id);
        let (begun, since) = entry.as_ref().map_or((now, now), |e| (e.begun, e.since));
        let before = entry.as_ref().map(|e| e.stage.place());
        match follow(entry.map(|e| e.stage), step, now - since, now) {
            Ok(Move { to, held, event }) => {
                self.counts.shift(before, to.place());
                self.events.extend(event);
                if let Next::Stage(stage) = to {
                    let since = now;
                    self.entries.insert(id.clone(), Entry { begun, since, stage });
                }
                Ok(held)
            }
            Err((stage, step)) => {
                if let Some(stage) = stage {
                    self.entries.insert(id.clone(), Entry { begun, since, stage });
                }
                Err(step)
            }
        }
    }

    /// Claims the oldest warm sandbox.
    pub(super) fn claim_oldest(&mut self, now: Instant) -> Option<(SandboxId, H)> {
        let id = self.oldest_warm()?;
        let held = self.step(&id, Step::Claim, now).ok().flatten()?;
        Some((id, held))
    }

    pub(super) fn oldest_warm(&self) -> Option<SandboxId> {
        let (_, id) = self.warm().map(|(id, entry)| (entry.begun, id)).min()?;
        Some(id.clone())
    }

    /// Warm ones that are older than `age`.
    pub(super) fn warm_beyond(&self, age: Duration, now: Instant) -> Vec<SandboxId> {
        self.warm()
            .filter(|(_, entry)| now - entry.begun >= age)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// When the first sandbox that is warm now will be older than `age`, if it is not yet.
    pub(super) fn next_beyond(&self, age: Duration, now: Instant) -> Option<Instant> {
        self.warm()
            .map(|(_, entry)| entry.begun + age)
            .filter(|at| *at > now)
            .min()
    }

    /// How long ago its boot began.
    pub(super) fn age(&self, id: &SandboxId, now: Instant) -> Option<Duration> {
        self.entries.get(id).map(|entry| now - entry.begun)
    }

    pub(super) fn is_booting(&self, id: &SandboxId) -> bool {
        self.entries
            .get(id)
            .is_some_and(|entry| matches!(entry.stage, Stage::Booting(_)))
    }

    /// Destroys that are under way count as not begun: one of them broke off.
    pub(super) fn destroy_again(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if let Stage::Condemned(sentence) = &mut entry.stage
                && sentence.is_destroying()
            {
                sentence.not_destroyed(now, 0.0);
            }
        }
    }

    /// Takes up to `parallel` destroys that are due, counting those under way.
    pub(super) fn begin_destroys(&mut self, parallel: usize, now: Instant) -> Vec<SandboxId> {
        let under_way = self.sentences().filter(|s| s.is_destroying()).count();
        let mut begun = Vec::new();
        for (id, entry) in &mut self.entries {
            if under_way + begun.len() >= parallel {
                break;
            }
            if let Stage::Condemned(sentence) = &mut entry.stage
                && sentence.due().is_some_and(|at| at <= now)
            {
                sentence.begin_destroy();
                begun.push(id.clone());
            }
        }
        begun
    }

    /// The create of a condemned one, which was under way, came to an end.
    pub(super) fn settled(&mut self, id: &SandboxId, created: Created, now: Instant) {
        if let Some(sentence) = self.sentence(id) {
            sentence.settled(created, now);
        }
    }

    /// A destroy of a condemned one succeeded.
    pub(super) fn destroyed(&mut self, id: &SandboxId, now: Instant) {
        let verdict = self.sentence(id).map(|sentence| sentence.destroyed(now));
        self.forget_if(id, verdict, now);
    }

    /// A destroy of a condemned one failed.
    pub(super) fn not_destroyed(&mut self, id: &SandboxId, now: Instant, jitter: f64) {
        if let Some(sentence) = self.sentence(id) {
            sentence.not_destroyed(now, jitter);
        }
    }

    /// What the engine, asked at `asked`, showed. Answers the warm ones that it no longer has running.
    pub(super) fn looked(&mut self, shown: &Shown, asked: Instant, now: Instant) -> Vec<SandboxId> {
        let mut verdicts = Vec::new();
        let mut lost = Vec::new();
        for (id, entry) in &mut self.entries {
            match &mut entry.stage {
                Stage::Condemned(sentence) => {
                    let verdict = sentence.looked(asked, shown.any.contains(id), now);
                    verdicts.push((id.clone(), verdict));
                }
                // Race: one that became warm while the list was on its way may be missing from it.
                Stage::Warm(_) if entry.since < asked && !shown.running.contains(id) => {
                    lost.push(id.clone());
                }
                Stage::Booting(_) | Stage::Warm(_) | Stage::Claimed => {}
            }
        }
        for (id, verdict) in verdicts {
            self.forget_if(&id, Some(verdict), now);
        }
        lost
    }

    /// When the next destroy is due.
    pub(super) fn next_destroy(&self) -> Option<Instant> {
        self.sentences().filter_map(Sentence::due).min()
    }

    /// From when on a look at the engine would tell something about a condemned one.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.sentences().filter_map(Sentence::looks_from).min()
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    /// What happened since this was last asked.
    pub(super) fn take_events(&mut self) -> Vec<PoolEvent> {
        std::mem::take(&mut self.events)
    }

    fn warm(&self) -> impl Iterator<Item = (&SandboxId, &Entry<H>)> {
        self.entries
            .iter()
            .filter(|(_, entry)| matches!(entry.stage, Stage::Warm(_)))
    }

    fn sentences(&self) -> impl Iterator<Item = &Sentence> {
        self.entries.values().filter_map(|entry| match &entry.stage {
            Stage::Condemned(sentence) => Some(sentence),
            Stage::Booting(_) | Stage::Warm(_) | Stage::Claimed => None,
        })
    }

    fn sentence(&mut self, id: &SandboxId) -> Option<&mut Sentence> {
        match &mut self.entries.get_mut(id)?.stage {
            Stage::Condemned(sentence) => Some(sentence),
            Stage::Booting(_) | Stage::Warm(_) | Stage::Claimed => None,
        }
    }

    fn forget_if(&mut self, id: &SandboxId, verdict: Option<Verdict>, now: Instant) {
        if verdict == Some(Verdict::Gone) {
            // A condemned one may always be forgotten.
            drop(self.step(id, Step::Forget, now));
        }
    }
}

/// What the engine showed when it was looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// Everything, in whatever state.
    pub(super) any: BTreeSet<SandboxId>,
    /// What runs.
    pub(super) running: BTreeSet<SandboxId>,
}

/// Where a sandbox stands, without what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Booting,
    Warm,
    Claimed,
    Condemned,
    Out(Out),
}

/// The ways out of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    Adopted,
    LetGo,
    Gone,
}

enum Next<H> {
    Stage(Stage<H>),
    Out(Out),
}

impl<H> Stage<H> {
    const fn place(&self) -> Place {
        match self {
            Self::Booting(_) => Place::Booting,
            Self::Warm(_) => Place::Warm,
            Self::Claimed => Place::Claimed,
            Self::Condemned(_) => Place::Condemned,
        }
    }
}

impl<H> Next<H> {
    const fn place(&self) -> Place {
        match self {
            Self::Stage(stage) => stage.place(),
            Self::Out(out) => Place::Out(*out),
        }
    }
}

impl Counts {
    /// Moves one sandbox; `None`: it enters the ledger.
    const fn shift(&mut self, before: Option<Place>, after: Place) {
        match before {
            None => self.begun += 1,
            Some(Place::Booting) => self.booting -= 1,
            Some(Place::Warm) => self.warm -= 1,
            Some(Place::Claimed) => self.claimed -= 1,
            Some(Place::Condemned) => self.condemned -= 1,
            Some(Place::Out(_)) => {}
        }
        match after {
            Place::Booting => self.booting += 1,
            Place::Warm => self.warm += 1,
            Place::Claimed => self.claimed += 1,
            Place::Condemned => self.condemned += 1,
            Place::Out(Out::Adopted) => self.adopted += 1,
            Place::Out(Out::LetGo) => self.let_go += 1,
            Place::Out(Out::Gone) => self.gone += 1,
        }
    }
}

type Refused<H> = (Option<Stage<H>>, Step<H>);

/// An allowed step: where it leads, what a sandbox that stops being warm lets go of, what is told of it.
struct Move<H> {
    to: Next<H>,
    held: Option<H>,
    event: Option<PoolEvent>,
}

/// The table of what may follow what.
fn follow<H>(
    stage: Option<Stage<H>>,
    step: Step<H>,
    stayed: Duration,
    now: Instant,
) -> Result<Move<H>, Refused<H>> {
    let condemned = |created| Stage::Condemned(Sentence::new(created, now));
    let (to, held, event) = match (stage, step) {
        (None, Step::Begin(boot)) => (Stage::Booting(boot), None, None),
        (Some(Stage::Booting(boot)), Step::Warm(holding)) => {
            let booted = (boot != Boot::Reopen).then_some(PoolEvent::Booted { took: stayed });
            (Stage::Warm(holding), None, booted)
        }
        (Some(Stage::Booting(_) | Stage::Claimed), Step::Condemn(why, created)) => {
            (condemned(created), None, Some(PoolEvent::Condemned(why)))
        }
        (Some(Stage::Warm(held)), Step::Condemn(why, created)) => {
            (condemned(created), Some(held), Some(PoolEvent::Condemned(why)))
        }
        (Some(Stage::Warm(held)), Step::Reopen) => (Stage::Booting(Boot::Reopen), Some(held), None),
        (Some(Stage::Warm(held)), Step::Claim) => (Stage::Claimed, Some(held), None),
        (Some(Stage::Claimed), Step::PutBack(holding)) => (Stage::Warm(holding), None, None),
        (Some(Stage::Claimed), Step::Adopt) => return Ok(Move::out(Out::Adopted, PoolEvent::Adopted)),
        (Some(Stage::Claimed), Step::LetGo) => return Ok(Move::out(Out::LetGo, PoolEvent::LetGo)),
        (Some(Stage::Condemned(_)), Step::Forget) => return Ok(Move::out(Out::Gone, PoolEvent::Gone)),
        refused => return Err(refused),
    };
    let to = Next::Stage(to);
    Ok(Move { to, held, event })
}

impl<H> Move<H> {
    const fn out(out: Out, event: PoolEvent) -> Self {
        Self {
            to: Next::Out(out),
            held: None,
            event: Some(event),
        }
    }
}

#[cfg(test)]
mod tests;
