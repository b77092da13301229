//! Stories of sandboxes on their way from a pool to a session: who has what if that goes wrong half-way.

mod support;

use std::time::Duration;

use greenroom::{
    engine::{Engine as _, Place},
    pool::{AdoptError, PoolEvent, Why},
};
use support::{
    fake_engine::{FakeEngine, Fault, Op},
    pools::{Bench, ids, polled, pool_spec, session},
};
use tokio::time::{sleep, timeout};

const SECOND: Duration = Duration::from_secs(1);

async fn bench(warm: usize) -> (FakeEngine, Bench) {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(warm, 8));
    bench.settled().await;
    (engine, bench)
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_taken_gives_the_warm_one_back() {
    let (_, bench) = bench(2).await;
    let winner = bench.adopted("conversation").await;
    bench.settled().await;
    let before = ids(&bench.listed().await);
    let claim = bench.claim().await.unwrap();
    let lost = claim.adopt(&session("conversation")).await.unwrap_err();
    assert!(matches!(lost, AdoptError::Taken), "{lost:?}");
    bench.settled().await;
    // What was booted in its place meanwhile is one too many, and goes.
    sleep(10 * SECOND).await;
    let census = bench.settled().await;
    assert!(census.counts.gone <= 1);
    assert!(
        ids(&bench.listed().await)
            .iter()
            .filter(|id| before.contains(id))
            .count()
            >= 2
    );
    assert!(ids(&bench.listed().await).contains(winner.id()));
    bench.end_sessions().await;
    bench.end().await;
}

