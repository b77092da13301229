//! The table of steps, and random deeds after which the books still balance.

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
