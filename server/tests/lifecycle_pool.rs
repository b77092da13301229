//! Stories of a pool: filling, claiming, ageing, closing.

mod support;

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use greenroom::{
    conversation::Principal,
    engine::Engine as _,
    pool::{ClaimError, Delay, Hit, Isolation, PoolEvent, PoolSpec, Readiness, Unready, Why},
};
use greenroom_agent::kernel::Kernel;
use greenroom_protocol::{Language, LeaseState};
use support::{
    fake_engine::{FakeEngine, Fault, Op},
    kernel::{Scripted, Start},
    pools::{Bench, ids, polled, pool_spec, session},
};
use tokio::time::{Instant, sleep, timeout};

/// An engine whose sandboxes need this long for their kernels.
fn slow(milliseconds: u64) -> FakeEngine {
    FakeEngine::new().kernels(move |_| {
        let kernel = Scripted::new(Language::Python).starts([Start::Takes(milliseconds)]);
        vec![Box::new(kernel) as Box<dyn Kernel>]
    })
}

#[tokio::test(start_paused = true)]
async fn a_pool_fills_grants_and_refills() {
    let engine = slow(1000);
    let bench = Bench::start(&engine, pool_spec(2, 8));
    let began = Instant::now();
    bench.settled().await;
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "warm means that the kernels answer"
    );

    let claim = bench.claim().await.unwrap();
    let hello = claim.guest().hello().await.unwrap();
    assert!(hello.ready && hello.lease == LeaseState::Unbound);
    let id = claim.id().clone();
    let guest = claim.adopt(&session("conversation")).await.unwrap();
    assert_eq!(*guest.id(), id);
    assert!(engine.names().contains(&session("conversation").to_string()));

    let census = bench.settled().await;
    assert_eq!((census.counts.begun, census.counts.adopted), (3, 1));
    assert_eq!(
        bench
            .heard
            .count(|e| matches!(e, PoolEvent::Granted { hit: Hit::Warm, .. })),
        1
    );
    assert_eq!(bench.heard.count(|e| matches!(e, PoolEvent::Booted { .. })), 3);
    assert_eq!(engine.calls(Op::Prepare), 1);
    engine.destroy(&id).await.unwrap();
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_keeps_more_warm_until_it_is_forgotten() {
    let engine = slow(500);
    let spec = PoolSpec {
        warm_max: 5,
        ..pool_spec(1, 32)
    };
    let bench = Bench::start(&engine, spec);
    bench.settled().await;
    let names: Vec<_> = (0..8).map(|n| format!("conversation {n}")).collect();
    join_all(names.iter().map(|name| bench.adopted(name))).await;
    bench
        .until("as many as came, within bounds", |c| c.counts.warm == 5)
        .await;
    // Nobody comes again: some minutes later all but one are let go.
    let began = Instant::now();
    bench.settled().await;
    let minutes = began.elapsed().as_secs() / 60;
    assert!((9..=15).contains(&minutes), "{minutes} minutes");
    assert_eq!(bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Surplus)), 4);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_without_memory_refuses_at_once_and_says_so() {
    let engine = slow(500);
    let bench = Bench::start(&engine, pool_spec(1, 8));
    bench.settled().await;
    engine.memory(64 << 20);
    // What is warm is there already.
    bench.adopted("conversation 1").await;
    let began = Instant::now();
    let refused = bench.claim().await.unwrap_err();
    assert!(matches!(refused, ClaimError::Memory { .. }), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "no waiting helps");
    assert_eq!(bench.census().readiness, Readiness::Unready(Unready::NoMemory));
    assert_eq!(engine.names().len(), 1, "nothing was created");
    engine.memory(4 << 30);
    bench.adopted("conversation 2").await;
    bench.settled().await;
    assert_eq!(bench.census().readiness, Readiness::Ready);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_pool_boots_on_demand_and_keeps_nothing() {
    let engine = slow(1000);
    let bench = Bench::start(&engine, pool_spec(0, 8));
    bench.until("ready", |c| c.readiness == Readiness::Ready).await;
    assert!(engine.names().is_empty());
    bench.adopted("conversation").await;
    assert_eq!(
        bench
            .heard
            .count(|e| matches!(e, PoolEvent::Granted { hit: Hit::Booted, .. })),
        1
    );
    // One whose claimer goes away while it boots leaves the queue at once, and its sandbox is not kept.
    let given_up = timeout(Duration::from_millis(500), bench.claim()).await;
    assert!(given_up.is_err());
    let began = Instant::now();
    bench.until("nobody waits", |c| c.waiting == 0).await;
    assert!(began.elapsed() < Duration::from_millis(10));
    bench.settled().await;
    assert_eq!(bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Surplus)), 1);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn twenty_claims_on_four_warm_are_all_served_in_turn() {
    let engine = slow(500);
    let bench = Bench::start(&engine, pool_spec(4, 32));
    bench.settled().await;
    let mut claims: FuturesUnordered<_> = (0..20)
        .map(|n| {
            let bench = &bench;
            async move { (n, bench.claim().await.unwrap()) }
        })
        .collect();
    let (mut order, mut claimed) = (Vec::new(), BTreeSet::new());
    while let Some((n, claim)) = claims.next().await {
        order.push(n);
        assert!(claimed.insert(claim.id().clone()), "one sandbox, one claim");
        claim.adopt(&session(&format!("conversation {n}"))).await.unwrap();
    }
    drop(claims);
    assert!(order.is_sorted(), "first come, first served: {order:?}");
    let warm = bench
        .heard
        .count(|e| matches!(e, PoolEvent::Granted { hit: Hit::Warm, .. }));
    assert_eq!(warm, 4);
    let census = bench.settled().await;
    assert_eq!(census.counts.adopted, 20);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_many_is_in_nobodys_way() {
    let engine = slow(500);
    let spec = PoolSpec {
        parallel_boots: 1,
        claims_waiting: 12,
        ..pool_spec(0, 32)
    };
    let bench = Bench::start(&engine, spec);
    bench.until("it lists", |c| c.readiness == Readiness::Ready).await;
    let (greedy, modest) = (Principal::Key("greedy".into()), Principal::Key("modest".into()));
    let began = Instant::now();
    let claim = |whose: Principal, after: u64| {
        let bench = &bench;
        async move {
            sleep(Duration::from_millis(after)).await;
            let claim = bench.pool.claim(&whose, began + Duration::from_secs(25)).await;
            (whose, claim, began.elapsed())
        }
    };
    let claims = (0..12)
        .map(|_| claim(greedy.clone(), 0))
        .chain([claim(modest.clone(), 100)]);
    let outcomes = join_all(claims).await;
    let refused: Vec<_> = outcomes.iter().filter(|(_, claim, _)| claim.is_err()).collect();
    // The queue was full: one of those who had most in it left for the newcomer.
    assert!(matches!(refused[..], [(whose, Err(ClaimError::QueueFull { .. }), _)] if *whose == greedy));
    let (_, claim, waited) = &outcomes[12];
    assert!(claim.is_ok() && *waited < Duration::from_secs(2), "{waited:?}");
    drop(outcomes);
    bench.settled().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn at_max_the_claimer_hears_which_limit_and_at_once() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(2, 3));
    bench.settled().await;
    for n in 0..3 {
        bench.adopted(&format!("conversation {n}")).await;
    }
    let began = Instant::now();
    let refused = bench.claim().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2), "waiting would not help");
    assert!(
        matches!(
            refused,
            ClaimError::Capacity {
                limit: "max",
                max: 3,
                ..
            }
        ),
        "{refused:?}"
    );
    let full = |readiness: &Readiness| *readiness == Readiness::Unready(Unready::Full { max: 3 });
    bench
        .until("it says that it is full", |c| full(&c.readiness))
        .await;
    assert_eq!(bench.census().counts.held(), 0);

    // A conversation ends: there is room for the next one, and none for a reserve.
    let first = bench.listed().await.remove(0);
    engine.destroy(&first.id).await.unwrap();
    bench
        .until("there is room", |c| c.readiness == Readiness::Ready)
        .await;
    bench.adopted("another").await;
    assert_eq!(bench.listed().await.len(), 3);
    bench.end_sessions().await;
    bench.settled().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reserve_leaves_a_slot_that_a_claim_takes() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(4, 4));
    bench.until("all but one", |c| c.counts.warm == 3).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.listed().await.len(), 3);
    for n in 0..4 {
        bench.adopted(&format!("conversation {n}")).await;
    }
    assert_eq!(bench.listed().await.len(), 4);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_not_adopted_is_never_served_again() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(1, 4));
    bench.settled().await;
    let claim = bench.claim().await.unwrap();
    let id = claim.id().clone();
    drop(claim);
    bench.settled().await;
    assert!(!ids(&bench.listed().await).contains(&id));
    assert_eq!(bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Dropped)), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_given_up_at_any_point_leaves_nothing_behind() {
    for warm in [0, 1] {
        let engine = slow(20);
        let bench = Bench::start(&engine, pool_spec(warm, 4));
        bench.settled().await;
        for polls in 0..6 {
            drop(polled(polls, bench.claim()).await);
            bench.settled().await;
        }
        for milliseconds in 0..40 {
            drop(timeout(Duration::from_millis(milliseconds), bench.claim()).await);
            bench
                .until("nothing in hand", |c| c.counts.claimed == 0 && c.waiting == 0)
                .await;
        }
        bench.settled().await;
        bench.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_takes_goes_back_warm() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(1, 4));
    bench.settled().await;
    for _ in 0..10 {
        let mut claim = Box::pin(bench.claim());
        assert!(
            futures_util::poll!(&mut claim).is_pending(),
            "the request is sent"
        );
        bench.until("it is granted", |c| c.counts.claimed == 1).await;
        drop(claim);
        bench.settled().await;
    }
    // What was booted in its place meanwhile makes one too many, which is another matter.
    let dropped = bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Dropped));
    assert_eq!(dropped, 0, "unused, it is as warm as before");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_aged_one_is_replaced_before_it_goes() {
    let engine = slow(1000);
    let bench = Bench::start(&engine, pool_spec(2, 8));
    bench.settled().await;
    let before: BTreeSet<_> = ids(&bench.listed().await).into_iter().collect();
    let mut census = bench.pool.census();
    let gap = async {
        census.wait_for(|c| c.counts.warm < 2).await.unwrap();
    };
    let hour = Duration::from_secs(60 * 60);
    assert!(
        timeout(hour, gap).await.is_err(),
        "there was a moment with fewer than are kept"
    );
    bench.settled().await;
    let after: BTreeSet<_> = ids(&bench.listed().await).into_iter().collect();
    assert!(before.is_disjoint(&after));
    assert_eq!(bench.heard.count(|e| *e == PoolEvent::Condemned(Why::Aged)), 2);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn closing_leaves_conversations_alone_and_nothing_else() {
    let engine = slow(1000);
    let bench = Bench::start(&engine, pool_spec(2, 8));
    bench.settled().await;
    bench.adopted("conversation").await;
    let in_hand = bench.claim().await.unwrap();
    bench
        .until("boots are under way", |c| c.counts.booting == 2)
        .await;
    let waiting = bench.claim();
    let closing = async {
        sleep(Duration::from_millis(100)).await;
        bench.pool.close(Duration::from_secs(5)).await
    };
    let (refused, census) = tokio::join!(waiting, closing);
    assert_eq!(refused.unwrap_err(), ClaimError::Closed);
    assert_eq!(
        census.counts.claimed, 1,
        "what is in a hand is its holder's: {census:?}"
    );
    assert_eq!(bench.claim().await.unwrap_err(), ClaimError::Closed);
    // Its holder may still adopt it.
    in_hand.adopt(&session("another")).await.unwrap();
    bench.until("nothing is held", |c| c.counts.held() == 0).await;
    assert_eq!(bench.listed().await.iter().filter(|s| s.adopted).count(), 2);
    bench.end_sessions().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pool_without_handles_closes() {
    let engine = FakeEngine::new();
    let bench = Bench::start(&engine, pool_spec(2, 8));
    bench.settled().await;
    drop(bench);
    engine.assert_nothing_left().await;
}

#[tokio::test(start_paused = true)]
async fn more_claims_than_may_wait_are_refused() {
    let engine = slow(1000);
    let spec = PoolSpec {
        claims_waiting: 3,
        ..pool_spec(0, 32)
    };
    let bench = Bench::start(&engine, spec);
    let claims = join_all((0..5).map(|_| bench.claim())).await;
    let refused: Vec<_> = claims.iter().filter_map(|claim| claim.as_ref().err()).collect();
    assert_eq!(refused.len(), 2);
    for error in refused {
        assert!(
            matches!(
                error,
                ClaimError::QueueFull {
                    limit: "claims_waiting",
                    bound: 3,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    drop(claims);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_waits_in_vain_hears_what_for() {
    let engine = slow(15_000);
    let mut spec = pool_spec(0, 8);
    spec.claim_wait = Duration::from_secs(10);
    let bench = Bench::start(&engine, spec);
    let began = Instant::now();
    let late = bench.claim().await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::from_secs(10));
    let ClaimError::TimedOut { delay, .. } = &late else {
        panic!("{late:?}")
    };
    assert_eq!(
        *delay,
        Delay::Booting {
            booting: 1,
            waiting: 1
        }
    );
    bench.end().await;

    let engine = FakeEngine::new();
    engine.script(Op::Prepare, [Fault::Hangs]);
    let bench = Bench::start(&engine, pool_spec(1, 8));
    let late = bench.claim().await.unwrap_err();
    assert!(
        matches!(
            late,
            ClaimError::TimedOut {
                delay: Delay::Preparing,
                ..
            }
        ),
        "{late:?}"
    );
    bench.settled().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_prove_its_isolation_is_destroyed() {
    let engine = FakeEngine::new().without_gvisor();
    let bench = Bench::start(&engine, pool_spec(1, 8));
    let census = bench.until("it says why", |c| c.failures >= 3).await;
    assert!(
        census.last_boot_error.as_ref().unwrap().contains("gVisor"),
        "{census:?}"
    );
    let Readiness::Unready(Unready::Failing { .. }) = census.readiness else {
        panic!("{census:?}")
    };
    let late = bench.claim().await.unwrap_err();
    assert!(late.to_string().contains("gVisor"), "{late}");
    bench.end().await;

    let spec = PoolSpec {
        isolation: Isolation::Waived,
        ..pool_spec(1, 8)
    };
    let bench = Bench::start(&engine, spec);
    bench.settled().await;
    bench.end().await;
}