/// A sandbox serves one session, ever: one that holds something of a session serves that one or none.
#[tokio::test(start_paused = true)]
async fn a_sandbox_that_was_filled_for_a_session_goes_to_nobody_else() {
    let (_, bench) = bench(2).await;
    bench.adopted("conversation").await;
    bench.settled().await;
    let mut claim = bench.claim().await.unwrap();
    let id = claim.id().clone();
    claim.guest_to_fill().hello().await.unwrap();
    let lost = claim.adopt(&session("conversation")).await.unwrap_err();
    assert!(matches!(lost, AdoptError::Taken), "{lost:?}");
    bench.settled().await;
    assert!(!ids(&bench.listed().await).contains(&id));
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn twenty_racers_for_one_name_have_one_winner() {
    let (engine, bench) = bench(4).await;
    let race = (0..20).map(|_| async {
        let claim = bench.claim().await.unwrap();
        claim.adopt(&session("conversation")).await
    });
    let outcomes = futures_util::future::join_all(race).await;
    let winners: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().ok())
        .collect();
    assert_eq!(winners.len(), 1);
    let found = engine.find(&session("conversation")).await.unwrap();
    assert_eq!(found.place, Place::Running(winners[0].id().clone()));
    let losers = outcomes
        .iter()
        .filter(|o| matches!(o, Err(AdoptError::Taken)))
        .count();
    assert_eq!(losers, 19);
    drop(outcomes);
    let census = bench.settled().await;
    assert_eq!((census.counts.adopted, census.counts.let_go), (1, 0));
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_rename_of_which_nobody_heard_is_looked_up() {
    for fault in [
        Fault::HappensUnheard,
        Fault::HappensLate(SECOND),
        Fault::HappensLate(11 * SECOND),
    ] {
        let (engine, bench) = bench(1).await;
        engine.script(Op::Adopt, [fault]);
        let claim = bench.claim().await.unwrap();
        let id = claim.id().clone();
        let guest = claim.adopt(&session("conversation")).await.unwrap();
        assert_eq!(*guest.id(), id);
        assert_eq!(bench.settled().await.counts.adopted, 1);
        bench.end_sessions().await;
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_in_doubt_is_neither_undone_nor_used_twice() {
    for fault in [Fault::Refused, Fault::Hangs, Fault::Panics] {
        let (engine, bench) = bench(1).await;
        engine.script(Op::Adopt, [fault]);
        let claim = bench.claim().await.unwrap();
        let id = claim.id().clone();
        let doubt = claim.adopt(&session("conversation")).await.unwrap_err();
        assert!(
            matches!(doubt, AdoptError::Unknown(_) | AdoptError::Broken),
            "{doubt:?}"
        );
        let census = bench.settled().await;
        assert_eq!((census.counts.let_go, census.counts.gone), (1, 0));
        assert!(ids(&bench.listed().await).contains(&id), "it may be somebody's");
        // Nobody's after all, it ends itself; the sweep clears it away.
        engine.until("it ends", |engine| engine.channels(&id) == 0).await;
        sleep(40 * SECOND).await;
        let ended = bench.listed().await.into_iter().find(|s| s.id == id).unwrap();
        assert!(
            ended.started_at.is_some() && format!("{:?}", ended.state).contains("Exited"),
            "{ended:?}"
        );
        engine.destroy(&id).await.unwrap();
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_comes_late_never_meets_a_second_session() {
    let (engine, bench) = bench(1).await;
    let winner = bench.adopted("conversation").await;
    bench.settled().await;
    // The engine is slow, another has the name meanwhile, and when that goes the rename comes true.
    engine.script(Op::Adopt, [Fault::HappensLate(20 * SECOND)]);
    let claim = bench.claim().await.unwrap();
    let id = claim.id().clone();
    let lost = claim.adopt(&session("conversation")).await.unwrap_err();
    assert!(matches!(lost, AdoptError::Taken), "{lost:?}");
    engine.destroy(winner.id()).await.unwrap();
    for n in 0..3 {
        assert_ne!(*bench.adopted(&format!("another {n}")).await.id(), id);
    }
    sleep(30 * SECOND).await;
    let found = engine.find(&session("conversation")).await.unwrap();
    assert!(
        matches!(&found.place, Place::Exited(tombstone) if tombstone.id == id)
            || found.place == Place::Running(id)
    );
    bench.settled().await;
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_died_in_the_hand_is_gone() {
    let (engine, bench) = bench(1).await;
    let claim = bench.claim().await.unwrap();
    engine.remove(claim.id());
    let gone = claim.adopt(&session("conversation")).await.unwrap_err();
    assert!(matches!(gone, AdoptError::Gone), "{gone:?}");
    let census = bench.settled().await;
    assert_eq!(census.counts.gone, 1);
    assert_eq!(bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Dropped)), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_adoption_given_up_at_any_point_ends_in_one_state_or_the_other() {
    for fault in [Fault::None, Fault::HappensUnheard, Fault::HappensLate(5 * SECOND)] {
        for polls in 0..4 {
            let (engine, bench) = bench(1).await;
            let claim = bench.claim().await.unwrap();
            let id = claim.id().clone();
            if polls > 0 {
                engine.script(Op::Adopt, [fault]);
            }
            drop(polled(polls, claim.adopt(&session("conversation"))).await);
            let census = bench.settled().await;
            let found = engine.find(&session("conversation")).await.unwrap();
            if polls == 0 {
                // Never polled, nothing was sent: it was dropped like any other claim.
                assert_eq!((found.place, census.counts.gone), (Place::Absent, 1));
            } else {
                assert_eq!((found.place, census.counts.adopted), (Place::Running(id), 1));
            }
            bench.end_sessions().await;
            bench.end().await;
        }
    }
    for milliseconds in 0..5 {
        let (engine, bench) = bench(1).await;
        let claim = bench.claim().await.unwrap();
        let name = session("conversation");
        drop(timeout(Duration::from_millis(milliseconds), claim.adopt(&name)).await);
        let census = bench.settled().await;
        let named = engine.find(&name).await.unwrap().place != Place::Absent;
        assert_eq!(census.counts.adopted, u64::from(named));
        bench.end_sessions().await;
        bench.end().await;
    }
}
