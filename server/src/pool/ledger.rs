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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> SandboxId {
        SandboxId::parse(&format!("grs-{n:024x}")).unwrap()
    }

    fn consistent(ledger: &Ledger<u8>) {
        let counts = ledger.counts();
        let out = counts.adopted + counts.let_go + counts.gone;
        assert_eq!(counts.begun, counts.held() as u64 + out, "{counts:?}");
        assert_eq!(counts.held(), ledger.entries.len(), "{counts:?}");
        let seen = |place| {
            ledger
                .entries
                .values()
                .filter(|e| e.stage.place() == place)
                .count()
        };
        assert_eq!(
            (counts.booting, counts.warm, counts.claimed, counts.condemned),
            (
                seen(Place::Booting),
                seen(Place::Warm),
                seen(Place::Claimed),
                seen(Place::Condemned)
            )
        );
    }

    #[test]
    fn only_the_steps_of_the_picture_are_taken() {
        let now = Instant::now();
        let condemn = || Step::Condemn(Why::Died, Created::Done);
        let paths: [(&str, Vec<Step<u8>>); 5] = [
            ("nothing", vec![]),
            ("booting", vec![Step::Begin(Boot::Reserve)]),
            ("warm", vec![Step::Begin(Boot::Reserve), Step::Warm(1)]),
            (
                "claimed",
                vec![Step::Begin(Boot::Reserve), Step::Warm(1), Step::Claim],
            ),
            ("condemned", vec![Step::Begin(Boot::Reserve), condemn()]),
        ];
        type Allowed = (fn() -> Step<u8>, &'static [&'static str]);
        let steps: [Allowed; 9] = [
            (|| Step::Begin(Boot::Claim), &["nothing"]),
            (|| Step::Warm(2), &["booting"]),
            (|| Step::Reopen, &["warm"]),
            (|| Step::Claim, &["warm"]),
            (|| Step::PutBack(3), &["claimed"]),
            (|| Step::Adopt, &["claimed"]),
            (|| Step::LetGo, &["claimed"]),
            (
                || Step::Condemn(Why::Aged, Created::Done),
                &["booting", "warm", "claimed"],
            ),
            (|| Step::Forget, &["condemned"]),
        ];
        for (from, path) in paths {
            for (step, allowed) in &steps {
                let mut ledger = Ledger::new();
                for earlier in path.iter().map(copy) {
                    ledger.step(&id(0), earlier, now).unwrap();
                }
                let before = ledger.counts();
                let answer = ledger.step(&id(0), step(), now);
                assert_eq!(
                    answer.is_ok(),
                    allowed.contains(&from),
                    "{:?} from {from}",
                    step()
                );
                match answer {
                    Err(_) => assert_eq!(ledger.counts(), before),
                    Ok(held) => assert_eq!(held.is_some(), from == "warm", "what it held comes back"),
                }
                consistent(&ledger);
            }
        }
    }

    fn copy(step: &Step<u8>) -> Step<u8> {
        match step {
            Step::Begin(boot) => Step::Begin(*boot),
            Step::Warm(held) => Step::Warm(*held),
            Step::Reopen => Step::Reopen,
            Step::Claim => Step::Claim,
            Step::PutBack(held) => Step::PutBack(*held),
            Step::Adopt => Step::Adopt,
            Step::LetGo => Step::LetGo,
            Step::Condemn(why, created) => Step::Condemn(*why, *created),
            Step::Forget => Step::Forget,
        }
    }

    #[test]
    fn the_oldest_is_claimed_first_and_keeps_its_age_when_it_is_put_back() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut ledger = Ledger::new();
        for n in 0..3 {
            let at = start + second * u32::from(2 - n);
            ledger.step(&id(n), Step::Begin(Boot::Reserve), at).unwrap();
            ledger.step(&id(n), Step::Warm(n), at).unwrap();
        }
        let now = start + 3 * second;
        assert_eq!(ledger.claim_oldest(now), Some((id(2), 2)));
        ledger.step(&id(2), Step::PutBack(2), now).unwrap();
        assert_eq!(ledger.age(&id(2), now), Some(3 * second));
        assert_eq!(ledger.warm_beyond(3 * second, now), [id(2)]);
        assert_eq!(ledger.next_beyond(3 * second, now), Some(start + 4 * second));
        assert_eq!(ledger.claim_oldest(now), Some((id(2), 2)));
    }

    #[test]
    fn a_look_tells_on_warm_ones_that_were_warm_before_it() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut ledger = Ledger::new();
        for n in 0..3 {
            ledger.step(&id(n), Step::Begin(Boot::Reserve), start).unwrap();
        }
        ledger.step(&id(0), Step::Warm(0), start).unwrap();
        ledger.step(&id(1), Step::Warm(1), start).unwrap();
        let asked = start + second;
        ledger.step(&id(2), Step::Warm(2), asked + second).unwrap();
        let shown = Shown {
            any: [id(0), id(1)].into(),
            running: [id(0)].into(),
        };
        assert_eq!(ledger.looked(&shown, asked, asked + 2 * second), [id(1)]);
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Step(u8, u8),
        Settle(u8, bool),
        Destroys(u8),
        Destroyed(u8, bool),
        Look(u16),
        Wait(u16),
    }

    fn deeds() -> impl Strategy<Value = Vec<Deed>> {
        let n = 0_u8..12;
        proptest::collection::vec(
            prop_oneof![
                6 => (n.clone(), 0_u8..12).prop_map(|(n, step)| Deed::Step(n, step)),
                1 => (n.clone(), any::<bool>()).prop_map(|(n, done)| Deed::Settle(n, done)),
                2 => (0_u8..6).prop_map(Deed::Destroys),
                2 => (n, any::<bool>()).prop_map(|(n, done)| Deed::Destroyed(n, done)),
                1 => any::<u16>().prop_map(Deed::Look),
                1 => (0_u16..5000).prop_map(Deed::Wait),
            ],
            0..200,
        )
    }

    fn step_of(number: u8, now: Instant) -> Step<u8> {
        match number {
            0 => Step::Begin(Boot::Claim),
            1 => Step::Begin(Boot::Reserve),
            2 => Step::Warm(7),
            3 => Step::Reopen,
            4 => Step::Claim,
            5 => Step::PutBack(8),
            6 => Step::Adopt,
            7 => Step::LetGo,
            8 => Step::Condemn(Why::BootFailed, Created::Pending),
            9 => Step::Condemn(Why::BootFailed, Created::Lost { by: now }),
            10 => Step::Condemn(Why::BootFailed, Created::Refused),
            _ => Step::Condemn(Why::Aged, Created::Done),
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_the_counts_add_up_and_everything_can_end(deeds in deeds()) {
            let mut now = Instant::now();
            let mut ledger = Ledger::<u8>::new();
            for deed in deeds {
                match deed {
                    // A refused step changes nothing, and that is checked below.
                    Deed::Step(n, step) => drop(ledger.step(&id(n), step_of(step, now), now)),
                    Deed::Settle(n, true) => ledger.settled(&id(n), Created::Done, now),
                    Deed::Settle(n, false) => ledger.settled(&id(n), Created::Refused, now),
                    Deed::Destroys(parallel) => {
                        let under_way = |l: &Ledger<u8>| l.sentences().filter(|s| s.is_destroying()).count();
                        let before = under_way(&ledger);
                        ledger.begin_destroys(parallel.into(), now);
                        prop_assert!(under_way(&ledger) <= before.max(parallel.into()));
                    }
                    Deed::Destroyed(n, done) => {
                        let destroying = ledger.sentence(&id(n)).is_some_and(|s| s.is_destroying());
                        match (destroying, done) {
                            (false, _) => {}
                            (true, true) => ledger.destroyed(&id(n), now),
                            (true, false) => ledger.not_destroyed(&id(n), now, 0.5),
                        }
                    }
                    Deed::Look(bits) => {
                        let any: BTreeSet<_> = (0..12).filter(|n| bits & (1 << n) != 0).map(id).collect();
                        ledger.looked(&Shown { running: any.clone(), any }, now, now);
                    }
                    Deed::Wait(millis) => now += Duration::from_millis(millis.into()),
                }
                consistent(&ledger);
            }
            // An orderly end from wherever this led to: every id ends adopted, let go or gone.
            for n in 0..12 {
                drop(ledger.step(&id(n), Step::Condemn(Why::Closing, Created::Done), now));
                ledger.settled(&id(n), Created::Refused, now);
                if ledger.sentence(&id(n)).is_some_and(|s| s.is_destroying()) {
                    ledger.destroyed(&id(n), now);
                }
            }
            for _ in 0..4 {
                now += Duration::from_secs(60);
                for id in ledger.begin_destroys(usize::MAX, now) {
                    ledger.destroyed(&id, now);
                }
                ledger.looked(&Shown::default(), now, now);
            }
            consistent(&ledger);
            prop_assert_eq!(ledger.counts().held(), 0);
        }
    }
}
